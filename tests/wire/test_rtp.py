"""RTP: an independent implementation, header extensions, and everything that a sender can get wrong."""

from contextlib import suppress

import aiortc.rtp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.network import cut_short, fault_of, one_byte_flipped
from wire.errors import WireFault
from wire.rtp import HEADER_BYTES, RtpPacket, find_extension, parse_rtp_untrusted, write_rtp_header

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
PAYLOAD_TYPES = st.integers(0, 127)
ONE_BYTE, TWO_BYTE = 0xBEDE, 0x1000

HEADER = bytes.fromhex("806f 0102 03040506 0708090a")  # version 2, payload type 111
OPUS = bytes.fromhex("f8fffe")
AUDIO_LEVEL = bytes.fromhex("bede 0001 10e2 0000")  # id 1 of one byte: voice, -98 dBov
EVERYTHING = (
    bytes.fromhex("b2ef 0102 03040506 0708090a")  # padding, extension, 2 CSRCs, marker
    + bytes.fromhex("00000001 ffffffff")
    + AUDIO_LEVEL
    + OPUS
    + b"\0\0\3"
)


def with_first_byte(first: int, rest: bytes) -> bytes:
    return bytes((first,)) + HEADER[1:] + rest


@pytest.mark.parametrize(
    ("packet", "parsed"),
    [
        pytest.param(HEADER + OPUS, RtpPacket(111, False, 0x102, 0x3040506, 0x708090A, OPUS), id="plain"),
        pytest.param(HEADER, RtpPacket(111, False, 0x102, 0x3040506, 0x708090A, b""), id="no payload"),
        pytest.param(
            EVERYTHING,
            RtpPacket(
                111, True, 0x102, 0x3040506, 0x708090A, OPUS, (1, 0xFFFFFFFF), ONE_BYTE, AUDIO_LEVEL[4:]
            ),
            id="marker, padding, extension, CSRCs",
        ),
        pytest.param(
            with_first_byte(0xA0, bytes(254) + b"\xff"),
            RtpPacket(111, False, 0x102, 0x3040506, 0x708090A, b""),
            id="padding alone, as a bandwidth probe",
        ),
        pytest.param(
            with_first_byte(0x90, bytes.fromhex("abcd0000") + OPUS),
            RtpPacket(111, False, 0x102, 0x3040506, 0x708090A, OPUS, (), 0xABCD, b""),
            id="an extension of no words, of an unknown profile",
        ),
        pytest.param(
            b"\x80\xff" + b"\xff" * 10,
            RtpPacket(127, True, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, b""),
            id="highest values",
        ),
    ],
)
def test_packet_is_read(packet: bytes, parsed: RtpPacket) -> None:
    assert parse_rtp_untrusted(packet) == parsed


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="empty"),
        pytest.param(HEADER[:-1], id="one byte short of a header"),
        pytest.param(with_first_byte(0x00, OPUS), id="version 0"),
        pytest.param(with_first_byte(0x40, OPUS), id="version 1"),
        pytest.param(with_first_byte(0xC0, OPUS), id="version 3"),
        pytest.param(with_first_byte(0x81, OPUS), id="1 CSRC in 3 bytes"),
        pytest.param(with_first_byte(0x8F, bytes(59)), id="15 CSRCs in 59 bytes"),
        pytest.param(with_first_byte(0x90, OPUS), id="extension without its length"),
        pytest.param(with_first_byte(0x90, bytes.fromhex("bede0001") + OPUS), id="extension of 4 in 3 bytes"),
        pytest.param(
            with_first_byte(0x90, bytes.fromhex("bedeffff") + bytes(1200)), id="extension of 256 KiB"
        ),
        pytest.param(with_first_byte(0x91, bytes(7)), id="CSRC, then no room for an extension"),
        pytest.param(with_first_byte(0xA0, b""), id="padding of a byte that is in the header"),
        pytest.param(with_first_byte(0xA0, OPUS + b"\0"), id="padding of no bytes"),
        pytest.param(with_first_byte(0xA0, OPUS + b"\5"), id="padding of 5 in 4 bytes"),
        pytest.param(
            with_first_byte(0xB0, AUDIO_LEVEL + b"\2"), id="padding that reaches into the extension"
        ),
        pytest.param(
            with_first_byte(0xB0, AUDIO_LEVEL[:-1] + b"\1"), id="padding that is inside the extension"
        ),
    ],
)
def test_lie_is_refused(packet: bytes) -> None:
    assert fault_of(parse_rtp_untrusted, packet) is WireFault.RTP_MALFORMED


@given(PAYLOAD_TYPES, U16, U32, U32, st.booleans(), st.binary(max_size=1200))
def test_written_header_is_read_back(
    payload_type: int, sequence_number: int, timestamp: int, ssrc: int, marker: bool, payload: bytes
) -> None:
    header = write_rtp_header(payload_type, sequence_number, timestamp, ssrc, marker=marker)
    assert len(header) == HEADER_BYTES == 12
    packet = parse_rtp_untrusted(header + payload)
    assert packet == RtpPacket(payload_type, marker, sequence_number, timestamp, ssrc, payload)
    theirs = aiortc.rtp.RtpPacket(payload_type, marker, sequence_number, timestamp, ssrc, payload)
    assert theirs.serialize() == header + payload


