import { Call } from "./call.js";
import { Sparkline, drawPhases } from "./charts.js";
import { LevelMeter } from "./meters.js";
import { kilobits, readStats } from "./stats.js";

const STATE_TEXT = {
  idle: "Ready",
  microphone: "Asking for the microphone",
  signaling: "Signaling",
  connecting: "Connecting",
  connected: "In call",
  reconnecting: "Reconnecting",
};
const ACTIVE = new Set(["microphone", "signaling", "connecting", "connected", "reconnecting"]);
const STATS_INTERVAL_MS = 1_000;
const CALM_FRAME_MS = 500;

const byId = (id) => document.getElementById(id);
const sparkline = new Sparkline(byId("sparkline"));
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let token = takeTokenFromUrl();
let state = "idle";
let call = null;
let audioContext = null;
let meters = {};
let lastStats = null;
let statsTimer = 0;
let frameRequest = 0;
let lastFrameAt = 0;

function startCall() {
  showFailure(null);
  clearFigures();
  audioContext = new AudioContext();
  call = new Call(token, { onState, onLocal, onRemote, onMark, onEcho });
  statsTimer = setInterval(updateOnceASecond, STATS_INTERVAL_MS);
  frameRequest = requestAnimationFrame(paintFrame);
  call.start();
}

/** Stop what only a running call needs; the figures stay to be read. */
function release() {
  clearInterval(statsTimer);
  cancelAnimationFrame(frameRequest);
  for (const meter of Object.values(meters)) meter.stop();
  meters = {};
  audioContext.close();
  byId("remote-audio").srcObject = null;
}

function onState(next, failure = null) {
  state = next;
  document.body.dataset.state = next;
  byId("state").dataset.state = next;
  byId("state").textContent = failure ? `Failed: ${failure.message}` : STATE_TEXT[next];
  byId("call").textContent = ACTIVE.has(next) ? "Hang up" : "Start call";
  byId("restart").disabled = next !== "connected";
  if (!ACTIVE.has(next)) release();
  if (failure) showFailure(failure);
}

function onLocal(stream) {
  meters.local = new LevelMeter(audioContext, stream, byId("level-local"));
}

function onRemote(stream) {
  byId("remote-audio").srcObject = stream;
  meters.remote = new LevelMeter(audioContext, stream, byId("level-remote"));
}

function onMark(marks) {
  drawPhases(byId("phases"), marks);
  const before = Math.round(marks.post - marks.click);
  byId("setup-summary").textContent = `the POST left ${before} ms after the click`;
}

function onEcho() {
  const { lastEcho, echoes } = call.roundTrip;
  setNumber("rtt-current", lastEcho.rtt, 1);
  setNumber("rtt-median", call.roundTrip.quantile(0.5), 1);
  setNumber("rtt-p99", call.roundTrip.quantile(0.99), 1);
  setNumber("echoes", echoes);
}

async function updateOnceASecond() {
  const current = call;
  showDuration();
  const stats = await readStats(current.pc);
  if (current !== call || !ACTIVE.has(state)) return;
  showStats(stats);
  lastStats = stats;
}

function showStats(stats) {
  setNumber("packets-sent", stats.packetsSent);
  setNumber("packets-received", stats.packetsReceived);
  setNumber("packets-lost", stats.packetsLost);
  setNumber("packets-lost-remote", stats.packetsLostRemote);
  setNumber("bytes-sent", stats.bytesSent);
  setNumber("bytes-received", stats.bytesReceived);
  setNumber("rate-sent", kilobits(lastStats, stats, "bytesSent"), 1);
  setNumber("rate-received", kilobits(lastStats, stats, "bytesReceived"), 1);
  setNumber("jitter", stats.jitterMs, 1);
  setNumber("jitter-remote", stats.jitterRemoteMs, 1);
  setNumber("available", stats.availableKbps);
  byId("local-type").textContent = stats.localType ?? "–";
  byId("remote-address").textContent = stats.remoteAddress ?? "–";
}

