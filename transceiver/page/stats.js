/**
 * What getStats knows of the call's audio and of its path. Absent values are undefined.
 * @param {RTCPeerConnection} pc
 */
export async function readStats(pc) {
  const report = await pc.getStats();
  const entries = [...report.values()];
  const audio = (type) => entries.find((entry) => entry.type === type && entry.kind === "audio") ?? {};
  const sent = audio("outbound-rtp");
  const received = audio("inbound-rtp");
  const farEnd = audio("remote-inbound-rtp");
  return {
    at: sent.timestamp,
    packetsSent: sent.packetsSent,
    bytesSent: sent.bytesSent,
    packetsReceived: received.packetsReceived,
    bytesReceived: received.bytesReceived,
    packetsLost: received.packetsLost,
    packetsLostRemote: farEnd.packetsLost,
    jitterMs: milliseconds(received.jitter),
    jitterRemoteMs: milliseconds(farEnd.jitter),
    ...readPath(report, entries),
  };
}

/** Bits a millisecond, which is kbit/s, between two readings of a byte counter. */
export function kilobits(before, after, counter) {
  const span = after.at - before?.at;
  return span > 0 ? (8 * (after[counter] - before[counter])) / span : undefined;
}

function readPath(report, entries) {
  const pair = selectedPair(report, entries);
  const local = report.get(pair?.localCandidateId);
  const remote = report.get(pair?.remoteCandidateId);
  return {
    localType: local && `${local.candidateType}, ${local.protocol}`,
    remoteAddress: remote && hostPort(remote),
    availableKbps: pair?.availableOutgoingBitrate / 1000,
  };
}

function selectedPair(report, entries) {
  const transport = entries.find((entry) => entry.type === "transport" && entry.selectedCandidatePairId);
  if (transport) return report.get(transport.selectedCandidatePairId);
  return entries.find((entry) => entry.type === "candidate-pair" && entry.nominated && entry.state === "succeeded");
}

function hostPort({ address, port }) {
  return address?.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function milliseconds(seconds) {
  return seconds === undefined ? undefined : seconds * 1000;
}
