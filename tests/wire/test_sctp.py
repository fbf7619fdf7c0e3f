"""SCTP: every length that a sender can get wrong, and aiortc's own reader behind ours."""

from struct import pack

import pytest
from aiortc.rtcsctptransport import (
    DataChunk,
    ForwardTsnChunk,
    HeartbeatChunk,
    InitChunk,
    ReconfigChunk,
    SackChunk,
    parse_packet,
    serialize_packet,
)
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.network import cut_short, fault_of, one_byte_flipped
from wire.errors import WireFault
from wire.sctp import (
    MAX_CHUNKS,
    MAX_CONTROL_CHUNKS,
    MAX_PARAMETERS,
    Chunk,
    ChunkType,
    gaps_of,
    parse_sctp_untrusted,
)

HEADER = bytes.fromhex("1388 1388 0000002a 04030201")


def chunk(kind: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    return pack("!BBH", kind, 3, 4 + len(body) if length is None else length) + body + bytes(-len(body) % 4)


def data(user_data: bytes = b"x") -> bytes:
    return chunk(ChunkType.DATA, pack("!IHHI", 1, 2, 3, 51) + user_data)


def sack(*gaps: tuple[int, int], duplicates: int = 0) -> bytes:
    lists = b"".join(pack("!HH", *gap) for gap in gaps) + bytes(4 * duplicates)
    return chunk(ChunkType.SACK, pack("!IIHH", 7, 1000, len(gaps), duplicates) + lists)


HEARTBEAT_ACK = chunk(ChunkType.HEARTBEAT_ACK, bytes.fromhex("0001000561 000000"))
INIT = chunk(ChunkType.INIT, bytes(16) + bytes.fromhex("c0000004 80080006 82c0"))


def test_packet_is_read() -> None:
    parsed = parse_sctp_untrusted(HEADER + data(b"abc") + sack((2, 3), (5, 5), duplicates=1))
    assert (parsed.verification_tag, parsed.checksum) == (42, 0x01020304)
    assert parsed.chunks[0] == Chunk(ChunkType.DATA, 3, pack("!IHHI", 1, 2, 3, 51) + b"abc")
    assert parsed.chunks[1].kind == ChunkType.SACK
    assert gaps_of(parsed.chunks[1].body) == [(2, 3), (5, 5)]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(INIT, id="INIT with parameters, the last without its padding"),
        pytest.param(HEARTBEAT_ACK, id="parameter with padding"),
        pytest.param(data() * MAX_CHUNKS, id="as much data as may be"),
        pytest.param(chunk(11) * MAX_CONTROL_CHUNKS, id="as many others as may be"),
        pytest.param(data(b"abc")[:-1], id="padding of the last chunk is missing"),
        pytest.param(chunk(0x3F, b"\xff" * 9), id="type that is not known"),
        pytest.param(chunk(4, bytes.fromhex("00010004") * MAX_PARAMETERS), id="as many parameters as may be"),
        pytest.param(sack(), id="SACK without gaps"),
        pytest.param(chunk(ChunkType.FORWARD_TSN, bytes(12)), id="FORWARD TSN of two streams"),
    ],
)
def test_packet_that_holds_together_is_read(chunks: bytes) -> None:
    assert fault_of(parse_sctp_untrusted, HEADER + chunks) is None


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"", id="no chunk"),
        pytest.param(chunk(11) + b"\x0b\0\0", id="chunk header cut short"),
        pytest.param(chunk(11, length=0), id="chunk of length 0"),
        pytest.param(chunk(11, length=3), id="chunk shorter than its header"),
        pytest.param(chunk(11, bytes(4), length=9), id="chunk overruns"),
        pytest.param(data() * (MAX_CHUNKS + 1), id="too many chunks"),
        pytest.param(chunk(11) * (MAX_CONTROL_CHUNKS + 1), id="too many that are no data"),
        pytest.param(INIT + chunk(11), id="INIT with another"),
        pytest.param(sack() * 2, id="two SACKs"),
        pytest.param(chunk(ChunkType.FORWARD_TSN, bytes(4)) * 2, id="two FORWARD TSNs"),
        pytest.param(data(b""), id="DATA without data"),
        pytest.param(chunk(ChunkType.DATA, bytes(11)), id="DATA cut short"),
        pytest.param(chunk(ChunkType.SACK, bytes(11)), id="SACK cut short"),
        pytest.param(chunk(ChunkType.SACK, pack("!IIHH", 7, 1, 1, 0)), id="SACK without its gap"),
        pytest.param(sack()[:2] + b"\0\x14" + sack()[4:] + bytes(4), id="SACK with more than it counts"),
        pytest.param(sack((0, 0)), id="gap of the cumulative TSN itself"),
        pytest.param(sack((9, 1)), id="gap backwards"),
        pytest.param(sack((1, 5), (5, 6)), id="gaps overlap"),
        pytest.param(sack((1, 65535), (1, 65535)), id="gaps repeated"),
        pytest.param(chunk(ChunkType.FORWARD_TSN), id="FORWARD TSN of nothing"),
        pytest.param(chunk(ChunkType.FORWARD_TSN, bytes(6)), id="FORWARD TSN with half a stream"),
        pytest.param(chunk(ChunkType.SHUTDOWN), id="SHUTDOWN without TSN"),
        pytest.param(chunk(ChunkType.INIT, bytes(15)), id="INIT cut short"),
        pytest.param(
            chunk(ChunkType.INIT, bytes(16) + bytes.fromhex("80080000")), id="parameter of length 0"
        ),
        pytest.param(chunk(ChunkType.HEARTBEAT, bytes.fromhex("00010003")), id="parameter of length 3"),
        pytest.param(chunk(ChunkType.ERROR, bytes.fromhex("00010009 00000000")), id="parameter overruns"),
        pytest.param(chunk(ChunkType.ABORT, bytes.fromhex("0001")), id="parameter header cut short"),
        pytest.param(
            chunk(ChunkType.RECONFIGURATION, bytes.fromhex("00010004") * (MAX_PARAMETERS + 1)),
            id="too many parameters",
        ),
    ],
)
def test_lie_is_refused(chunks: bytes) -> None:
    assert fault_of(parse_sctp_untrusted, HEADER + chunks) is WireFault.SCTP_MALFORMED


