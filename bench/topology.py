"""Three hosts as network namespaces: client, relay, transceivers. Each peer has three of its own.

The relay has two interfaces, ``public`` and ``fleet``; the others have ``eth0``. Neighbours are permanent, so that no
measurement meets an ARP. Clients of all flows live behind the client host; the four transceivers are four addresses of one host.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import Ethtool, IPRoute, NetNS, netns

from bench.frames import CLIENT_NETWORK
from wire.address import Address

VIP = Address.parse("203.0.113.10:3478")
CLIENT_HOST = Address.parse("203.0.113.2:0")
RELAY_FLEET = Address.parse("198.51.100.1:6000")
# Flow i is that of transceiver i % 4; peers that know one destination only have the first.
TRANSCEIVERS = tuple(Address.parse(f"198.51.100.{host}:5000") for host in range(2, 6))
TRANSCEIVER = TRANSCEIVERS[0]
PUBLIC, FLEET, ETH = "public", "fleet", "eth0"
_PREFIX = "relaybench"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-\w+-\w+")
_NUD_PERMANENT = 0x80  # linux/neighbour.h
_IPV6 = "net/ipv6/conf/all/disable_ipv6"


class Host:
    """A network namespace with loopback up. ``with host: …`` makes this thread, and what it starts, live there."""

    def __init__(self, name: str) -> None:
        self.name = name
        netns.create(name)
        self.ip = NetNS(name)
        with self:
            # No router solicitations between the packets that are counted.
            Path("/proc/sys", _IPV6).write_text("1")
        self.ip.link("set", index=1, state="up")

    def __enter__(self) -> "Host":
        netns.pushns(self.name)
        return self

    def __exit__(self, *exc_info: object) -> None:
        netns.popns()

    def index(self, interface: str) -> int:
        """The number of an interface."""
        return int(self.ip.link_lookup(ifname=interface)[0])

    def mac(self, interface: str) -> str:
        """The hardware address of an interface."""
        link: Any = self.ip.get_links(self.index(interface))[0]
        return str(link.get_attr("IFLA_ADDRESS"))

    def add_address(self, interface: str, address: Address, prefix_length: int = 24) -> None:
        """In a network of 254 hosts, or of another size."""
        self.ip.addr("add", index=self.index(interface), address=str(address.ip), prefixlen=prefix_length)

    def add_neighbour(self, interface: str, address: Address, mac: str) -> None:
        """One that is never asked for."""
        self.ip.neigh(
            "replace",
            dst=str(address.ip),
            lladdr=mac,
            ifindex=self.index(interface),
            state=_NUD_PERMANENT,
        )

    def write_sysctl(self, name: str, value: str) -> None:
        """As ``sysctl -w``, with slashes."""
        with self:
            Path("/proc/sys", name).write_text(value)

    def set_offload(self, interface: str, feature: str, *, on: bool) -> None:
        """As ``ethtool -K``, with the kernel's name of the feature."""
        with self, Ethtool() as ethtool:
            features = ethtool.get_features(interface)
            features.features[feature].enable = on
            ethtool.set_features(interface, features)

    def set_gro(self, interface: str, *, on: bool) -> None:
        """A veth takes redirected frames only while it has an XDP program, or GRO on."""
        self.set_offload(interface, "rx-gro", on=on)

    def close(self) -> None:
        """Remove the namespace with its interfaces."""
        self.ip.close()
        netns.remove(self.name)


@dataclass(frozen=True)
class Topology:
    """See the top of this file."""

    client: Host
    relay: Host
    transceiver: Host

    @property
    def forwarding_ways(self) -> dict[str, tuple[int, str, str]]:
        """By the relay's interface: out of which other one, to and from which MAC."""
        return {
            PUBLIC: (self.relay.index(FLEET), self.transceiver.mac(ETH), self.relay.mac(FLEET)),
            FLEET: (self.relay.index(PUBLIC), self.client.mac(ETH), self.relay.mac(PUBLIC)),
        }


@contextlib.contextmanager
def hosts(*roles: str) -> Iterator[list[Host]]:
    """Hosts of this process for the life of the block; a run that was killed leaves names that ``remove_stale`` knows."""
    run = uuid.uuid4().hex[:6]
    with contextlib.ExitStack() as stack:
        made = []
        for role in roles:
            made.append(Host(f"{_PREFIX}-{os.getpid()}-{run}-{role}"))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def topology() -> Iterator[Topology]:
    """Three hosts for the life of the block."""
    with contextlib.ExitStack() as stack:
        made = Topology(*stack.enter_context(hosts("client", "relay", "transceiver")))
        connect(made.client, ETH, made.relay, PUBLIC)
        connect(made.transceiver, ETH, made.relay, FLEET)
        _configure(made)
        yield made


def remove_stale() -> list[str]:
    """Remove the namespaces of runs that were killed; returns their names."""
    stale = []
    for name in netns.listnetns():
        found = _NAME.fullmatch(name)
        if found and not Path("/proc", found[1]).exists():
            netns.remove(name)
            stale.append(name)
    return stale


def connect(left: Host, left_interface: str, right: Host, right_interface: str) -> None:
    """A veth pair between two hosts, up."""
    suffix = uuid.uuid4().hex[:6]
    with IPRoute() as ip:
        ends = (f"l{suffix}", f"r{suffix}")
        ip.link("add", ifname=ends[0], kind="veth", peer=ends[1])
        for host, temporary, interface in (
            (left, ends[0], left_interface),
            (right, ends[1], right_interface),
        ):
            ip.link("set", index=ip.link_lookup(ifname=temporary)[0], net_ns_fd=host.name, ifname=interface)
    left.ip.link("set", index=left.index(left_interface), state="up")
    right.ip.link("set", index=right.index(right_interface), state="up")


def _configure(made: Topology) -> None:
    client, relay, transceiver = made.client, made.relay, made.transceiver
    for host, interface, address in (
        (client, ETH, CLIENT_HOST),
        (relay, PUBLIC, VIP),
        (relay, FLEET, RELAY_FLEET),
        *((transceiver, ETH, address) for address in TRANSCEIVERS),
    ):
        host.add_address(interface, address)
        host.write_sysctl(f"net/ipv4/conf/{interface}/rp_filter", "0")
    relay.write_sysctl("net/ipv4/ip_forward", "1")
    client.add_neighbour(ETH, VIP, relay.mac(PUBLIC))
    relay.add_neighbour(PUBLIC, CLIENT_HOST, client.mac(ETH))
    for address in TRANSCEIVERS:
        relay.add_neighbour(FLEET, address, transceiver.mac(ETH))
    transceiver.add_neighbour(ETH, RELAY_FLEET, relay.mac(FLEET))
    relay.ip.route("add", dst=CLIENT_NETWORK, gateway=str(CLIENT_HOST.ip), oif=relay.index(PUBLIC))
    transceiver.ip.route("add", dst="default", gateway=str(RELAY_FLEET.ip), oif=transceiver.index(ETH))
    client.ip.route("add", dst="default", gateway=str(VIP.ip), oif=client.index(ETH))
    # Sockets of clients can be bound to any of their addresses.
    client.ip.route("add", dst=CLIENT_NETWORK, oif=1, type="local", table=255, scope=254)
