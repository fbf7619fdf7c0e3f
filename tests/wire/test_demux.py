"""The first byte tells the protocols of a WebRTC port apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.demux import PacketClass, classify

RANGES = [
    # https://www.rfc-editor.org/rfc/rfc7983#section-7
    pytest.param(0, 3, PacketClass.STUN, id="STUN"),
    pytest.param(4, 15, PacketClass.UNKNOWN, id="unassigned 4 to 15"),
    pytest.param(16, 19, PacketClass.ZRTP, id="ZRTP"),
    pytest.param(20, 63, PacketClass.DTLS, id="DTLS"),
    pytest.param(64, 79, PacketClass.TURN_CHANNEL, id="TURN channel"),
    pytest.param(80, 127, PacketClass.UNKNOWN, id="QUIC 80 to 127"),
    pytest.param(128, 191, PacketClass.RTP, id="RTP and RTCP"),
    pytest.param(192, 255, PacketClass.UNKNOWN, id="QUIC 192 to 255"),
]


@pytest.mark.parametrize(("first", "last", "packet_class"), RANGES)
def test_every_first_byte_of_a_range(first: int, last: int, packet_class: PacketClass) -> None:
    assert {classify(bytes((byte,))) for byte in range(first, last + 1)} == {packet_class}


def test_empty_datagram_is_unknown() -> None:
    assert classify(b"") is PacketClass.UNKNOWN


@pytest.mark.parametrize(
    ("datagram", "packet_class"),
    [
        pytest.param(bytes.fromhex("000100002112a442"), PacketClass.STUN, id="Binding request"),
        pytest.param(bytes.fromhex("010100002112a442"), PacketClass.STUN, id="Binding success"),
        pytest.param(bytes.fromhex("16feff0000"), PacketClass.DTLS, id="DTLS handshake"),
        pytest.param(bytes.fromhex("15fefd0001"), PacketClass.DTLS, id="DTLS alert"),
        pytest.param(bytes.fromhex("19fefd0001"), PacketClass.DTLS, id="DTLS connection id"),
        pytest.param(bytes.fromhex("3c00000000"), PacketClass.DTLS, id="DTLS 1.3 unified header"),
        pytest.param(bytes.fromhex("806f0001"), PacketClass.RTP, id="RTP"),
        pytest.param(bytes.fromhex("80c80006"), PacketClass.RTP, id="RTCP sender report"),
    ],
)
def test_packets_seen_on_the_wire(datagram: bytes, packet_class: PacketClass) -> None:
    assert classify(datagram) is packet_class


@given(st.binary(min_size=1), st.binary())
def test_only_the_first_byte_counts(datagram: bytes, rest: bytes) -> None:
    assert classify(datagram) is classify(datagram[:1] + rest)
