const WINDOW_MS = 60_000;
const MIN_SPAN_MS = 15_000;
const GAP_MS = 1_000;
const FONT = "11px system-ui, sans-serif";
const LABEL_PX = 18;
const LAST_LABEL = 0.94; // of the axis: beyond it a label would touch the next column
const AXIS_STEPS = [1, 2, 5, 10];
const SCALE_TOPS = [1, 1.5, 2, 3, 4, 6, 8, 10];

/** Line of the last minute's round trips on a canvas, sharp on every screen. */
export class Sparkline {
  #canvas;
  #context;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /**
   * @param {{at: number, rtt: number}[]} samples oldest first
   * @param {number | null} median
   * @param {number} now
   */
  draw(samples, median, now) {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    this.#fit(width, height);
    const colors = readColors(this.#canvas);
    const spanMs = Math.min(WINDOW_MS, Math.max(MIN_SPAN_MS, now - (samples[0]?.at ?? now)));
    const top = niceCeiling(Math.max(1, ...samples.map(({ rtt }) => rtt)), SCALE_TOPS);
    const bottom = height - LABEL_PX;
    const x = (at) => width - 6 - ((now - at) / spanMs) * (width - 6);
    const y = (rtt) => bottom - (rtt / top) * (bottom - LABEL_PX);

    drawGrid(this.#context, { width, y, top, colors });
    if (samples.length === 0) return;
    drawLabels(this.#context, { width, bottom, y, top, spanMs, colors });
    drawRuns(this.#context, { samples, x, y, bottom, colors });
    drawMedian(this.#context, { y: y(median), width, colors });
    drawHead(this.#context, { x: x(samples.at(-1).at), y: y(samples.at(-1).rtt), colors });
  }

  #fit(width, height) {
    const ratio = window.devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.#canvas.width !== pixelWidth) this.#canvas.width = pixelWidth;
    if (this.#canvas.height !== pixelHeight) this.#canvas.height = pixelHeight;
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#context.clearRect(0, 0, width, height);
  }
}

/**
 * Fill the table of setup phases.
 * @param {HTMLTableElement} table
 * @param {Record<string, number>} marks times of `performance.now()` by phase, with `click` and `post`
 */
export function drawPhases(table, marks) {
  const rows = [...table.querySelectorAll("[data-phase]")];
  const ends = rows.map((row) => marks[row.dataset.phase] - marks.post).filter(Number.isFinite);
  const total = ends.length > 0 ? Math.max(...ends) * 1.04 : undefined;
  for (const row of rows) drawPhase(row, marks, total);
  drawAxis(table, total);
}

function drawPhase(row, marks, total) {
  const end = marks[row.dataset.phase];
  const [, , afterPost, afterClick] = row.cells;
  const bar = row.querySelector("i");
  afterPost.textContent = wholeMs(end - marks.post);
  afterClick.textContent = wholeMs(end - marks.click);
  bar.hidden = end === undefined;
  if (end === undefined) return;
  const start = Math.min(end, marks[row.dataset.from] ?? end);
  bar.style.left = `${(100 * (start - marks.post)) / total}%`;
  bar.style.width = `${(100 * (end - start)) / total}%`;
}

function drawAxis(table, total) {
  const step = total === undefined ? undefined : niceCeiling(total / 5, AXIS_STEPS);
  const count = step === undefined ? 0 : Math.floor((total * LAST_LABEL) / step) + 1;
  const labels = Array.from({ length: count }, (_, index) => {
    const label = document.createElement("span");
    label.textContent = String(index * step);
    label.style.left = `${(100 * index * step) / total}%`;
    return label;
  });
  table.querySelector(".axis").replaceChildren(...labels);
  table.style.setProperty("--step", step === undefined ? "25%" : `${(100 * step) / total}%`);
}

function drawGrid(context, { width, y, top, colors }) {
  context.strokeStyle = colors.grid;
  context.lineWidth = 1;
  context.setLineDash([]);
  for (const value of [0, top / 2, top]) {
    const line = Math.round(y(value)) + 0.5;
    context.beginPath();
    context.moveTo(0, line);
    context.lineTo(width, line);
    context.stroke();
  }
}

function drawLabels(context, { width, bottom, y, top, spanMs, colors }) {
  context.font = FONT;
  context.fillStyle = colors.label;
  context.textAlign = "left";
  context.fillText(`${top} ms`, 0, y(top) - 5);
  context.fillText(`${Math.round(spanMs / 1000)} s ago`, 0, bottom + 14);
  context.textAlign = "right";
  context.fillText("now", width, bottom + 14);
}

function drawRuns(context, { samples, x, y, bottom, colors }) {
  for (const run of splitAtGaps(samples)) {
    const line = new Path2D();
    for (const { at, rtt } of run) line.lineTo(x(at), y(rtt));
    const area = new Path2D(line);
    area.lineTo(x(run.at(-1).at), bottom);
    area.lineTo(x(run[0].at), bottom);
    context.globalAlpha = 0.14;
    context.fillStyle = colors.trace;
    context.fill(area);
    context.globalAlpha = 1;
    context.strokeStyle = colors.trace;
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.stroke(line);
  }
}

function drawMedian(context, { y, width, colors }) {
  context.setLineDash([2, 4]);
  context.strokeStyle = colors.label;
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(width, y);
  context.stroke();
}

function drawHead(context, { x, y, colors }) {
  context.fillStyle = colors.trace;
  context.beginPath();
  context.arc(x, y, 3.5, 0, 2 * Math.PI);
  context.fill();
}

/** Runs of samples without a pause: an outage shows as a hole, not as a slope. */
function splitAtGaps(samples) {
  const runs = [];
  for (const [index, sample] of samples.entries()) {
    if (index === 0 || sample.at - samples[index - 1].at > GAP_MS) runs.push([]);
    runs.at(-1).push(sample);
  }
  return runs;
}

function readColors(element) {
  const style = getComputedStyle(element);
  const color = (name) => style.getPropertyValue(name).trim();
  return { trace: color("--trace"), grid: color("--line"), label: color("--muted") };
}

/** The smallest factor times a power of ten that is not below the value. */
function niceCeiling(value, factors) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * factors.find((factor) => factor * power >= value * 0.999);
}

function wholeMs(value) {
  return Number.isFinite(value) ? String(Math.round(value)) : "–";
}
