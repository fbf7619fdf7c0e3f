const INTERVAL_MS = 250;
const WINDOW_MS = 60_000;
const STALE_MS = 1_000;

/** Pings over a data channel whose far end sends every message back unchanged. */
export class RoundTrip {
  #channel;
  #onEcho;
  #timer = 0;
  #nextId = 1;

  /** @type {{at: number, rtt: number}[]} the last minute, oldest first, in ms of `performance.now()` */
  samples = [];
  /** Echoes since the channel opened. */
  echoes = 0;
  /** @type {{id: number, rtt: number, at: number} | null} */
  lastEcho = null;

  /**
   * @param {RTCDataChannel} channel
   * @param {() => void} onEcho
   */
  constructor(channel, onEcho) {
    this.#channel = channel;
    this.#onEcho = onEcho;
    channel.addEventListener("open", () => this.#start());
    channel.addEventListener("close", () => this.stop());
    channel.addEventListener("message", ({ data }) => this.#receive(data));
  }

  /** Nearest-rank quantile of the last minute, or null without samples. */
  quantile(q) {
    if (this.samples.length === 0) return null;
    const sorted = this.samples.map(({ rtt }) => rtt).sort((a, b) => a - b);
    return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
  }

  /** True when there is no echo of the last second. */
  get isStale() {
    return this.lastEcho === null || performance.now() - this.lastEcho.at > STALE_MS;
  }

  stop() {
    clearInterval(this.#timer);
  }

  #start() {
    this.#send();
    this.#timer = setInterval(() => this.#send(), INTERVAL_MS);
  }

  #send() {
    if (this.#channel.readyState !== "open") return;
    this.#channel.send(JSON.stringify({ type: "ping", id: this.#nextId++, t: performance.now() }));
  }

  #receive(data) {
    const at = performance.now();
    const ping = parsePing(data);
    if (!ping) return;
    this.lastEcho = { id: ping.id, rtt: at - ping.t, at };
    this.echoes += 1;
    this.samples.push({ at, rtt: at - ping.t });
    while (this.samples[0].at < at - WINDOW_MS) this.samples.shift();
    this.#onEcho();
  }
}

/** The ping in a message, or null: other backends send other events. */
function parsePing(data) {
  try {
    const message = JSON.parse(data);
    return message?.type === "ping" && Number.isFinite(message.t) ? message : null;
  } catch {
    return null;
  }
}
