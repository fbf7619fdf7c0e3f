const FLOOR_DB = -60;
const SEGMENTS = 30; // as in style.css
const FALL_PER_S = 1.6;
const PEAK_HOLD_MS = 900;
const ARIA_INTERVAL_MS = 250;

/** Level of one media stream, shown in a `role="meter"` element. */
export class LevelMeter {
  #analyser;
  #source;
  #buffer;
  #element;
  #shown = 0;
  #peak = 0;
  #peakAt = 0;
  #paintedAt = 0;
  #spokenAt = 0;

  /**
   * @param {AudioContext} context
   * @param {MediaStream} stream
   * @param {HTMLElement} element
   */
  constructor(context, stream, element) {
    this.#analyser = new AnalyserNode(context, { fftSize: 2048 });
    this.#buffer = new Float32Array(this.#analyser.fftSize);
    this.#source = context.createMediaStreamSource(stream);
    this.#source.connect(this.#analyser);
    this.#element = element;
  }

  /** Root mean square of the last 40 ms or so, 0 to 1. */
  get level() {
    this.#analyser.getFloatTimeDomainData(this.#buffer);
    let sum = 0;
    for (const sample of this.#buffer) sum += sample * sample;
    return Math.sqrt(sum / this.#buffer.length);
  }

  /** Quick up, slow down, with a mark at the last peak. */
  paint(now) {
    const target = toScale(this.level);
    const fall = (FALL_PER_S * (now - this.#paintedAt)) / 1000;
    this.#paintedAt = now;
    this.#shown = Math.max(target, this.#shown - fall);
    if (this.#shown >= this.#peak || now - this.#peakAt > PEAK_HOLD_MS) {
      this.#peak = this.#shown;
      this.#peakAt = now;
    }
    show(this.#element, this.#shown, this.#peak);
    if (now - this.#spokenAt > ARIA_INTERVAL_MS) this.#speak(now);
  }

  stop() {
    this.#source.disconnect();
    show(this.#element, 0, 0);
    this.#element.setAttribute("aria-valuenow", "0");
  }

  #speak(now) {
    this.#spokenAt = now;
    this.#element.setAttribute("aria-valuenow", String(Math.round(this.#shown * 100)));
  }
}

function show(element, level, peak) {
  element.style.setProperty("--level", inSegments(level));
  element.style.setProperty("--peak", inSegments(peak));
}

/** Whole segments only: a half-lit one would look broken. */
function inSegments(value) {
  return String(Math.round(value * SEGMENTS) / SEGMENTS);
}

/** Linear amplitude to 0..1 over the decibels that a meter shows. */
function toScale(amplitude) {
  const decibels = 20 * Math.log10(Math.max(amplitude, 1e-6));
  return Math.min(1, Math.max(0, 1 - decibels / FLOOR_DB));
}
