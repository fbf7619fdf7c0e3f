"""SCTP (RFC 9260) inside DTLS (RFC 8261): a bounded reader that follows every length before another stack does."""

from collections import Counter
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from wire.errors import WireError, WireFault

# https://www.rfc-editor.org/rfc/rfc9260#section-3.1: source port 2 | destination port 2 | verification tag 4
_HEADER = Struct("!HHI")
# The checksum is little-endian (RFC 9260 appendix A).
_CHECKSUM = Struct("<I")
# https://www.rfc-editor.org/rfc/rfc9260#section-3.2: type 1 | flags 1 | length with these four bytes 2, padded to 4
_CHUNK = Struct("!BBH")
# https://www.rfc-editor.org/rfc/rfc9260#section-3.2.1: type 2 | length with these four bytes 2, padded to 4
_PARAMETER = Struct("!HH")
# https://www.rfc-editor.org/rfc/rfc9260#section-3.3.4
# cumulative TSN 4 | window 4 | number of gaps 2 | number of duplicates 2, then both lists, of 4 bytes each
_SACK = Struct("!IIHH")
_GAP = Struct("!HH")

HEADER_BYTES = _HEADER.size + _CHECKSUM.size

# A full packet of the shortest messages has about 50 chunks of data.
MAX_CHUNKS = 128
# What is no data comes alone or by twos; SACK and FORWARD TSN make the receiver look through its queues.
MAX_CONTROL_CHUNKS = 8
MAX_PARAMETERS = 32


class ChunkType(IntEnum):
    """Types of chunks that are looked into (RFC 9260 section 3.2, RFC 6525, RFC 3758)."""

    DATA = 0
    INIT = 1
    INIT_ACK = 2
    SACK = 3
    HEARTBEAT = 4
    HEARTBEAT_ACK = 5
    ABORT = 6
    SHUTDOWN = 7
    ERROR = 9
    RECONFIGURATION = 130
    FORWARD_TSN = 192


# Bytes in front of the parameters of a chunk, for those that have parameters.
_FIXED_BYTES = {
    ChunkType.INIT: 16,
    ChunkType.INIT_ACK: 16,
    ChunkType.HEARTBEAT: 0,
    ChunkType.HEARTBEAT_ACK: 0,
    ChunkType.ABORT: 0,
    ChunkType.ERROR: 0,
    ChunkType.RECONFIGURATION: 0,
}
_DATA_HEADER_BYTES = 12
_ONCE_A_PACKET = (ChunkType.SACK, ChunkType.FORWARD_TSN)


class Chunk(NamedTuple):
    """``body`` is what follows type, flags and length, without padding."""

    kind: int
    flags: int
    body: bytes


class SctpPacket(NamedTuple):
    """``checksum`` as it came: it is not compared here."""

    verification_tag: int
    checksum: int
    chunks: tuple[Chunk, ...]


def parse_sctp_untrusted(packet: bytes) -> SctpPacket:
    """Read one SCTP packet that fills ``packet``. Raises WireError (SCTP_MALFORMED).

    Refused: no chunk at all, chunks and parameters that overrun or are shorter than their headers, more of them than
    the bounds above, DATA without data, and SACKs whose gaps are not in order. Types that are not known are let through.
    """
    if len(packet) < HEADER_BYTES + _CHUNK.size:
        raise WireError(WireFault.SCTP_MALFORMED, f"{len(packet)} bytes are too few for SCTP")
    _, _, verification_tag = _HEADER.unpack_from(packet)
    (checksum,) = _CHECKSUM.unpack_from(packet, _HEADER.size)
    chunks = _parse_chunks(packet)
    _check_numbers(chunks)
    for chunk in chunks:
        _check(chunk)
    return SctpPacket(verification_tag, checksum, chunks)


