import { Failure } from "./failure.js";

const TIMEOUT_MS = 15_000;
const MAX_DETAIL_CHARS = 600;

/** One WHIP session resource (RFC 9725). */
export class WhipSession {
  #url;
  #token;

  constructor(url, token) {
    this.#url = url;
    this.#token = token;
  }

  /**
   * POST an offer.
   * @param {string} endpoint
   * @param {string | null} token bearer token, if there is one
   * @param {string} offer SDP; candidates are not needed, the server is ICE-lite
   * @returns {Promise<{session: WhipSession, answer: string}>}
   */
  static async create(endpoint, token, offer) {
    const response = await request(endpoint, token, {
      method: "POST",
      headers: { "Content-Type": "application/sdp" },
      body: offer,
    });
    const location = response.headers.get("Location");
    if (!location) {
      throw new Failure("The answer has no Location header", "Look at what stands between this page and the server.");
    }
    const session = new WhipSession(new URL(location, response.url), token);
    return { session, answer: await response.text() };
  }

  /**
   * Restart ICE on the server.
   * @param {string} offer the local offer with the new credentials
   * @returns {Promise<string>} SDP fragment with the server's new credentials and candidates
   */
  async restartIce(offer) {
    const response = await request(this.#url, this.#token, {
      method: "PATCH",
      headers: { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": "*" },
      body: `a=ice-ufrag:${attribute(offer, "ice-ufrag")}\r\na=ice-pwd:${attribute(offer, "ice-pwd")}\r\n`,
    });
    return response.text();
  }

  /** Hang up. Survives the page; nobody waits for the outcome, an abandoned session ends by itself. */
  async delete() {
    await fetch(this.#url, { method: "DELETE", headers: authorization(this.#token), keepalive: true }).catch(() => {});
  }
}

/**
 * The remote description after an ICE restart: the old answer with the fragment's credentials and candidates.
 * @param {string} answer
 * @param {string} fragment
 * @returns {string}
 */
export function withFragment(answer, fragment) {
  const ufrag = attribute(fragment, "ice-ufrag");
  const password = attribute(fragment, "ice-pwd");
  const candidates = fragment.match(/^a=(candidate:|end-of-candidates).*$/gm) ?? [];
  const [head, transport, ...rest] = answer
    .replace(/^a=(candidate:|end-of-candidates).*\r?\n/gm, "")
    .replace(/^a=ice-ufrag:.*$/gm, `a=ice-ufrag:${ufrag}`)
    .replace(/^a=ice-pwd:.*$/gm, `a=ice-pwd:${password}`)
    .split(/^(?=m=)/m);
  // The first section carries the transport of the whole bundle.
  return toCrlf([head, transport, ...candidates.map((line) => `${line}\n`), ...rest].join(""));
}

function toCrlf(text) {
  return text.split(/\r?\n/).join("\r\n");
}

function attribute(sdp, name) {
  const found = sdp.match(new RegExp(`^a=${name}:(\\S+)`, "m"));
  if (!found) throw new Failure(`The SDP has no ${name}`, "Start a new call.");
  return found[1];
}

function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function request(url, token, init) {
  let response;
  try {
    response = await fetch(url, {
      ...init,
      headers: { ...init.headers, ...authorization(token) },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    throw unreachable(error);
  }
  if (!response.ok) throw await refusal(response, token);
  return response;
}

function unreachable(error) {
  const reason = error.name === "TimeoutError"
    ? `The server did not answer in ${TIMEOUT_MS / 1000} s`
    : "The signaling server cannot be reached";
  return new Failure(reason, "Check that the transceiver is running, then start again.", { isUnreached: true });
}

async function refusal(response, token) {
  const { status } = response;
  const detail = await plainText(response);
  if (status === 401) {
    const reason = token ? "The server refused the token" : "The server asks for a token";
    return new Failure(reason, "Enter a valid bearer token below.", { detail, needsToken: true });
  }
  const busy = status === 429 || status === 503;
  const reason = busy ? `The server takes no call now (${status})` : `The server refused the call (${status})`;
  return new Failure(reason, busy ? waitText(response) : "Start again when that is solved.", { detail });
}

async function plainText(response) {
  const isPlain = response.headers.get("Content-Type")?.startsWith("text/plain");
  return isPlain ? (await response.text()).trim().slice(0, MAX_DETAIL_CHARS) : "";
}

function waitText(response) {
  const header = response.headers.get("Retry-After");
  const seconds = /^\d+$/.test(header) ? Number(header) : Math.ceil((Date.parse(header) - Date.now()) / 1000);
  return seconds > 0 ? `Start again in ${seconds} s.` : "Start again in a moment.";
}
