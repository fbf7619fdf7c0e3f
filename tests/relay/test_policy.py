"""Whose address may be whose."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.policy import AddressRules, IPNetwork, NetworkSet, RelayPolicy, Vip
from tests.relay.network import POLICY
from tests.wire.network import ADDRESSES
from wire.address import Address

RULES = AddressRules(POLICY)
LOOPBACK = Address.parse("127.0.0.1:3478")
ON_LOOPBACK = RelayPolicy(
    cluster_id=1,
    vips=(Vip(LOOPBACK, LOOPBACK),),
    transceiver_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
    own_sockets=frozenset((LOOPBACK, Address.parse("127.0.0.1:7000"))),
)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("0.0.0.0", False),
        ("0.255.255.255", False),
        ("1.0.0.0", True),
        ("10.0.255.255", True),
        ("10.1.0.0", False),  # the transceivers' network
        ("10.1.255.255", False),
        ("10.2.0.0", True),
        ("126.255.255.255", True),
        ("127.0.0.0", False),
        ("127.255.255.255", False),
        ("128.0.0.0", True),
        ("169.254.0.1", True),
        ("172.16.0.1", True),
        ("192.168.0.1", True),
        ("203.0.113.1", True),  # documentation
        ("223.255.255.255", True),
        ("224.0.0.0", False),
        ("239.255.255.255", False),
        ("240.0.0.0", False),
        ("255.255.255.255", False),
        ("[::]", False),
        ("[::1]", False),
        ("[::2]", True),
        ("[64:ff9b::1]", True),  # NAT64
        ("[2001:db8::1]", True),
        ("[fd00::ffff]", True),
        ("[fd00:1::]", False),  # the transceivers' network
        ("[fd00:1:ffff:ffff:ffff:ffff:ffff:ffff]", False),
        ("[fd00:2::]", True),
        ("[fe7f:ffff::1]", True),
        ("[fe80::]", False),
        ("[febf:ffff::1]", False),
        ("[fec0::]", True),
        ("[feff::1]", True),
        ("[ff00::]", False),
        ("[ffff::1]", False),
    ],
)
def test_host_of_a_client(host: str, allowed: bool) -> None:
    address = Address.parse(f"{host}:40000")
    assert RULES.may_be_client(address) is allowed
    assert RULES.may_be_client(address) is allowed  # as it is remembered


def test_ipv4_mapped_host_is_no_client() -> None:
    assert not RULES.may_be_client(Address(bytes(10) + b"\xff\xff\xc6\x33\x64\x07", 40000))


@pytest.mark.parametrize("address", sorted(POLICY.own_sockets))
def test_own_socket_is_no_client(address: Address) -> None:
    assert not RULES.may_be_client(address)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        pytest.param("127.0.0.1:40000", True, id="client beside the relay"),
        pytest.param("127.9.9.9:1", True, id="anywhere in 127/8"),
        pytest.param("[::1]:40000", True, id="IPv6"),
        pytest.param("127.0.0.1:3478", False, id="the VIP"),
        pytest.param("127.0.0.1:7000", False, id="the fleet socket"),
        pytest.param("198.51.100.7:40000", True, id="from outside"),
        pytest.param("224.0.0.1:40000", False, id="multicast"),
        pytest.param("0.0.0.0:40000", False, id="unspecified"),
    ],
)
def test_relay_on_loopback_shares_it_with_clients_and_transceivers(address: str, client: bool) -> None:
    rules = AddressRules(ON_LOOPBACK)
    assert rules.may_be_client(Address.parse(address)) is client
    assert rules.may_be_transceiver(Address.parse("127.0.0.1:1").host)


def test_one_vip_on_loopback_is_enough() -> None:
    vips = (*POLICY.vips, Vip(LOOPBACK, LOOPBACK))
    assert AddressRules(replace(POLICY, vips=vips)).may_be_client(Address.parse("127.0.0.1:40000"))


def test_relay_behind_a_nat_is_on_loopback_by_where_it_binds() -> None:
    public = Address.parse("203.0.113.10:3478")
    bound, told = (
        replace(ON_LOOPBACK, vips=(Vip(LOOPBACK, public),)),
        replace(ON_LOOPBACK, vips=(Vip(public, LOOPBACK),)),
    )
    client = Address.parse("127.0.0.1:40000")
    assert AddressRules(bound).may_be_client(client)
    assert not AddressRules(told).may_be_client(client)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("10.1.0.0", True),
        ("10.1.255.255", True),
        ("10.0.255.255", False),
        ("10.2.0.0", False),
        ("127.0.0.1", False),
        ("[fd00:1::]", True),
        ("[fd00:1:ffff::]", True),
        ("[fd00:2::]", False),
        ("[::1]", False),
    ],
)
def test_host_of_a_transceiver(host: str, allowed: bool) -> None:
    assert RULES.may_be_transceiver(Address.parse(f"{host}:1").host) is allowed


NETWORKS = st.lists(
    st.tuples(ADDRESSES, st.integers(0, 128)).map(
        lambda drawn: ip_network((drawn[0].host, min(drawn[1], len(drawn[0].host) * 8)), strict=False)
    ),
    max_size=4,
)


@given(NETWORKS, ADDRESSES)
def test_network_set_is_what_ipaddress_says(networks: list[IPNetwork], address: Address) -> None:
    members = NetworkSet(tuple(networks))
    assert (address.host in members) == any(address.ip in network for network in networks)
    for network in networks:
        assert network.network_address.packed in members
        assert network.broadcast_address.packed in members


@pytest.mark.parametrize(
    ("host", "bits", "prefix"),
    [
        pytest.param("198.51.100.7", {}, (4, 0xC6336407), id="IPv4 address"),
        pytest.param("198.51.100.7", {"ipv4_source_bits": 24}, (4, 0xC63364), id="IPv4 /24"),
        pytest.param("198.51.100.7", {"ipv4_source_bits": 8}, (4, 0xC6), id="IPv4 /8"),
        pytest.param("198.51.100.7", {"ipv6_source_bits": 16}, (4, 0xC6336407), id="IPv4, whatever IPv6 is"),
        pytest.param("[2001:db8:1:2:3:4:5:6]", {}, (16, 0x20010DB800010002), id="IPv6 /64"),
        pytest.param("[2001:db8:1:2::]", {"ipv6_source_bits": 48}, (16, 0x20010DB80001), id="IPv6 /48"),
        pytest.param("[2001:db8::1]", {"ipv6_source_bits": 128}, (16, (0x20010DB8 << 96) + 1), id="IPv6 /128"),
        pytest.param("[2001:db8::1]", {"ipv4_source_bits": 8}, (16, 0x20010DB8 << 32), id="IPv6, whatever IPv4 is"),
    ],
)  # fmt: skip
def test_source_prefix_is_what_one_customer_owns(
    host: str, bits: dict[str, Any], prefix: tuple[int, int]
) -> None:
    assert replace(POLICY, **bits).source_prefix(Address.parse(f"{host}:1").host) == prefix


@given(ADDRESSES, ADDRESSES, st.integers(8, 32), st.integers(16, 128))
def test_two_hosts_share_a_source_prefix_if_one_network_has_both(
    one: Address, other: Address, ipv4_bits: int, ipv6_bits: int
) -> None:
    """As the kernel masks them (bpf: settings.ipv4_source_mask, ipv6_source_mask)."""
    policy = replace(POLICY, ipv4_source_bits=ipv4_bits, ipv6_source_bits=ipv6_bits)
    hosts = [one.host, other.host, one.host[:-1] + other.host[-1:]]
    prefixes = [policy.source_prefix(host) for host in hosts]
    networks = [
        ip_network((host, ipv4_bits if len(host) == 4 else ipv6_bits), strict=False) for host in hosts
    ]
    for a in range(3):
        for b in range(3):
            assert (prefixes[a] == prefixes[b]) == (networks[a] == networks[b])