def _parse_chunks(packet: bytes) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    offset = HEADER_BYTES
    # Up to three bytes of padding behind the last chunk may be missing.
    while offset < len(packet):
        if len(chunks) == MAX_CHUNKS:
            raise WireError(WireFault.SCTP_MALFORMED, f"more than {MAX_CHUNKS} chunks")
        if offset + _CHUNK.size > len(packet):
            raise WireError(WireFault.SCTP_MALFORMED, f"{len(packet) - offset} bytes are too few for a chunk")
        kind, flags, length = _CHUNK.unpack_from(packet, offset)
        if length < _CHUNK.size or offset + length > len(packet):
            raise WireError(WireFault.SCTP_MALFORMED, f"chunk of type {kind} has length {length}")
        chunks.append(Chunk(kind, flags, packet[offset + _CHUNK.size : offset + length]))
        offset += length + 3 & ~3
    return tuple(chunks)


def _check_numbers(chunks: tuple[Chunk, ...]) -> None:
    kinds = Counter(chunk.kind for chunk in chunks)
    controls = len(chunks) - kinds[ChunkType.DATA]
    if controls > MAX_CONTROL_CHUNKS or any(kinds[kind] > 1 for kind in _ONCE_A_PACKET):
        raise WireError(WireFault.SCTP_MALFORMED, f"{controls} control chunks in one packet")
    # https://www.rfc-editor.org/rfc/rfc9260#section-6.10
    if kinds[ChunkType.INIT] and len(chunks) > 1:
        raise WireError(WireFault.SCTP_MALFORMED, "INIT is bundled with other chunks")


def _check(chunk: Chunk) -> None:
    length = len(chunk.body)
    if chunk.kind == ChunkType.DATA:
        if length <= _DATA_HEADER_BYTES:
            raise WireError(WireFault.SCTP_MALFORMED, "DATA without data (RFC 9260 section 6.2)")
    elif chunk.kind == ChunkType.SACK:
        _check_sack(chunk.body)
    elif chunk.kind == ChunkType.FORWARD_TSN:
        # https://www.rfc-editor.org/rfc/rfc3758#section-3.2: the new TSN, then stream and sequence number of each
        if not length or length % 4:
            raise WireError(WireFault.SCTP_MALFORMED, f"FORWARD TSN of {length} bytes")
    elif chunk.kind == ChunkType.SHUTDOWN:
        if length != 4:
            raise WireError(WireFault.SCTP_MALFORMED, f"SHUTDOWN of {length} bytes")
    elif chunk.kind in _FIXED_BYTES:
        _check_parameters(chunk.body, _FIXED_BYTES[ChunkType(chunk.kind)])


def _check_sack(body: bytes) -> None:
    if len(body) < _SACK.size:
        raise WireError(WireFault.SCTP_MALFORMED, f"SACK of {len(body)} bytes")
    if _SACK.size + 4 * sum(_SACK.unpack_from(body)[2:]) != len(body):
        raise WireError(
            WireFault.SCTP_MALFORMED, f"gaps and duplicates do not fill a SACK of {len(body)} bytes"
        )
    previous_end = 0
    for start, end in gaps_of(body):
        if not previous_end < start <= end:
            raise WireError(WireFault.SCTP_MALFORMED, f"gap from {start} to {end} behind {previous_end}")
        previous_end = end


def gaps_of(sack: bytes) -> list[tuple[int, int]]:
    """(first, last) of each block of a checked SACK's body, as offsets from its cumulative TSN."""
    number = _SACK.unpack_from(sack)[2]
    return list(_GAP.iter_unpack(sack[_SACK.size : _SACK.size + number * _GAP.size]))


def _check_parameters(body: bytes, offset: int) -> None:
    if len(body) < offset:
        raise WireError(WireFault.SCTP_MALFORMED, f"chunk of {len(body)} bytes, which needs {offset}")
    for _ in range(MAX_PARAMETERS):
        if offset >= len(body):
            return
        if offset + _PARAMETER.size > len(body):
            raise WireError(WireFault.SCTP_MALFORMED, "parameter is cut short")
        kind, length = _PARAMETER.unpack_from(body, offset)
        if length < _PARAMETER.size or offset + length > len(body):
            raise WireError(WireFault.SCTP_MALFORMED, f"parameter {kind:#06x} has length {length}")
        offset += length + 3 & ~3
    if offset < len(body):
        raise WireError(WireFault.SCTP_MALFORMED, f"more than {MAX_PARAMETERS} parameters")
