import { RoundTrip } from "./echo.js";
import { Failure } from "./failure.js";
import { WhipSession, withFragment } from "./whip.js";

const HANG_UP_PATIENCE_MS = 500;
const ENDPOINT = "/whip";
const CONNECT_TIMEOUT_MS = 30_000;
const RESTART_ATTEMPTS = 10;
const RESTART_RETRY_MS = 1_000;
const FIRST_AUDIO_POLL_MS = 10;

const MICROPHONE_FAILURES = {
  NotAllowedError: ["The microphone is blocked", "Allow it in the site settings beside the address bar, then start again."],
  NotFoundError: ["No microphone was found", "Plug one in, then start again."],
  NotReadableError: ["The microphone is in use", "Close the program that holds it, then start again."],
};

/**
 * @typedef {object} CallEvents
 * @property {(state: string, failure?: Failure) => void} onState
 * @property {(stream: MediaStream) => void} onLocal
 * @property {(stream: MediaStream) => void} onRemote
 * @property {(marks: Record<string, number>) => void} onMark
 * @property {() => void} onEcho
 */

/** One call: microphone, peer connection, WHIP session, data channel. Used once. */
export class Call {
  #token;
  #events;
  #session = null;
  #microphone = null;
  #sender = null;
  #deadline = 0;
  #audioPoll = 0;
  #restarted = false;
  #renewal = Promise.resolve();
  #over = false;

  /** `performance.now()` at click, post, answer, ice, dtls, audio, channel. */
  marks = { click: performance.now() };
  pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  /** @type {RoundTrip} */
  roundTrip;

  /**
   * @param {string | null} token
   * @param {CallEvents} events
   */
  constructor(token, events) {
    this.#token = token;
    this.#events = events;
    const channel = this.pc.createDataChannel("events");
    channel.addEventListener("open", () => this.#mark("channel"));
    channel.addEventListener("close", () => this.#onChannelClose());
    this.roundTrip = new RoundTrip(channel, events.onEcho);
    this.pc.addEventListener("track", (event) => this.#onTrack(event));
    this.pc.addEventListener("iceconnectionstatechange", () => this.#onIceState());
    this.pc.addEventListener("connectionstatechange", () => this.#onConnectionState());
  }

  /** Everything from the microphone to the answer; the rest comes by events. */
  async start() {
    try {
      this.#events.onState("microphone");
      await this.#addMicrophone();
      this.#events.onState("signaling");
      await this.#signal();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** End the call and tell the server. */
  hangUp() {
    if (this.#end()) this.#events.onState("idle");
  }

  /** New ICE credentials for a running call, whose media goes on meanwhile. What goes wrong leaves the old ones. */
  async restartIce() {
    if (!["connected", "disconnected"].includes(this.pc.connectionState)) return;
    try {
      await this.#renewIce();
    } catch (error) {
      console.warn(`ICE was not restarted: ${error.message}`);
    }
  }

  async #addMicrophone() {
    this.#microphone = await openMicrophone();
    if (this.#over) {
      stopTracks(this.#microphone);
      throw new Error("hung up before the microphone opened");
    }
    const [track] = this.#microphone.getAudioTracks();
    track.addEventListener("ended", () => {
      this.#fail(new Failure("The microphone went away", "Check its plug and its permission, then start again."));
    });
    this.#sender = this.pc.addTransceiver(track, { direction: "sendrecv", streams: [this.#microphone] }).sender;
    this.#events.onLocal(this.#microphone);
  }

  async #signal() {
    await this.pc.setLocalDescription();
    this.#sender.transport.addEventListener("statechange", () => this.#onDtlsState());
    this.#mark("post");
    const { session, answer } = await WhipSession.create(ENDPOINT, this.#token, this.pc.localDescription.sdp);
    this.#session = session;
    if (this.#over) {
      session.delete();
      return;
    }
    this.#mark("answer");
    this.#events.onState("connecting");
    this.#startDeadline();
    await this.pc.setRemoteDescription({ type: "answer", sdp: answer });
  }

  #onTrack({ track, receiver }) {
    this.#events.onRemote(new MediaStream([track]));
    this.#audioPoll = setInterval(() => {
      if (receiver.getSynchronizationSources().length === 0) return;
      clearInterval(this.#audioPoll);
      this.#mark("audio");
    }, FIRST_AUDIO_POLL_MS);
  }

  #onIceState() {
    const state = this.pc.iceConnectionState;
    if (state === "connected" || state === "completed") this.#mark("ice");
    if (state === "disconnected") this.#events.onState("reconnecting");
  }

  /** The transport itself tells the time: connectionState can lag behind the first data. */
  #onDtlsState() {
    if (this.#sender.transport.state === "connected") this.#mark("dtls");
  }

  #onConnectionState() {
    if (this.pc.connectionState === "connected") this.#onConnected();
    // Chromium can leave iceConnectionState at "disconnected" when ICE has failed: only this state is sure.
    if (this.pc.connectionState === "failed") this.#onConnectionFailed();
  }

  #onConnected() {
    clearTimeout(this.#deadline);
    this.#restarted = false;
    this.#events.onState("connected");
  }

  #onConnectionFailed() {
    if (this.#sender.transport.state === "failed") {
      this.#fail(new Failure("The DTLS handshake failed", "Start again; the browser's WebRTC log tells more."));
    } else if (!this.#restarted) {
      this.#reconnect();
    }
  }

  /** Once an outage. From here the deadline decides: Chromium reports "failed" again while the new pairs form. */
  async #reconnect() {
    this.#restarted = true;
    this.#events.onState("reconnecting");
    this.#startDeadline();
    try {
      await this.#renewIce();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** One after the other: of two at once the second would find the first one's offer pending. */
  #renewIce() {
    this.#renewal = this.#renewal.catch(() => {}).then(() => this.#exchangeUntilReached());
    return this.#renewal;
  }

  /** Browsers refuse requests for a moment after a change of network. */
  async #exchangeUntilReached() {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#exchangeCredentials();
      } catch (error) {
        if (!error.isUnreached || attempt === RESTART_ATTEMPTS || this.#over) throw error;
        await new Promise((resolve) => setTimeout(resolve, RESTART_RETRY_MS));
      }
    }
  }

  async #exchangeCredentials() {
    const answer = this.pc.remoteDescription.sdp;
    await this.pc.setLocalDescription(await this.pc.createOffer({ iceRestart: true }));
    try {
      const fragment = await this.#session.restartIce(this.pc.localDescription.sdp);
      await this.pc.setRemoteDescription({ type: "answer", sdp: withFragment(answer, fragment) });
    } catch (error) {
      if (this.pc.signalingState === "have-local-offer") await this.pc.setLocalDescription({ type: "rollback" });
      throw error;
    }
  }

