"""The way to a host as an Ethernet frame takes it: decided from what the kernel says of route, links and neighbour.

Pure. Messages are pyroute2's. Whatever is not understood gives no way, as a host without one is served by the workers,
while a wrong one would end its calls:

1. The route leads to a unicast host, and adds no header (tunnel, MPLS, segment routing).
2. Its interface, or under at most two VLAN devices the one that carries them, is Ethernet, has our program, and all of
   them are up with a carrier.
3. The neighbour (the gateway, or the host itself) has an address that the kernel would send to.
"""

from collections.abc import Callable, Collection, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from relay.dataplane.bpf.abi import LinkPath, NextHop

MAX_TAGS = 2

# linux/rtnetlink.h
_RTN_UNICAST = 1
_ROUTE_KINDS = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "a blackhole", 7: "unreachable"}
_ROUTE_KINDS |= {8: "prohibited", 9: "thrown", 10: "translated"}
# linux/if.h, linux/if_arp.h, linux/if_ether.h
_IFF_UP, _IFF_RUNNING, _IFF_LOWER_UP = 1, 0x40, 0x10000
_ARPHRD_ETHER, _MAC_BYTES = 1, 6
_TAG_PROTOCOLS = (0x8100, 0x88A8)
# linux/neighbour.h
_NUD_INCOMPLETE, _NUD_REACHABLE, _NUD_STALE, _NUD_DELAY, _NUD_PROBE, _NUD_PERMANENT = 1, 2, 4, 8, 16, 128
_NUD_FAILED, _NUD_NOARP = 32, 64
_NUD_USABLE = _NUD_REACHABLE | _NUD_STALE | _NUD_DELAY | _NUD_PROBE | _NUD_PERMANENT
NTF_USE, _NTF_EXT_LEARNED = 1, 0x10
NTF_EXT_MANAGED = 1


class NoWay(Exception):  # noqa: N818 - an answer, not a failure
    """Why there is none, in words."""


class Route(NamedTuple):
    """What the kernel answers for one host. ``gateway`` is packed, None for a host on the link; ``mtu`` 0 where the route has none."""

    kind: int
    ifindex: int
    gateway: bytes | None
    mtu: int
    adds_header: bool


class Link(NamedTuple):
    """A network interface. ``tag`` is (protocol, id) of a VLAN device, ``lower`` the ifindex that carries it (0: not here)."""

    ifindex: int
    name: str
    is_ethernet: bool
    is_up: bool
    mac: bytes
    mtu: int
    program_id: int
    tag: tuple[int, int] | None
    lower: int


class Neighbour(NamedTuple):
    """An entry of the neighbour table; all zero is none."""

    state: int = 0
    flags: int = 0
    is_managed: bool = False
    mac: bytes = b""

    @property
    def usable_mac(self) -> bytes | None:
        """Where the kernel would send to now."""
        return self.mac if self.state & _NUD_USABLE and len(self.mac) == _MAC_BYTES else None

    @property
    def is_unanswered(self) -> bool:
        """Whether the kernel has asked for it in vain so far, and waits (ARP's and ND's 1 s) before it asks again."""
        return bool(self.state & (_NUD_INCOMPLETE | _NUD_FAILED))

    @property
    def needs_care(self) -> bool:
        """Whether the kernel is to be asked to resolve it, or to keep it resolved.

        Not while it is being resolved, and never where somebody else vouches for it: the request would end that.
        """
        if self.state & (_NUD_PERMANENT | _NUD_NOARP | _NUD_INCOMPLETE) or self.flags & _NTF_EXT_LEARNED:
            return False
        return self.usable_mac is None or not self.is_managed


ABSENT = Neighbour()


class NeighbourKey(NamedTuple):
    """``host`` is packed."""

    ifindex: int
    host: bytes

    def __str__(self) -> str:
        return str(ip_address(self.host))


class Exit(NamedTuple):
    """Where frames leave; ``tags`` are (protocol, id), the outer one first; ``mtu`` in bytes of the IP packet."""

    interface: str
    ifindex: int
    from_mac: bytes
    tags: tuple[tuple[int, int], ...]
    mtu: int


