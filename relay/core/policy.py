"""What a relay serves and whom it trusts: the settings that decisions depend on."""

from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from wire.address import Address

IPNetwork = IPv4Network | IPv6Network

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
# Addresses that no client can have: "this" network, multicast, reserved with broadcast; unspecified and IPv4-mapped,
# link-local, multicast. RFC 1918 and the documentation networks are left alone: clients of private fleets and of tests have them.
_MARTIAN = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("224.0.0.0/4"),
    IPv4Network("240.0.0.0/4"),
    IPv6Network("::/128"),
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)


class NetworkSet:
    """A few networks of both families; membership by one masked comparison each."""

    def __init__(self, networks: tuple[IPNetwork, ...]) -> None:
        self._ranges = tuple((n.max_prefixlen // 8, int(n.netmask), int(n.network_address)) for n in networks)

    def __contains__(self, host: bytes) -> bool:
        length, value = len(host), int.from_bytes(host, "big")
        return any(length == size and value & mask == network for size, mask, network in self._ranges)


@dataclass(frozen=True, slots=True)
class Vip:
    """One public address: ``listen`` is where the relay binds, ``address`` what clients are told (1:1 NAT)."""

    listen: Address
    address: Address


@dataclass(frozen=True, kw_only=True)
class RelayPolicy:
    """Settings of a relay's decisions.

    cluster_id: hints of other clusters are refused.
    vips: the public addresses, one or more an address family.
    transceiver_networks: where hints may point to and fleet packets may come from.
    own_sockets: the relay's public and fleet sockets; a packet that claims to come from one is a loop or forged.
    max_session_s: oldest ufrag that is still admitted. 24 h, as a call keeps its ufrag for its whole life.
    clock_skew_s: how far in the future a ufrag may have been issued.
    provisional_s / assured_s: life of a flow without packets. Checks come at least every 2.5 s (Chromium) or 5 s
        (aioice), and consent ends a dead client at 30 s (RFC 7675).
    contest_s: how long the old session of an assured flow, its ufrag and its transceiver, must be silent before another
        may take the flow: the longest interval of consent checks (RFC 7675 section 5.1).
    max_*: bounds of the tables, so that a flood costs others nothing.
    unknown_per_s / unknown_burst: packets of no known flow from one source, requests where there is no XDP: a few calls
        being set up.
    ufrag_per_s / ufrag_burst: requests of one ufrag from addresses that it has no flow of: some candidates, retransmitted.
    heartbeat_timeout_s: the kernel gives a worker without a heartbeat for this long no packets.
    ipv4_source_bits / ipv6_source_bits: what one source is, for bounds and rates: an IPv4 address, an IPv6 /64.
    """

    cluster_id: int
    vips: tuple[Vip, ...]
    transceiver_networks: tuple[IPNetwork, ...]
    own_sockets: frozenset[Address] = field(default=frozenset())
    max_session_s: int = 24 * 3600
    clock_skew_s: int = 60
    provisional_s: float = 10.0
    assured_s: float = 60.0
    contest_s: float = 6.0
    max_assured_flows: int = 100_000
    max_provisional_flows: int = 16_384
    max_provisional_per_prefix: int = 1024
    max_addresses_per_ufrag: int = 8
    unknown_per_s: int = 200
    unknown_burst: int = 400
    ufrag_per_s: int = 20
    ufrag_burst: int = 40
    heartbeat_timeout_s: float = 1.0
    ipv4_source_bits: int = 32
    ipv6_source_bits: int = 64

    def source_prefix(self, host: bytes) -> tuple[int, int]:
        """The part of an address that one customer owns, as (bytes of an address, the prefix as a number)."""
        length = len(host)
        bits = self.ipv4_source_bits if length == 4 else self.ipv6_source_bits
        return length, int.from_bytes(host, "big") >> (length * 8 - bits)


class AddressRules:
    """Which addresses may be a client's and which a transceiver's."""

    def __init__(self, policy: RelayPolicy) -> None:
        on_loopback = any(vip.listen.ip.is_loopback for vip in policy.vips)
        fleet = NetworkSet(policy.transceiver_networks)
        loopback = NetworkSet(_LOOPBACK)
        forbidden = NetworkSet(_MARTIAN)

        def may_be_client(host: bytes) -> bool:
            # On one machine clients, relay and transceivers share the loopback address.
            if host in loopback:
                return on_loopback
            return host not in forbidden and host not in fleet

        self._own = policy.own_sockets
        self._own_hosts = {a.host for a in policy.own_sockets if a.host not in loopback}
        self._client_host = lru_cache(maxsize=16_384)(may_be_client)
        self._transceiver_host = lru_cache(maxsize=4096)(fleet.__contains__)

    def may_be_client(self, address: Address) -> bool:
        """Whether packets may come from, or be sent to, this address on the public side."""
        return self._client_host(address.host) and address not in self._own

    def is_own_host(self, host: bytes) -> bool:
        """Whether this relay itself has the address; loopback is everybody's."""
        return host in self._own_hosts

    def may_be_transceiver(self, host: bytes) -> bool:
        """Whether the host is in the transceiver networks."""
        return self._transceiver_host(host)