  #onChannelClose() {
    this.#fail(new Failure("The server ended the call", "Start a new one."));
  }

  #startDeadline() {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.#fail(noPath()), CONNECT_TIMEOUT_MS);
  }

  #mark(name) {
    if (this.#over || name in this.marks) return;
    this.marks[name] = performance.now();
    this.#events.onMark(this.marks);
  }

  #fail(error) {
    if (!this.#end()) return;
    const failure = error instanceof Failure ? error : new Failure(`Unexpected: ${error.message}`, "Start again.");
    this.#events.onState("failed", failure);
  }

  /** Let go of everything; false if that was done before. */
  #end() {
    if (this.#over) return false;
    this.#over = true;
    clearTimeout(this.#deadline);
    clearInterval(this.#audioPoll);
    this.roundTrip.stop();
    stopTracks(this.#microphone);
    // Closing says goodbye by DTLS, which ends the session too: the DELETE that came after it would find none.
    const deleted = Promise.resolve(this.#session?.delete());
    const patience = new Promise((resolve) => setTimeout(resolve, HANG_UP_PATIENCE_MS));
    Promise.race([deleted, patience]).finally(() => this.pc.close());
    return true;
  }
}

async function openMicrophone() {
  if (!navigator.mediaDevices) throw insecureOrigin();
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    const [reason, wayOut] = MICROPHONE_FAILURES[error.name] ?? [`No microphone: ${error.message}`, "Start again."];
    throw new Failure(reason, wayOut);
  }
}

function insecureOrigin() {
  const port = location.port || "80";
  return new Failure(
    "Browsers give the microphone to secure pages only",
    `${location.origin} is not one. Open the page by https, or by a tunnel: ` +
      `ssh -L ${port}:127.0.0.1:${port} ${location.hostname}, then http://localhost:${port}/`,
  );
}

function noPath() {
  return new Failure("No media path to the VIP", "Check that nothing on the way blocks UDP to it, then start again.");
}

function stopTracks(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