def agrees_with_aiortc(packet: bytes) -> None:
    """Both refuse ``packet``, or both read the same out of it."""
    theirs = None
    with suppress(ValueError):
        theirs = aiortc.rtp.RtpPacket.parse(packet)
    if fault_of(parse_rtp_untrusted, packet) is not None:
        assert theirs is None
        return
    ours = parse_rtp_untrusted(packet)
    if theirs is None:  # it does not like the elements of the header extension, which are read on demand here
        with pytest.raises(ValueError, match="truncated"):
            aiortc.rtp.unpack_header_extensions(ours.extension_profile, ours.extension_data)
        return
    assert ours[:5] == (
        theirs.payload_type,
        bool(theirs.marker),
        theirs.sequence_number,
        theirs.timestamp,
        theirs.ssrc,
    )
    assert (ours.payload, list(ours.csrcs)) == (theirs.payload, theirs.csrc)


@given(st.binary(max_size=120) | st.builds(with_first_byte, st.integers(0x80, 0xBF), st.binary(max_size=120)))
@example(EVERYTHING)
def test_any_bytes_are_read_as_aiortc_does_or_raise_rtp_malformed(packet: bytes) -> None:
    assert fault_of(parse_rtp_untrusted, packet) in {None, WireFault.RTP_MALFORMED}
    agrees_with_aiortc(packet)


@given(one_byte_flipped(EVERYTHING) | cut_short(EVERYTHING))
def test_damaged_packet_is_read_as_aiortc_does(packet: bytes) -> None:
    agrees_with_aiortc(packet)


@pytest.mark.parametrize(
    ("profile", "data", "element_id", "value"),
    [
        pytest.param(ONE_BYTE, "10e20000", 1, "e2", id="one byte: alone"),
        pytest.param(ONE_BYTE, "0010e200 22aabbcc", 2, "aabbcc", id="one byte: behind another and padding"),
        pytest.param(ONE_BYTE, "10e20000", 3, None, id="one byte: absent"),
        pytest.param(ONE_BYTE, "10e211ff", 1, "e2", id="one byte: the first of two"),
        pytest.param(ONE_BYTE, "1faabbcc", 1, None, id="one byte: overruns"),
        pytest.param(ONE_BYTE, "10e22faa", 1, "e2", id="one byte: overruns behind what is asked for"),
        pytest.param(ONE_BYTE, "f010e200", 1, None, id="one byte: behind id 15"),
        pytest.param(ONE_BYTE, "f010e200", 15, None, id="one byte: id 15 is no element"),
        pytest.param(ONE_BYTE, "01aabb00", 0, None, id="one byte: id 0 is no element"),
        pytest.param(ONE_BYTE, "01aabb10e2000000", 1, None, id="one byte: behind id 0 with a length"),
        pytest.param(ONE_BYTE, "", 1, None, id="one byte: no data"),
        pytest.param(TWO_BYTE, "0101e200", 1, "e2", id="two bytes: alone"),
        pytest.param(TWO_BYTE, "01000002 01aa0000", 2, "aa", id="two bytes: behind an empty one and padding"),
        pytest.param(TWO_BYTE, "01000000", 1, "", id="two bytes: empty"),
        pytest.param(TWO_BYTE | 0xF, "ff01e200", 255, "e2", id="two bytes: application bits, highest id"),
        pytest.param(TWO_BYTE, "01ffaabb", 1, None, id="two bytes: overruns"),
        pytest.param(TWO_BYTE, "00000001", 1, None, id="two bytes: no length"),
        pytest.param(0xABCD, "10e20000", 1, None, id="unknown profile"),
        pytest.param(0, "", 1, None, id="no extension"),
    ],
)
def test_extension_is_found(profile: int, data: str, element_id: int, value: str | None) -> None:
    expected = None if value is None else bytes.fromhex(value)
    assert find_extension(profile, bytes.fromhex(data), element_id) == expected


@given(
    st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), min_size=1)
    | st.dictionaries(st.integers(1, 255), st.binary(max_size=255), min_size=1, max_size=8)
)
def test_every_extension_that_aiortc_writes_is_found(elements: dict[int, bytes]) -> None:
    profile, data = aiortc.rtp.pack_header_extensions(list(elements.items()))
    assert {element_id: find_extension(profile, data, element_id) for element_id in elements} == elements


@given(
    st.just(ONE_BYTE) | st.integers(TWO_BYTE, TWO_BYTE + 15) | U16,
    st.binary(max_size=64),
    st.integers(0, 255),
)
def test_any_extension_is_no_error(profile: int, data: bytes, element_id: int) -> None:
    value = find_extension(profile, data, element_id)
    assert value is None or value in data
