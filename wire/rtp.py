"""RTP (RFC 3550 section 5) behind SRTP: a bounded reader, header extensions (RFC 8285) on demand, a header writer."""

from struct import Struct
from typing import NamedTuple

from wire.errors import WireError, WireFault

# https://www.rfc-editor.org/rfc/rfc3550#section-5.1
# version 2 bits, padding 1, extension 1, CSRC count 4 | marker 1, payload type 7 | sequence number 2 | timestamp 4 | SSRC 4
_HEADER = Struct("!BBHII")
# https://www.rfc-editor.org/rfc/rfc3550#section-5.3.1: profile 2 | length of the data in words of 4 bytes 2
_EXTENSION = Struct("!HH")
_CSRCS = tuple(Struct(f"!{count}I") for count in range(16))

HEADER_BYTES = _HEADER.size

_VERSION = 0x80
_VERSION_MASK = 0xC0
_PADDING = 0x20
_EXTENDED = 0x10
_CSRC_COUNT_MASK = 0x0F
_MARKER = 0x80
_PAYLOAD_TYPE_MASK = 0x7F

# https://www.rfc-editor.org/rfc/rfc8285#section-4.2
_ONE_BYTE_PROFILE = 0xBEDE
_ONE_BYTE_RESERVED = (0, 15)
# https://www.rfc-editor.org/rfc/rfc8285#section-4.3: the last 4 bits are the application's
_TWO_BYTE_PROFILE = 0x1000
_TWO_BYTE_PROFILE_MASK = 0xFFF0


class RtpPacket(NamedTuple):
    """A well-formed packet. ``payload`` is without padding, and empty where there was nothing else.

    ``extension_profile`` and ``extension_data`` are the header extension as it came (0 and empty without one):
    ``find_extension`` reads them.
    """

    payload_type: int
    marker: bool
    sequence_number: int
    timestamp: int
    ssrc: int
    payload: bytes
    csrcs: tuple[int, ...] = ()
    extension_profile: int = 0
    extension_data: bytes = b""


def parse_rtp_untrusted(packet: bytes) -> RtpPacket:
    """Read one RTP packet that fills ``packet``. Raises WireError (RTP_MALFORMED).

    Refused: another version, and CSRCs, a header extension or padding that the packet is too short for.
    """
    if len(packet) < HEADER_BYTES:
        raise WireError(WireFault.RTP_MALFORMED, f"{len(packet)} bytes are too few for an RTP header")
    first, second, sequence_number, timestamp, ssrc = _HEADER.unpack_from(packet)
    csrcs: tuple[int, ...] = ()
    extension_profile, extension_data = 0, b""
    offset, end = HEADER_BYTES, len(packet)
    if first != _VERSION:
        if first & _VERSION_MASK != _VERSION:
            raise WireError(WireFault.RTP_MALFORMED, f"RTP version is {first >> 6}, not 2")
        if first & _CSRC_COUNT_MASK:
            csrcs = _parse_csrcs(packet, first & _CSRC_COUNT_MASK)
            offset += 4 * len(csrcs)
        if first & _EXTENDED:
            extension_profile, extension_data = _parse_extension(packet, offset)
            offset += _EXTENSION.size + len(extension_data)
        if first & _PADDING:
            # https://www.rfc-editor.org/rfc/rfc3550#section-5.1: the last byte counts itself
            padding_bytes = packet[-1]
            if not 0 < padding_bytes <= end - offset:
                raise WireError(
                    WireFault.RTP_MALFORMED, f"{padding_bytes} bytes of padding in {end - offset} of payload"
                )
            end -= padding_bytes
    return RtpPacket(
        second & _PAYLOAD_TYPE_MASK,
        second >= _MARKER,
        sequence_number,
        timestamp,
        ssrc,
        packet[offset:end],
        csrcs,
        extension_profile,
        extension_data,
    )


def _parse_csrcs(packet: bytes, count: int) -> tuple[int, ...]:
    if HEADER_BYTES + 4 * count > len(packet):
        raise WireError(WireFault.RTP_MALFORMED, f"{count} CSRCs overrun the packet")
    return _CSRCS[count].unpack_from(packet, HEADER_BYTES)


def _parse_extension(packet: bytes, offset: int) -> tuple[int, bytes]:
    start = offset + _EXTENSION.size
    if start > len(packet):
        raise WireError(WireFault.RTP_MALFORMED, "the header extension overruns the packet")
    profile, words = _EXTENSION.unpack_from(packet, offset)
    if start + 4 * words > len(packet):
        raise WireError(WireFault.RTP_MALFORMED, f"a header extension of {words} words overruns the packet")
    return profile, packet[start : start + 4 * words]


def find_extension(profile: int, data: bytes, element_id: int) -> bytes | None:
    """The first element of a header extension that has this id (RFC 8285), or None.

    Never raises: an element that overruns ends the list, as the reserved ids of the one-byte form do, for the
    audio of a packet is good whatever stands in its header extension.
    """
    if profile == _ONE_BYTE_PROFILE:
        return _find_one_byte(data, element_id)
    if profile & _TWO_BYTE_PROFILE_MASK == _TWO_BYTE_PROFILE:
        return _find_two_byte(data, element_id)
    return None


def _find_one_byte(data: bytes, element_id: int) -> bytes | None:
    # https://www.rfc-editor.org/rfc/rfc8285#section-4.2: id 4 bits | length less one 4 bits, then the value
    offset, end = 0, len(data)
    while offset < end:
        found, following = data[offset] >> 4, offset + 2 + (data[offset] & 0x0F)
        if data[offset] == 0:  # padding: one byte
            offset += 1
        elif found in _ONE_BYTE_RESERVED or following > end:
            return None
        elif found == element_id:
            return data[offset + 1 : following]
        else:
            offset = following
    return None


def _find_two_byte(data: bytes, element_id: int) -> bytes | None:
    # https://www.rfc-editor.org/rfc/rfc8285#section-4.3: id 1 | length 1, then the value
    offset, end = 0, len(data)
    while offset + 1 < end:
        if data[offset] == 0:
            offset += 1
            continue
        following = offset + 2 + data[offset + 1]
        if following > end:
            return None
        if data[offset] == element_id:
            return data[offset + 2 : following]
        offset = following
    return None


def write_rtp_header(
    payload_type: int, sequence_number: int, timestamp: int, ssrc: int, *, marker: bool = False
) -> bytes:
    """The 12 bytes in front of a payload without CSRCs, header extension and padding."""
    second = payload_type | _MARKER if marker else payload_type
    return _HEADER.pack(_VERSION, second, sequence_number, timestamp, ssrc)