def test_everything_that_aiortc_writes_is_read() -> None:
    data_chunk = DataChunk(flags=3, body=pack("!IHHI", 1, 2, 3, 51) + b"hello")
    heartbeat = HeartbeatChunk(body=bytes.fromhex("0001000561 000000"))
    forward = ForwardTsnChunk(body=bytes(12))
    init = InitChunk(body=bytes(16) + bytes.fromhex("c0000004 80080006 82c0"))
    reconfiguration = ReconfigChunk(body=pack("!HHIIIH", 13, 18, 1, 2, 3, 4))
    received = SackChunk(body=pack("!IIHHHHI", 1, 2, 1, 1, 2, 3, 9))
    for written in (data_chunk, heartbeat, forward, init, reconfiguration, received):
        assert fault_of(parse_sctp_untrusted, serialize_packet(5000, 5000, 1, written)) is None


def after_ours(packet: bytes) -> None:
    """What we let through, aiortc reads to its end; with its checksum mended."""
    assert fault_of(parse_sctp_untrusted, packet) in {None, WireFault.SCTP_MALFORMED}
    if fault_of(parse_sctp_untrusted, packet) is None:
        checksum = crc32c(packet[:8] + bytes(4) + packet[12:])
        parse_packet(packet[:8] + pack("<I", checksum) + packet[12:])


CHUNKS = st.builds(
    lambda kind, body, length: chunk(kind, body, length=length),
    st.sampled_from([*ChunkType, 10, 11, 14, 99]),
    st.binary(max_size=40),
    st.none() | st.integers(0, 50),
)
SAMPLE = HEADER + data(b"abc") + sack((2, 3)) + HEARTBEAT_ACK + chunk(ChunkType.FORWARD_TSN, bytes(8))


@given(
    st.binary(max_size=120)
    | st.lists(CHUNKS, max_size=4).map(lambda chunks: HEADER + b"".join(chunks))
    | one_byte_flipped(SAMPLE)
    | cut_short(SAMPLE)
)
def test_any_bytes_raise_only_sctp_malformed_and_aiortc_reads_the_rest(packet: bytes) -> None:
    after_ours(packet)
