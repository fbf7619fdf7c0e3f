"""What an authentic client can make aiortc do: packets that hold together get through, and no more state than a call needs.

aiortc follows lengths and ranges as they come, keeps state for every SSRC, stream and channel, and believes every BYE and NACK.
These names of aiortc are private; tests/transceiver/test_aiortc_names.py fails if a release changes them.
"""

from typing import Any

import aiortc.rtcrtpreceiver
from aiortc.rtcdtlstransport import RtpReceiver, RtpRouter, RtpSender
from aiortc.rtcsctptransport import RTCSctpTransport
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpRtpfbPacket, RtpPacket
from google_crc32c import value as crc32c
from pylibsrtp import Error as SrtpError
from pylibsrtp import Session as SrtpSession

from wire.errors import WireError
from wire.rtcp import is_rtcp
from wire.sctp import HEADER_BYTES, Chunk, ChunkType, gaps_of, parse_sctp_untrusted

# A browser sends one stream of audio and few of video; a receiver report has room for 31.
_MAX_SSRCS = 16
# Data channels that a session may have used at a time; each costs some kilobytes.
_MAX_STREAMS = 256
# Chunks beyond the next one that are due: more than fill the window of 1 MiB that we advertise.
_MAX_AHEAD = 1024
# Chunks of messages that are not complete; the longest message, 256 KiB, has about 220.
_MAX_HELD = 2048
_TSN_MODULO = 1 << 32
_HALF_OF_TSNS = 1 << 31
_U32_MAX = 0xFFFF_FFFF

SCTP_EXCESS = "sctp_excess"
SRTP_EXCESS = "srtp_excess"
SRTP_FORGED = "srtp_forged"


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
        if all(self._is_affordable(chunk) for chunk in parsed.chunks):
            return None
        return SCTP_EXCESS

    def _is_affordable(self, chunk: Chunk) -> bool:
        if chunk.kind == ChunkType.DATA:
            return self._takes_data(chunk.body)
        if chunk.kind == ChunkType.SACK:
            return self._was_sent(chunk.body)
        if chunk.kind == ChunkType.FORWARD_TSN:
            # Before INIT there is no TSN to go forward from.
            streams = {_u16(chunk.body, offset) for offset in range(4, len(chunk.body), 4)}
            return self._sctp._last_received_tsn is not None and self._has_room(streams)
        return True

    def _takes_data(self, body: bytes) -> bool:
        last = self._sctp._last_received_tsn
        if last is None:
            return False
        ahead = (_u32(body, 0) - last) % _TSN_MODULO
        if ahead >= _HALF_OF_TSNS:
            return True  # a duplicate, which aiortc only notes
        held = sum(len(stream.reassembly) for stream in self._sctp._inbound_streams.values())
        return ahead <= _MAX_AHEAD and held <= _MAX_HELD and self._has_room({_u16(body, 4)})

    def _has_room(self, streams: set[int]) -> bool:
        used = self._sctp._inbound_streams.keys() | self._sctp._data_channels.keys()
        return len(used | streams) <= _MAX_STREAMS

    def _was_sent(self, body: bytes) -> bool:
        # aiortc counts through every gap, and takes an acknowledgement of what is yet to be sent for one of all that is.
        outstanding = (self._sctp._local_tsn - 1 - _u32(body, 0)) % _TSN_MODULO
        gaps = gaps_of(body)
        return outstanding < _HALF_OF_TSNS and (not gaps or gaps[-1][1] <= outstanding)


class BoundedSrtp:
    """Stands in for an incoming SRTP session: libsrtp keeps state for each SSRC, and takes 1500 bytes."""

    def __init__(self, session: SrtpSession, observer: Any) -> None:
        self._session = session
        self._observer = observer
        self._ssrcs: set[bytes] = set()

    def unprotect(self, packet: bytes) -> bytes:
        """See pylibsrtp's Session."""
        return self._unprotect(packet, packet[8:12])

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """See pylibsrtp's Session."""
        return self._unprotect(packet, packet[4:8])

    def _unprotect(self, packet: bytes, ssrc: bytes) -> bytes:
        if ssrc not in self._ssrcs and len(self._ssrcs) >= _MAX_SSRCS:
            self._observer.count(SRTP_EXCESS)
            raise SrtpError("too many SSRCs")
        try:
            unprotect = self._session.unprotect_rtcp if is_rtcp(packet) else self._session.unprotect
            plain: bytes = unprotect(packet)
        except (SrtpError, ValueError) as error:  # ValueError: it is too long
            self._observer.count(SRTP_FORGED)
            raise SrtpError(str(error)) from None
        self._ssrcs.add(ssrc)  # only now: a forged packet must not take a place
        return plain


class BoundedRouter(RtpRouter):
    """Leads packets to aiortc's receivers and senders, with bounds on what they are made to do."""

    def route_rtp(self, packet: RtpPacket) -> RtpReceiver | None:
        """See the base class, which remembers every SSRC."""
        if packet.ssrc not in self.ssrc_table and len(self.ssrc_table) >= 2 * _MAX_SSRCS:
            return None
        return super().route_rtp(packet)

    def route_rtcp(self, packet: AnyRtcpPacket) -> set[RtpReceiver | RtpSender]:
        """Without BYE, which would stop a receiver for ever, and NACK, as one asks for up to 5,000 packets."""
        if isinstance(packet, (RtcpByePacket, RtcpRtpfbPacket)):
            return set()
        return super().route_rtcp(packet)


def _jitter(statistics: aiortc.rtcrtpreceiver.StreamStatistics) -> int:
    """As a receiver report can say it: timestamps that leap make it exceed 32 bits, and the report could not be written."""
    return min(statistics._jitter_q4 >> 4, _U32_MAX)


aiortc.rtcrtpreceiver.StreamStatistics.jitter = property(_jitter)  # type: ignore[assignment, method-assign]


def _u16(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 2], "big")


def _u32(body: bytes, offset: int) -> int:
    return int.from_bytes(body[offset : offset + 4], "big")
