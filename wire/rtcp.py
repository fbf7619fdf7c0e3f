"""RTCP (RFC 3550 section 6, reduced size as of RFC 5506) behind SRTCP: a bounded reader of reports, and four writers."""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from wire.errors import WireError, WireFault

# https://www.rfc-editor.org/rfc/rfc3550#section-6.4.1
# version 2 bits, padding 1, count 5 | packet type 1 | words of 4 bytes behind this header 2
_HEADER = Struct("!BBH")
_SSRC = Struct("!I")
# SSRC 4 | NTP timestamp 8 | RTP timestamp 4 | packets 4 | octets 4
_SENDER = Struct("!IQIII")
# SSRC 4 | fraction lost 1, packets lost 3 | highest sequence number 4 | jitter 4 | last SR 4 | delay since last SR 4
_REPORT = Struct("!IIIIII")

_VERSION = 0x80
_VERSION_MASK = 0xC0
_PADDING = 0x20
_COUNT_MASK = 0x1F
_SENDER_REPORT = 200
_RECEIVER_REPORT = 201
_SOURCE_DESCRIPTION = 202
_GOODBYE = 203
_CNAME = 1

_LOST_BITS = 24
_LOST_MASK = (1 << _LOST_BITS) - 1
MAX_PACKETS_LOST = (1 << _LOST_BITS - 1) - 1
MIN_PACKETS_LOST = -MAX_PACKETS_LOST - 1
# The count of a packet has 5 bits.
MAX_COUNT = _COUNT_MASK

# A compound of Chromium or Firefox has 1 to 4; the bound keeps a datagram of empty packets cheap.
MAX_PACKETS = 32

# https://www.rfc-editor.org/rfc/rfc5761#section-4: payload types 64 to 95, behind the bit that RTP has its marker in
_FIRST_RTCP_TYPE, _LAST_RTCP_TYPE = 192, 223


class ReportBlock(NamedTuple):
    """What a receiver says of one source (RFC 3550 section 6.4.1).

    ``fraction_lost`` is in 1/256; ``packets_lost`` is negative where duplicates came; ``highest_sequence`` is
    extended by its cycles; ``jitter`` is in units of the RTP clock; ``last_sender_report`` is the middle 32 bits of an
    NTP timestamp, 0 if there was no report; ``delay_since_last`` is in 1/65536 s.
    """

    ssrc: int
    fraction_lost: int
    packets_lost: int
    highest_sequence: int
    jitter: int
    last_sender_report: int
    delay_since_last: int


class SenderReport(NamedTuple):
    """What a sender says of itself, and of those that it receives (RFC 3550 section 6.4.1)."""

    ssrc: int
    ntp_timestamp: int
    rtp_timestamp: int
    packet_count: int
    octet_count: int
    reports: tuple[ReportBlock, ...] = ()


class ReceiverReport(NamedTuple):
    """What one that does not send says of those that it receives (RFC 3550 section 6.4.2)."""

    ssrc: int
    reports: tuple[ReportBlock, ...] = ()


class Bye(NamedTuple):
    """Sources that end (RFC 3550 section 6.6)."""

    ssrcs: tuple[int, ...]


RtcpPacket = SenderReport | ReceiverReport | Bye


def is_rtcp(packet: bytes) -> bool:
    """Whether what RFC 7983 calls RTP is RTCP (RFC 5761 section 4); either, secured or not."""
    return len(packet) > 1 and _FIRST_RTCP_TYPE <= packet[1] <= _LAST_RTCP_TYPE


def parse_rtcp_untrusted(packet: bytes) -> list[RtcpPacket]:
    """The reports and goodbyes of a compound packet that fills ``packet``. Raises WireError (RTCP_MALFORMED).

    Packets of other types are stepped over, whatever is in them. Refused as a whole: nothing at all, another version,
    a packet that overruns, wrong padding, fewer report blocks or sources than counted, more than MAX_PACKETS.
    """
    packets: list[RtcpPacket] = []
    offset = 0
    for _ in range(MAX_PACKETS):
        if offset + _HEADER.size > len(packet):
            raise WireError(WireFault.RTCP_MALFORMED, f"{len(packet) - offset} bytes are too few for RTCP")
        first, packet_type, words = _HEADER.unpack_from(packet, offset)
        start = offset + _HEADER.size
        offset = start + 4 * words
        if first & _VERSION_MASK != _VERSION:
            raise WireError(WireFault.RTCP_MALFORMED, f"RTCP version is {first >> 6}, not 2")
        if offset > len(packet):
            raise WireError(WireFault.RTCP_MALFORMED, f"a packet of {words} words overruns the compound")
        body = packet[start:offset]
        if first & _PADDING:
            body = _without_padding(body)
        if packet_type == _SENDER_REPORT:
            packets.append(_parse_sender_report(body, first & _COUNT_MASK))
        elif packet_type == _RECEIVER_REPORT:
            packets.append(_parse_receiver_report(body, first & _COUNT_MASK))
        elif packet_type == _GOODBYE:
            packets.append(_parse_bye(body, first & _COUNT_MASK))
        if offset == len(packet):
            return packets
    raise WireError(WireFault.RTCP_MALFORMED, f"more than {MAX_PACKETS} packets in a compound")


