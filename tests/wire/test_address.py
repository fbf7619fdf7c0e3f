"""Addresses: the text that operators write, the 16 bytes that packets carry."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.network import ADDRESSES
from wire.address import Address

V4 = Address(bytes((203, 0, 113, 10)), 3478)
V6 = Address(bytes.fromhex("20010db8000000000000000000000001"), 3478)
V4_MAPPED = bytes.fromhex("00000000000000000000ffffcb00710a")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("203.0.113.10:3478", V4, id="IPv4"),
        pytest.param("[2001:db8::1]:3478", V6, id="IPv6 in brackets"),
        pytest.param("[2001:0DB8:0:0::1]:3478", V6, id="IPv6 in another spelling"),
        pytest.param("0.0.0.0:0", Address(bytes(4), 0), id="any address, any port"),
        pytest.param("[::]:65535", Address(bytes(16), 65535), id="highest port"),
    ],
)
def test_parse_reads_an_endpoint(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        pytest.param("", "ADDRESS:PORT", id="nothing"),
        pytest.param("203.0.113.10", "ADDRESS:PORT", id="no port"),
        pytest.param("3478", "ADDRESS:PORT", id="port alone"),
        pytest.param("203.0.113.10:", "ADDRESS:PORT", id="empty port"),
        pytest.param("203.0.113.10:65536", "ADDRESS:PORT", id="port of 17 bits"),
        pytest.param("203.0.113.10:-1", "ADDRESS:PORT", id="negative port"),
        pytest.param("203.0.113.10:+80", "ADDRESS:PORT", id="signed port"),
        pytest.param("203.0.113.10:8_0", "ADDRESS:PORT", id="port with an underscore"),
        pytest.param("203.0.113.10: 80", "ADDRESS:PORT", id="port with a space"),
        pytest.param("203.0.113.10:٣", "ADDRESS:PORT", id="Arabic digit"),
        pytest.param("203.0.113.10:²", "ADDRESS:PORT", id="superscript digit"),
        pytest.param("203.0.113.10:http", "ADDRESS:PORT", id="service name"),
        pytest.param(":3478", "literal IPv4 address or an IPv6 address in brackets", id="no host"),
        pytest.param("relay.example:3478", "literal IPv4", id="host name"),
        pytest.param("203.0.113:3478", "literal IPv4", id="three octets"),
        pytest.param("203.0.113.010:3478", "literal IPv4", id="octal octet"),
        pytest.param("2001:db8::1:3478", "in brackets", id="IPv6 without brackets"),
        pytest.param("[2001:db8::1]", "ADDRESS:PORT", id="IPv6 without port"),
        pytest.param("[2001:db8::1:3478", "in brackets", id="bracket left open"),
        pytest.param("[203.0.113.10]:3478", "literal IPv4", id="IPv4 in brackets"),
        pytest.param("[]:3478", "literal IPv4", id="empty brackets"),
        pytest.param("[fe80::1%eth0]:3478", "scoped", id="link-local with a scope"),
        pytest.param(
            "203.0.113.10:" + "9" * 5000,
            "ADDRESS:PORT",
            id="port of 5000 digits",
        ),
    ],
)
def test_parse_refuses_and_names_the_way_out(text: str, way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        Address.parse(text)


@given(st.text() | st.text("0123456789abcdef.:[]%"))
@example("203.0.113.10:" + "9" * 5000)
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert len(address.host) in (4, 16)
    assert 0 <= address.port <= 0xFFFF


@given(ADDRESSES)
def test_text_form_is_read_back(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(ADDRESSES)
def test_socket_form_is_read_back(address: Address) -> None:
    assert Address.from_host(str(address.ip), address.port) == address


@given(ADDRESSES)
def test_mapped_form_is_read_back(address: Address) -> None:
    assert len(address.mapped) == 16
    assert Address.from_mapped(address.mapped, address.port) == address


@pytest.mark.parametrize(
    ("address", "text", "mapped", "ip", "family"),
    [
        pytest.param(V4, "203.0.113.10:3478", V4_MAPPED, IPv4Address("203.0.113.10"), 4, id="IPv4"),
        pytest.param(V6, "[2001:db8::1]:3478", V6.host, IPv6Address("2001:db8::1"), 6, id="IPv6"),
    ],
)
def test_forms(
    address: Address, text: str, mapped: bytes, ip: IPv4Address | IPv6Address, family: int
) -> None:
    assert (str(address), address.mapped, address.ip, address.family) == (text, mapped, ip, family)


@pytest.mark.parametrize(
    ("host16", "host"),
    [
        pytest.param(V4_MAPPED, V4.host, id="IPv4 mapped"),
        pytest.param(V6.host, V6.host, id="IPv6"),
        pytest.param(bytes(12) + V4.host, bytes(12) + V4.host, id="IPv4 compatible stays IPv6"),
        pytest.param(b"\x01" + V4_MAPPED[1:], b"\x01" + V4_MAPPED[1:], id="almost mapped stays IPv6"),
    ],
)
def test_from_mapped_unmaps_only_the_mapped_prefix(host16: bytes, host: bytes) -> None:
    assert Address.from_mapped(host16, 3478) == Address(host, 3478)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        pytest.param(Address.parse, "[::ffff:203.0.113.10]:3478", id="parse"),
        pytest.param(
            lambda host: Address.from_host(host, 3478), "::ffff:203.0.113.10", id="a dual-stack socket"
        ),
    ],
)
def test_mapped_ipv4_is_never_kept(read: Callable[[str], Address], text: str) -> None:
    assert read(text) == V4


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("relay.example", id="host name"),
        pytest.param("", id="nothing"),
        pytest.param("[2001:db8::1]", id="brackets"),
    ],
)
def test_from_host_refuses_what_is_no_plain_address(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.from_host(host, 3478)
