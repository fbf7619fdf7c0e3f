"""The hosts of a VIP that moves: two of clients, a router, two relays that both have the VIP, one of transceivers.

    callers (aiortc, probes) ──┐            ┌── relay A (VIP on lo) ──┐
    browser (Chromium) ────────┤── router ──┤                         ├── transceivers, Redis
                               │            └── relay B (VIP on lo) ──┘      │
                               └───────────────── signaling ────────────────┘

The router's route to the VIP decides which relay has it, as BGP would. Signaling goes past the relays. No interface cuts
or joins UDP trains, so what is seen on a link is what is on a wire.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.topology import ETH, FLEET, PUBLIC, Host, connect, hosts
from wire.address import Address

VIP = Address.parse("203.0.113.10:3478")
CALLERS, BROWSER = Address.parse("198.18.1.2:0"), Address.parse("198.18.2.2:0")
# Addresses that belong to the callers' host besides: a prober has many, as a relay bounds what one source may begin.
PROBER_NETWORK = "198.19.0.0/24"
TRANSCEIVER = Address.parse("10.0.1.7:0")
SIGNALING = Address.parse("172.16.3.7:8080")
REDIS = Address.parse("10.0.1.7:6379")
# Of the transceiver's host.
FLEET_LINKS = ("fleet-a", "fleet-b")


class Side(StrEnum):
    """One of the two relays."""

    A = "a"
    B = "b"

    @property
    def other(self) -> "Side":
        """The one that can take over."""
        return Side.B if self is Side.A else Side.A

    @property
    def fleet(self) -> Address:
        """Its fleet address and base port."""
        return Address.parse("10.0.1.5:4000" if self is Side.A else "10.0.2.5:4000")


@dataclass(frozen=True)
class Sites:
    """See the top of this file."""

    callers: Host
    browser: Host
    router: Host
    relay_a: Host
    relay_b: Host
    transceiver: Host

    def relay(self, side: Side) -> Host:
        """The host of one relay."""
        return self.relay_a if side is Side.A else self.relay_b

    def move_vip(self, side: Side) -> None:
        """From now on the router sends what is for the VIP there."""
        gateway = "172.16.1.2" if side is Side.A else "172.16.2.2"
        self.router.ip.route("replace", dst=f"{VIP.ip}/32", gateway=gateway)


@contextlib.contextmanager
def sites() -> Iterator[Sites]:
    """All of them for the life of the block; relay A has the VIP."""
    roles = ("callers", "browser", "router", "relaya", "relayb", "transceiver")
    with hosts(*roles) as made:
        built = Sites(*made)
        _connect_all(built)
        _route(built)
        built.move_vip(Side.A)
        yield built


def _connect_all(made: Sites) -> None:
    ends = (
        (made.callers, ETH, "198.18.1.2", made.router, "callers", "198.18.1.1"),
        (made.browser, ETH, "198.18.2.2", made.router, "browser", "198.18.2.1"),
        (made.relay_a, PUBLIC, "172.16.1.2", made.router, "relay-a", "172.16.1.1"),
        (made.relay_b, PUBLIC, "172.16.2.2", made.router, "relay-b", "172.16.2.1"),
        (made.transceiver, ETH, "172.16.3.7", made.router, "signaling", "172.16.3.1"),
        (made.relay_a, FLEET, "10.0.1.5", made.transceiver, FLEET_LINKS[0], "10.0.1.7"),
        (made.relay_b, FLEET, "10.0.2.5", made.transceiver, FLEET_LINKS[1], "10.0.2.7"),
    )
    for left, left_interface, left_ip, right, right_interface, right_ip in ends:
        connect(left, left_interface, right, right_interface)
        for host, interface, ip in ((left, left_interface, left_ip), (right, right_interface, right_ip)):
            host.add_address(interface, Address.from_host(ip, 0))
            host.write_sysctl(f"net/ipv4/conf/{interface}/rp_filter", "0")
            host.set_offload(interface, "tx-udp-segmentation", on=False)
            # What XDP redirects into the other end arrives only so.
            host.set_gro(interface, on=True)


def _route(made: Sites) -> None:
    for host in vars(made).values():
        host.write_sysctl("net/ipv4/conf/all/rp_filter", "0")
    for host in (made.router, made.relay_a, made.relay_b):
        host.write_sysctl("net/ipv4/ip_forward", "1")
    for host, gateway in (
        (made.callers, "198.18.1.1"),
        (made.browser, "198.18.2.1"),
        (made.relay_a, "172.16.1.1"),
        (made.relay_b, "172.16.2.1"),
        (made.transceiver, "172.16.3.1"),
    ):
        host.ip.route("add", dst="default", gateway=gateway)
    for host in (made.relay_a, made.relay_b):
        host.add_address("lo", VIP, 32)
    made.relay_b.ip.route("add", dst=f"{TRANSCEIVER.ip}/32", gateway="10.0.2.7")
    made.router.ip.route("add", dst=PROBER_NETWORK, gateway=str(CALLERS.ip))
    made.callers.ip.route("add", dst=PROBER_NETWORK, oif=1, type="local", table=255, scope=254)


def prober_addresses() -> Iterator[str]:
    """Addresses of the prober's network, in turns."""
    return itertools.cycle(f"198.19.0.{number}" for number in range(1, 255))
