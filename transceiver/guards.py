"""What an authentic client can make aiortc do: packets that hold together get through, and no more state than a call needs.

aiortc follows lengths and ranges as they come, keeps state for every SSRC, stream and channel, and believes every BYE and NACK.
These names of aiortc are private; tests/transceiver/test_aiortc_names.py fails if a release changes them.
"""

from aiortc import RTCRtpReceiver
from aiortc.rtcdtlstransport import RtpReceiver, RtpRouter, RtpSender
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtcsctptransport import RTCSctpTransport
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpRtpfbPacket, RtpPacket
from google_crc32c import value as crc32c

from wire.errors import WireError
from wire.sctp import HEADER_BYTES, Chunk, ChunkType, gaps_of, parse_sctp_untrusted

# aiortc writes one receiver report for all of them, and a report has room for 31.
_MAX_STOCK_SSRCS = 31
# Packets that one NACK gets again: a burst of loss in a video frame.
_MAX_RETRANSMITTED = 32
# Data channels that a session may have used at a time; each costs some kilobytes.
_MAX_STREAMS = 256
# Chunks beyond the next one that are due: more than fill the window of 1 MiB that we advertise.
_MAX_AHEAD = 1024
# Chunks of messages that are not complete; the longest message, 256 KiB, has about 220.
_MAX_HELD = 2048
_TSN_MODULO = 1 << 32
_HALF_OF_TSNS = 1 << 31
_U32_MAX = 0xFFFF_FFFF


class SctpGuard:
    """Decides which packets of a client reach aiortc's SCTP."""

    def __init__(self, sctp: RTCSctpTransport) -> None:
        self._sctp = sctp

    def refusal_untrusted(self, packet: bytes) -> str | None:
        """What to count a packet under that must not go on, or None."""
        try:
            parsed = parse_sctp_untrusted(packet)
        except WireError as error:
            return error.fault.value
        checksum = crc32c(packet[:8] + bytes(4) + packet[HEADER_BYTES:])
        if parsed.checksum != checksum:
            return "sctp_checksum"
        fits = all(self._is_affordable(chunk) for chunk in parsed.chunks) and self._has_room(parsed.chunks)
        return None if fits else "sctp_excess"

    def _is_affordable(self, chunk: Chunk) -> bool:
        last = self._sctp._last_received_tsn
        if chunk.kind == ChunkType.SACK:
            return self._was_sent(chunk.body)
        if chunk.kind == ChunkType.FORWARD_TSN:
            return last is not None  # before INIT there is no TSN to go forward from
        if chunk.kind != ChunkType.DATA:
            return True
        if last is None:
            return False
        ahead = (_u32(chunk.body, 0) - last) % _TSN_MODULO
        # In the other half are duplicates, which aiortc only notes.
        return ahead <= _MAX_AHEAD or ahead >= _HALF_OF_TSNS

    def _has_room(self, chunks: tuple[Chunk, ...]) -> bool:
        named: set[int] = set()
        for chunk in chunks:
            if chunk.kind == ChunkType.DATA:
                named.add(_u16(chunk.body, 4))
            elif chunk.kind == ChunkType.FORWARD_TSN:
                named.update(_u16(chunk.body, offset) for offset in range(4, len(chunk.body), 4))
        if not named:
            return True
        streams = self._sctp._inbound_streams
        if len(streams.keys() | self._sctp._data_channels.keys() | named) > _MAX_STREAMS:
            return False
        return sum(len(stream.reassembly) for stream in streams.values()) <= _MAX_HELD

    def _was_sent(self, body: bytes) -> bool:
        # aiortc counts through every gap, and takes an acknowledgement of what is yet to be sent for one of all that is.
        outstanding = (self._sctp._local_tsn - 1 - _u32(body, 0)) % _TSN_MODULO
        gaps = gaps_of(body)
        return outstanding < _HALF_OF_TSNS and (not gaps or gaps[-1][1] <= outstanding)


class BoundedRouter(RtpRouter):
    """Leads packets to aiortc's receivers and senders, with bounds on what they are made to do."""

    def __init__(self) -> None:
        super().__init__()
        self._ssrcs: set[int] = set()

    def route_rtp(self, packet: RtpPacket) -> RtpReceiver | None:
        """See the base class, which remembers every SSRC, as receivers do."""
        if packet.ssrc not in self._ssrcs:
            if len(self._ssrcs) >= _MAX_STOCK_SSRCS:
                return None
            self._ssrcs.add(packet.ssrc)
        receiver = super().route_rtp(packet)
        if not packet.payload and isinstance(receiver, RTCRtpReceiver) and receiver.track.kind == "audio":
            return None  # an empty packet is the end of all for FFmpeg's decoders
        return receiver

    def route_rtcp(self, packet: AnyRtcpPacket) -> set[RtpReceiver | RtpSender]:
        """Without BYE, which would stop a receiver for ever; of a NACK, which may ask for 5,000 packets, the first few."""
        if isinstance(packet, RtcpByePacket):
            return set()
        if isinstance(packet, RtcpRtpfbPacket):
            packet.lost = list(dict.fromkeys(packet.lost))[:_MAX_RETRANSMITTED]
        return super().route_rtcp(packet)


def _jitter(statistics: StreamStatistics) -> int:
    """As a receiver report can say it: timestamps that leap make it exceed 32 bits, and the report could not be written."""
    return min(statistics._jitter_q4 >> 4, _U32_MAX)


StreamStatistics.jitter = property(_jitter)  # type: ignore[assignment, method-assign]


def _u16(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 2], "big")


def _u32(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 4], "big")