/** Write a number in groups of three that CSS sets apart: the text stays plain digits. */
function setNumber(id, value, decimals = 0) {
  const [whole, fraction] = Number.isFinite(value) ? value.toFixed(decimals).split(".") : ["–"];
  const groups = whole.match(/\d{1,3}(?=(\d{3})*$)/g) ?? [whole];
  const spans = groups.map((group) => {
    const span = document.createElement("span");
    span.textContent = group;
    return span;
  });
  byId(id).replaceChildren(...spans, fraction ? `.${fraction}` : "");
}

function showDuration() {
  const since = call.marks.dtls;
  if (since === undefined) return;
  const seconds = Math.floor((performance.now() - since) / 1000);
  byId("duration").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function clearFigures() {
  lastStats = null;
  showStats({});
  for (const id of ["rtt-current", "rtt-median", "rtt-p99"]) setNumber(id, null);
  byId("rtt-current").toggleAttribute("data-stale", true);
  setNumber("echoes", 0);
  byId("duration").textContent = "";
  byId("setup-summary").textContent = "time zero is the POST";
  drawPhases(byId("phases"), {});
  sparkline.draw([], null, performance.now());
}

function showFailure(failure) {
  const lines = failure ? [failure.detail, failure.wayOut].filter(Boolean) : [];
  byId("error").replaceChildren(...lines.map((line) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    return paragraph;
  }));
  byId("token-form").hidden = !failure?.needsToken;
  if (failure?.needsToken) byId("token").focus();
}

function paintFrame(now) {
  frameRequest = requestAnimationFrame(paintFrame);
  if (calm.matches && now - lastFrameAt < CALM_FRAME_MS) return;
  lastFrameAt = now;
  for (const meter of Object.values(meters)) meter.paint(now);
  const { roundTrip } = call;
  byId("rtt-current").toggleAttribute("data-stale", roundTrip.isStale);
  sparkline.draw(roundTrip.samples, roundTrip.quantile(0.5), performance.now());
}

/** The last picture again, for a new size or colour scheme while no call paints frames. */
function repaint() {
  if (ACTIVE.has(state)) return;
  const samples = call?.roundTrip.samples ?? [];
  sparkline.draw(samples, call?.roundTrip.quantile(0.5), samples.at(-1)?.at ?? performance.now());
}

/** The token of `#token=...`; the address bar and the history forget it. */
function takeTokenFromUrl() {
  const found = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("token");
  if (found === null) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return /^[!-~]+$/.test(found) ? found : null;
}

function onTokenSubmit(event) {
  event.preventDefault();
  token = byId("token").value;
  byId("token").value = "";
  byId("call").focus();
  startCall();
}

function toggleMute() {
  const audio = byId("remote-audio");
  audio.muted = !audio.muted;
  byId("mute").setAttribute("aria-pressed", String(audio.muted));
}

function setVolume() {
  byId("remote-audio").volume = byId("volume").valueAsNumber / 100;
}

function listen() {
  byId("call").addEventListener("click", () => (ACTIVE.has(state) ? call.hangUp() : startCall()));
  byId("token-form").addEventListener("submit", onTokenSubmit);
  byId("restart").addEventListener("click", () => call.restartIce());
  byId("mute").addEventListener("click", toggleMute);
  byId("volume").addEventListener("input", setVolume);
  window.addEventListener("pagehide", () => call?.hangUp());
  // Chromium gathers once: without this it would find another network only when ICE has failed, 15 s later.
  window.addEventListener("online", () => call?.restartIce());
  window.addEventListener("hashchange", () => (token = takeTokenFromUrl() ?? token));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  new ResizeObserver(repaint).observe(byId("sparkline"));
}

/**
 * For tests, and for curious people in the console. Read only.
 * @property {RTCPeerConnection | null} pc the last call's peer connection
 * @property {{id: number, rtt: number, at: number} | null} lastEcho the last ping that came back, in ms
 * @property {number} echoes pings that came back in this call
 * @property {number} remoteLevel root mean square of the remote audio right now, 0 to 1
 */
window.relayDemo = Object.freeze({
  get pc() { return call?.pc ?? null; },
  get lastEcho() { return call?.roundTrip.lastEcho ?? null; },
  get echoes() { return call?.roundTrip.echoes ?? 0; },
  get remoteLevel() { return meters.remote?.level ?? 0; },
});

setVolume();
clearFigures();
listen();