def _without_padding(body: bytes) -> bytes:
    # https://www.rfc-editor.org/rfc/rfc3550#section-6.4.1: the last byte counts itself
    if not body or not 0 < body[-1] <= len(body):
        raise WireError(WireFault.RTCP_MALFORMED, f"padding does not fit {len(body)} bytes")
    return body[: -body[-1]]


def _parse_sender_report(body: bytes, count: int) -> SenderReport:
    if len(body) < _SENDER.size:
        raise WireError(WireFault.RTCP_MALFORMED, f"{len(body)} bytes are too few for a sender report")
    ssrc, ntp_timestamp, rtp_timestamp, packets, octets = _SENDER.unpack_from(body)
    reports = _parse_reports(body, _SENDER.size, count)
    return SenderReport(ssrc, ntp_timestamp, rtp_timestamp, packets, octets, reports)


def _parse_receiver_report(body: bytes, count: int) -> ReceiverReport:
    if len(body) < _SSRC.size:
        raise WireError(WireFault.RTCP_MALFORMED, f"{len(body)} bytes are too few for a receiver report")
    (ssrc,) = _SSRC.unpack_from(body)
    return ReceiverReport(ssrc, _parse_reports(body, _SSRC.size, count))


def _parse_reports(body: bytes, offset: int, count: int) -> tuple[ReportBlock, ...]:
    # What follows the blocks is an extension of some profile (RFC 3550 section 6.4.3).
    if offset + count * _REPORT.size > len(body):
        raise WireError(WireFault.RTCP_MALFORMED, f"{count} report blocks overrun their packet")
    return tuple(_parse_report(body, offset + index * _REPORT.size) for index in range(count))


def _parse_report(body: bytes, offset: int) -> ReportBlock:
    ssrc, losses, highest_sequence, jitter, last, delay = _REPORT.unpack_from(body, offset)
    packets_lost = losses & _LOST_MASK
    if packets_lost > MAX_PACKETS_LOST:
        packets_lost -= 1 << _LOST_BITS
    return ReportBlock(ssrc, losses >> _LOST_BITS, packets_lost, highest_sequence, jitter, last, delay)


def _parse_bye(body: bytes, count: int) -> Bye:
    # What follows the sources is the reason for leaving.
    if count * _SSRC.size > len(body):
        raise WireError(WireFault.RTCP_MALFORMED, f"{count} sources overrun their goodbye")
    return Bye(tuple(ssrc for (ssrc,) in _SSRC.iter_unpack(body[: count * _SSRC.size])))


def write_sender_report(
    ssrc: int,
    ntp_timestamp: int,
    rtp_timestamp: int,
    packet_count: int,
    octet_count: int,
    reports: Sequence[ReportBlock] = (),
) -> bytes:
    """A sender report (RFC 3550 section 6.4.1); the two counts wrap at 32 bits."""
    sender = _SENDER.pack(
        ssrc, ntp_timestamp, rtp_timestamp, packet_count & 0xFFFFFFFF, octet_count & 0xFFFFFFFF
    )
    return _write(_SENDER_REPORT, len(reports), sender + b"".join(map(_write_report, reports)))


def write_receiver_report(ssrc: int, reports: Sequence[ReportBlock] = ()) -> bytes:
    """A receiver report (RFC 3550 section 6.4.2)."""
    return _write(_RECEIVER_REPORT, len(reports), _SSRC.pack(ssrc) + b"".join(map(_write_report, reports)))


def write_sdes_cname(ssrc: int, cname: str) -> bytes:
    """A source description with the CNAME alone, up to 255 bytes of it (RFC 3550 section 6.5)."""
    value = cname.encode()
    chunk = _SSRC.pack(ssrc) + bytes((_CNAME, len(value))) + value
    # The list of items ends with one to four zeros, at a word's end.
    return _write(_SOURCE_DESCRIPTION, 1, chunk + bytes(4 - len(chunk) % 4))


def write_bye(ssrcs: Sequence[int]) -> bytes:
    """A goodbye without a reason (RFC 3550 section 6.6)."""
    return _write(_GOODBYE, len(ssrcs), b"".join(map(_SSRC.pack, ssrcs)))


def _write_report(report: ReportBlock) -> bytes:
    # https://www.rfc-editor.org/rfc/rfc3550#appendix-A.3: the loss stays at its bounds
    packets_lost = max(MIN_PACKETS_LOST, min(report.packets_lost, MAX_PACKETS_LOST)) & _LOST_MASK
    losses = report.fraction_lost << _LOST_BITS | packets_lost
    return _REPORT.pack(
        report.ssrc,
        losses,
        report.highest_sequence,
        report.jitter,
        report.last_sender_report,
        report.delay_since_last,
    )


def _write(packet_type: int, count: int, body: bytes) -> bytes:
    if count > MAX_COUNT:
        raise ValueError(f"{count} entries in one RTCP packet; at most {MAX_COUNT}: write several packets")
    return _HEADER.pack(_VERSION | count, packet_type, len(body) // 4) + body