class Way(NamedTuple):
    """How frames get to a host."""

    exit: Exit
    to_mac: bytes

    def to_next_hop(self) -> NextHop:
        """As XDP reads it."""
        path = LinkPath(ifindex=self.exit.ifindex)
        path.from_mac[:], path.to_mac[:] = self.exit.from_mac, self.to_mac
        for place, (protocol, vlan) in enumerate(self.exit.tags):
            path.tag_proto[place], path.tag_tci[place] = protocol, vlan
        return NextHop(path=path, mtu=self.exit.mtu)

    def __str__(self) -> str:
        tags = "".join(f", VLAN {vlan}" for _, vlan in self.exit.tags)
        return f"{self.exit.interface} to {self.to_mac.hex(':')}{tags}, MTU {self.exit.mtu}"


def read_route(message: Any) -> Route:
    """From the answer to a question for one host."""
    via, metrics = message.get_attr("RTA_VIA"), message.get_attr("RTA_METRICS")
    gateway = message.get_attr("RTA_GATEWAY") or (via["addr"] if via else None)
    return Route(
        kind=message["type"],
        ifindex=message.get_attr("RTA_OIF") or 0,
        gateway=ip_address(gateway).packed if gateway else None,
        mtu=(metrics.get_attr("RTAX_MTU") if metrics else None) or 0,
        adds_header=any(message.get_attr(name) for name in ("RTA_ENCAP_TYPE", "RTA_ENCAP", "RTA_NEWDST")),
    )


def read_link(message: Any) -> Link:
    """From a link message. What runs over an interface of another network namespace has no lower one here."""
    needed = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
    is_up = message["flags"] & needed == needed
    is_elsewhere = message.get_attr("IFLA_LINK_NETNSID") is not None
    xdp = message.get_attr("IFLA_XDP")
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        is_ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        is_up=is_up and message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
        mac=_read_mac(message.get_attr("IFLA_ADDRESS")),
        mtu=message.get_attr("IFLA_MTU") or 0,
        program_id=(xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None) or 0,
        tag=_read_tag(message),
        lower=0 if is_elsewhere else message.get_attr("IFLA_LINK") or 0,
    )


def _read_tag(message: Any) -> tuple[int, int] | None:
    info = message.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "vlan":
        return None
    data = info.get_attr("IFLA_INFO_DATA")
    if data is None:
        return 0, 0
    return data.get_attr("IFLA_VLAN_PROTOCOL") or 0, data.get_attr("IFLA_VLAN_ID") or 0


def read_neighbour(message: Any) -> Neighbour:
    """From a neighbour message."""
    return Neighbour(
        state=message["state"],
        flags=message["flags"],
        is_managed=bool((message.get_attr("NDA_FLAGS_EXT") or 0) & NTF_EXT_MANAGED),
        mac=_read_mac(message.get_attr("NDA_LLADDR")),
    )


def _read_mac(text: str | None) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else b""


def check_route(route: Route) -> None:
    """Raises NoWay if XDP cannot follow it."""
    if route.kind != _RTN_UNICAST:
        raise NoWay(f"its route is {_ROUTE_KINDS.get(route.kind, f'of kind {route.kind}')}")
    if route.adds_header:
        raise NoWay("its route adds a header or changes its address")
    if not route.ifindex:
        raise NoWay("its route has no interface")


def find_exit(
    route: Route, chain: Sequence[Link], interfaces: Collection[str], is_ours: Callable[[int], bool]
) -> Exit:
    """Where frames leave. ``chain`` is the route's link, then what carries it. Raises NoWay.

    interfaces: names of those that may be redirected to. is_ours: asked with the id of the lowest one's XDP program,
    0 for none.
    """
    for link in chain:
        if not link.is_up:
            raise NoWay(f"{link.name} is down or has no carrier")
        if not link.is_ethernet or len(link.mac) != _MAC_BYTES:
            raise NoWay(f"{link.name} is not Ethernet")
    *tagging, lowest = chain
    tags = tuple(link.tag for link in reversed(tagging) if link.tag is not None)
    if lowest.tag is not None:
        raise NoWay(f"nothing here carries {lowest.name}, or it is the third VLAN in one another")
    if any(protocol not in _TAG_PROTOCOLS or not 0 < vlan < 4095 for protocol, vlan in tags):
        raise NoWay(f"the VLAN tag of {chain[0].name} is not understood")
    if lowest.name not in interfaces:
        raise NoWay(f"its way out is {lowest.name}, which is not one of relay.interfaces")
    if not is_ours(lowest.program_id):
        raise NoWay(f"our program is not on {lowest.name}")
    # The lower MTU is of what is inside the tag, as the kernel counts it.
    mtu = min(mtu for mtu in (route.mtu, *(link.mtu for link in chain)) if mtu)
    return Exit(lowest.name, lowest.ifindex, chain[0].mac, tags, mtu)
