"""SPP: the client's real address in front of its datagram."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.network import ADDRESSES, PORTS, cut_short, fault_of
from wire.address import Address
from wire.errors import WireFault
from wire.spp import HEADER_BYTES, MAGIC, SppHeader, decode_header_untrusted, encode_header

CLIENT_V4 = Address.parse("198.51.100.7:40000")
CLIENT_V6 = Address.parse("[2001:db8::7]:40000")
VIP_V4 = Address.parse("203.0.113.10:3478")
VIP_V6 = Address.parse("[2001:db8::10]:3478")
HEADER_V4 = bytes.fromhex(
    "56ec 00000000000000000000ffffc6336407 00000000000000000000ffffcb00710a 9c40 0d96"  # magic, client, VIP, ports
)


@pytest.mark.parametrize(
    ("client", "vip", "header"),
    [
        pytest.param(CLIENT_V4, VIP_V4, HEADER_V4, id="IPv4"),
        pytest.param(
            CLIENT_V6,
            VIP_V6,
            bytes.fromhex("56ec 20010db8000000000000000000000007 20010db8000000000000000000000010 9c40 0d96"),
            id="IPv6",
        ),
        pytest.param(
            Address(bytes(4), 0),
            Address(b"\xff" * 16, 0xFFFF),
            bytes.fromhex("56ec 00000000000000000000ffff00000000 ffffffffffffffffffffffffffffffff 0000 ffff"),
            id="lowest and highest",
        ),
    ],
)
def test_header_as_cloudflare_specifies(client: Address, vip: Address, header: bytes) -> None:
    assert len(header) == HEADER_BYTES == 38
    assert encode_header(client, vip) == header
    assert decode_header_untrusted(header) == SppHeader(client=client, proxy=vip)


@given(ADDRESSES, ADDRESSES, st.binary())
def test_client_and_vip_cross_the_fleet(client: Address, vip: Address, payload: bytes) -> None:
    assert decode_header_untrusted(encode_header(client, vip) + payload) == (client, vip)


@given(st.binary(min_size=32, max_size=32), PORTS, PORTS, st.binary())
def test_any_header_is_written_back_byte_for_byte(
    hosts: bytes, client: int, vip: int, payload: bytes
) -> None:
    header = MAGIC.to_bytes(2, "big") + hosts + client.to_bytes(2, "big") + vip.to_bytes(2, "big")
    assert encode_header(*decode_header_untrusted(header + payload)) == header


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="empty"),
        pytest.param(HEADER_V4[:2], id="magic alone"),
        pytest.param(HEADER_V4[:-1], id="one byte short"),
        pytest.param(b"\xec\x56" + HEADER_V4[2:], id="magic in the other byte order"),
        pytest.param(b"\x56\xed" + HEADER_V4[2:], id="magic off by one"),
        pytest.param(bytes(38), id="zeros"),
        pytest.param(b"\x00" + HEADER_V4, id="shifted by a byte"),
    ],
)
def test_no_header_is_refused(datagram: bytes) -> None:
    assert fault_of(decode_header_untrusted, datagram) is WireFault.SPP_MALFORMED


@given(cut_short(HEADER_V4))
def test_header_cut_short_is_refused(datagram: bytes) -> None:
    assert fault_of(decode_header_untrusted, datagram) is WireFault.SPP_MALFORMED


@given(st.binary(max_size=80) | st.binary(max_size=80).map(HEADER_V4[:2].__add__))
def test_any_bytes_raise_only_spp_malformed(datagram: bytes) -> None:
    is_header = len(datagram) >= HEADER_BYTES and datagram[:2] == b"\x56\xec"
    assert fault_of(decode_header_untrusted, datagram) is (None if is_header else WireFault.SPP_MALFORMED)
