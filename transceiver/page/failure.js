/** Why a call cannot go on, in words for the person in front of the page. */
export class Failure extends Error {
  /**
   * @param {string} reason one short line
   * @param {string} wayOut what the person can do now
   * @param {{detail?: string, needsToken?: boolean, isUnreached?: boolean}} [more] `detail` is the server's own text,
   *   `isUnreached` that it said nothing at all
   */
  constructor(reason, wayOut, { detail = "", needsToken = false, isUnreached = false } = {}) {
    super(reason);
    this.wayOut = wayOut;
    this.detail = detail;
    this.needsToken = needsToken;
    this.isUnreached = isUnreached;
  }
}
