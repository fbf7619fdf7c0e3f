"""What is made of the kernel's messages, also of devices that a test machine may not have (VLAN), and of rubbish."""

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from relay.dataplane.bpf.route_events import (
    EverythingEvent,
    LinkEvent,
    NeighbourEvent,
    RouteEvent,
    read_events,
)
from relay.dataplane.bpf.ways import (
    ABSENT,
    Exit,
    Link,
    Neighbour,
    NeighbourKey,
    NoWay,
    Route,
    Way,
    check_route,
    find_exit,
    read_link,
    read_neighbour,
    read_route,
)

MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
UP = 0x1 | 0x40 | 0x10000
Q, AD = 0x8100, 0x88A8
NEIGH, ROUTE, LINK = 28, 24, 16


def over_the_wire(message: Any, kind: int = 0) -> Any:
    """Encoded as the kernel would, and decoded again; ``data`` keeps the bytes."""
    message["header"]["type"] = kind
    message.encode()
    received = type(message)(message.data)
    received.decode()
    return received


def link(index: int, name: str, *attributes: tuple[str, Any], **fields: Any) -> Link:
    return read_link(link_message(index, name, *attributes, **fields))


def link_message(index: int, name: str, *attributes: tuple[str, Any], **fields: Any) -> Any:
    message = ifinfmsg()
    for field, value in {"index": index, "flags": UP, "ifi_type": 1, **fields}.items():
        message[field] = value
    usual = {
        "IFLA_IFNAME": name,
        "IFLA_ADDRESS": MAC,
        "IFLA_MTU": 1500,
        "IFLA_OPERSTATE": "UP",
        **dict(attributes),
    }
    message["attrs"] = [[key, value] for key, value in usual.items() if value is not None]
    return over_the_wire(message, LINK)


def vlan(index: int, lower: int, vlan_id: int, protocol: int = Q, *attributes: tuple[str, Any]) -> Link:
    data = {"attrs": [["IFLA_VLAN_ID", vlan_id], ["IFLA_VLAN_PROTOCOL", protocol]]}
    info = {"attrs": [["IFLA_INFO_KIND", "vlan"], ["IFLA_INFO_DATA", data]]}
    usual = {"IFLA_ADDRESS": OTHER_MAC, "IFLA_LINK": lower, "IFLA_LINKINFO": info, **dict(attributes)}
    return link(index, f"vlan{index}", *usual.items())


def test_link_is_read() -> None:
    assert link(7, "eth0") == Link(7, "eth0", True, True, bytes.fromhex("020000000001"), 1500, 0, None, 0)
    xdp = ("IFLA_XDP", {"attrs": [["IFLA_XDP_PROG_ID", 44]]})
    assert link(7, "eth0", xdp).program_id == 44
    assert vlan(8, 7, 100) == Link(
        8, "vlan8", True, True, bytes.fromhex("020000000002"), 1500, 0, (0x8100, 100), 7
    )
    elsewhere = vlan(8, 7, 100, Q, ("IFLA_LINK_NETNSID", 0))
    assert elsewhere.lower == 0
    # A veth's peer is no lower device.
    assert link(9, "veth0", ("IFLA_LINK", 3)).tag is None


@pytest.mark.parametrize(
    ("flags", "operstate", "is_up"),
    [
        pytest.param(UP, "UP", True, id="up"),
        pytest.param(UP, "UNKNOWN", True, id="driver without a state"),
        pytest.param(UP, "DORMANT", False, id="dormant"),
        pytest.param(UP, "LOWERLAYERDOWN", False, id="lower layer down"),
        pytest.param(UP, "DOWN", False, id="down"),
        pytest.param(UP & ~1, "UP", False, id="administratively down"),
        pytest.param(UP & ~0x40, "UP", False, id="not running"),
        pytest.param(UP & ~0x10000, "UP", False, id="no carrier"),
        pytest.param(0, "DOWN", False, id="nothing"),
    ],
)
def test_link_is_up_only_with_a_carrier(flags: int, operstate: str, is_up: bool) -> None:
    assert link(7, "eth0", ("IFLA_OPERSTATE", operstate), flags=flags).is_up is is_up


ETH = link(7, "eth0", ("IFLA_ADDRESS", "02:00:00:00:00:09"))
ETH_MAC, VLAN_MAC = bytes.fromhex("020000000009"), bytes.fromhex("020000000002")
ROUTE_7 = Route(1, 7, None, 0, False)


@pytest.mark.parametrize(
    ("chain", "route_mtu", "exit_"),
    [
        pytest.param([ETH], 0, Exit("eth0", 7, ETH_MAC, (), 1500), id="plain"),
        pytest.param([ETH], 1400, Exit("eth0", 7, ETH_MAC, (), 1400), id="route's MTU"),
        pytest.param([ETH], 9000, Exit("eth0", 7, ETH_MAC, (), 1500), id="route's MTU is too long"),
        pytest.param(
            [vlan(8, 7, 100), ETH], 0, Exit("eth0", 7, VLAN_MAC, ((Q, 100),), 1500), id="VLAN, its own MAC"
        ),
        pytest.param(
            [vlan(8, 7, 100, Q, ("IFLA_MTU", 1496)), ETH],
            0,
            Exit("eth0", 7, VLAN_MAC, ((Q, 100),), 1496),
            id="VLAN's MTU",
        ),
        pytest.param(
            [vlan(8, 7, 4094, AD), ETH], 0, Exit("eth0", 7, VLAN_MAC, ((AD, 4094),), 1500), id="802.1ad"
        ),
        pytest.param(
            [vlan(9, 8, 200), vlan(8, 7, 100, AD), ETH],
            0,
            Exit("eth0", 7, VLAN_MAC, ((AD, 100), (Q, 200)), 1500),
            id="VLAN in VLAN, the outer tag first",
        ),
    ],
)
def test_way_out(chain: list[Link], route_mtu: int, exit_: Exit) -> None:
    route = ROUTE_7._replace(mtu=route_mtu)
    assert find_exit(route, chain, {"eth0"}, lambda program_id: True) == exit_


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        pytest.param([link(7, "eth1")], "eth1, which is not one of relay.interfaces", id="other interface"),
        pytest.param([link(7, "vlan7")], "vlan7, which is not", id="name of a VLAN, but none"),
        pytest.param(
            [vlan(8, 0, 100)], "nothing here carries vlan8", id="VLAN over another namespace's interface"
        ),
        pytest.param(
            [vlan(10, 9, 300), vlan(9, 8, 200), vlan(8, 7, 100)], "third VLAN in one another", id="three tags"
        ),
        pytest.param([vlan(8, 7, 0), ETH], "tag of vlan8 is not understood", id="priority tag"),
        pytest.param([vlan(8, 7, 5, 0x9100), ETH], "tag of vlan8 is not understood", id="other protocol"),
        pytest.param([vlan(8, 7, 5)._replace(is_up=False), ETH], "vlan8 is down", id="VLAN device down"),
        pytest.param(
            [vlan(8, 7, 5), ETH._replace(is_up=False)], "eth0 is down or has no carrier", id="lower down"
        ),
        pytest.param([ETH._replace(is_ethernet=False)], "eth0 is not Ethernet", id="tunnel"),
        pytest.param([ETH._replace(mac=bytes(20))], "eth0 is not Ethernet", id="InfiniBand"),
    ],
)
def test_no_way_out(chain: list[Link], why: str) -> None:
    with pytest.raises(NoWay, match=why):
        find_exit(ROUTE_7, chain, {"eth0", "vlan8"}, lambda program_id: True)


def test_program_is_asked_for() -> None:
    chain = [vlan(8, 7, 5), ETH._replace(program_id=44)]
    assert find_exit(ROUTE_7, chain, {"eth0"}, lambda program_id: program_id == 44)
    with pytest.raises(NoWay, match="our program is not on eth0"):
        find_exit(ROUTE_7, chain, {"eth0"}, lambda program_id: program_id == 43)


def route_message(*attributes: tuple[str, Any], family: int = socket.AF_INET, **fields: Any) -> Any:
    message = rtmsg()
    for field, value in {"family": family, "type": 1, **fields}.items():
        message[field] = value
    message["attrs"] = [list(attribute) for attribute in attributes]
    return over_the_wire(message, ROUTE)


@pytest.mark.parametrize(
    ("message", "route"),
    [
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_GATEWAY", "192.0.2.1")),
            Route(1, 7, bytes((192, 0, 2, 1)), 0, False),
            id="gateway",
        ),
        pytest.param(route_message(("RTA_OIF", 7)), Route(1, 7, None, 0, False), id="on the link"),
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_METRICS", {"attrs": [["RTAX_MTU", 1300]]})),
            Route(1, 7, None, 1300, False),
            id="MTU",
        ),
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_METRICS", {"attrs": [["RTAX_HOPLIMIT", 3]]})),
            Route(1, 7, None, 0, False),
            id="other metrics",
        ),
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_GATEWAY", "fe80::1"), family=socket.AF_INET6),
            Route(1, 7, b"\xfe\x80" + bytes(13) + b"\x01", 0, False),
            id="IPv6",
        ),
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_VIA", {"family": socket.AF_INET6, "addr": "fe80::1"})),
            Route(1, 7, b"\xfe\x80" + bytes(13) + b"\x01", 0, False),
            id="IPv4 by IPv6",
        ),
        pytest.param(
            route_message(("RTA_OIF", 7), ("RTA_ENCAP_TYPE", 1)), Route(1, 7, None, 0, True), id="MPLS"
        ),
        pytest.param(route_message(type=6), Route(6, 0, None, 0, False), id="blackhole"),
    ],
)
def test_route_is_read(message: Any, route: Route) -> None:
    assert read_route(message) == route


@pytest.mark.parametrize(
    ("route", "why"),
    [
        (ROUTE_7._replace(kind=2), "its route is local"),
        (ROUTE_7._replace(kind=7), "its route is unreachable"),
        (ROUTE_7._replace(kind=77), "its route is of kind 77"),
        (ROUTE_7._replace(adds_header=True), "adds a header"),
        (ROUTE_7._replace(ifindex=0), "no interface"),
    ],
)
def test_route_that_leads_nowhere(route: Route, why: str) -> None:
    check_route(ROUTE_7)
    with pytest.raises(NoWay, match=why):
        check_route(route)


def neighbour_message(state: int, mac: str | None = MAC, flags: int = 0, ext: int | None = None) -> Any:
    message = ndmsg()
    for field, value in (("family", socket.AF_INET), ("ifindex", 7), ("state", state), ("flags", flags)):
        message[field] = value
    attributes = {"NDA_DST": "192.0.2.1", "NDA_LLADDR": mac, "NDA_FLAGS_EXT": ext}
    message["attrs"] = [[name, value] for name, value in attributes.items() if value is not None]
    return over_the_wire(message, NEIGH)


@pytest.mark.parametrize(
    ("message", "is_usable", "needs_care"),
    [
        pytest.param(neighbour_message(0, None), False, True, id="none"),
        pytest.param(neighbour_message(1, None), False, False, id="incomplete"),
        pytest.param(neighbour_message(2), True, True, id="reachable"),
        pytest.param(neighbour_message(2, ext=1), True, False, id="reachable, managed"),
        pytest.param(neighbour_message(4, ext=1), True, False, id="stale, managed"),
        pytest.param(neighbour_message(4, ext=2), True, True, id="stale, locked but not managed"),
        pytest.param(neighbour_message(8), True, True, id="delay"),
        pytest.param(neighbour_message(16), True, True, id="probe"),
        pytest.param(neighbour_message(32), False, True, id="failed, its MAC still there"),
        pytest.param(neighbour_message(32, ext=1), False, True, id="failed, managed"),
        pytest.param(neighbour_message(64), False, False, id="noarp"),
        pytest.param(neighbour_message(128), True, False, id="permanent"),
        pytest.param(neighbour_message(2, flags=0x10), True, False, id="somebody else's"),
        pytest.param(neighbour_message(2, None), False, True, id="without a MAC"),
    ],
)
def test_neighbour(message: Any, is_usable: bool, needs_care: bool) -> None:
    neighbour = read_neighbour(message)
    assert neighbour.usable_mac == (bytes.fromhex(MAC.replace(":", "")) if is_usable else None)
    assert neighbour.needs_care is needs_care
    # An event is read by hand, and says the same.
    key = NeighbourKey(7, bytes((192, 0, 2, 1)))
    assert list(read_events(bytes(message.data))) == [NeighbourEvent(key, neighbour)]


def test_way_as_xdp_reads_it() -> None:
    exit_ = Exit("eth0", 7, bytes(range(6)), ((AD, 100), (Q, 200)), 1400)
    hop = Way(exit_, bytes(range(6, 12))).to_next_hop()
    wire = bytes(hop)
    assert wire[:4] == (7).to_bytes(4, "little")
    assert wire[4:16] == bytes((6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5))
    assert wire[16:24].hex() == "88a88100" + "006400c8"
    assert (hop.mtu, wire[28:]) == (1400, bytes(4))


def bytes_of(message: Any, kind: int) -> bytes:
    data = bytearray(message.data)
    data[4:6] = kind.to_bytes(2, "little")
    return bytes(data)


def test_events_are_read() -> None:
    host = route_message(("RTA_DST", "192.0.2.0"), ("RTA_OIF", 7), dst_len=24)
    default = route_message(("RTA_OIF", 7), family=socket.AF_INET6)
    gone = bytes_of(neighbour_message(2), NEIGH + 1)
    assert list(read_events(bytes(host.data) + bytes(default.data) + gone)) == [
        RouteEvent(bytes((192, 0, 2, 0)), 24),
        RouteEvent(bytes(16), 0),
        NeighbourEvent(NeighbourKey(7, bytes((192, 0, 2, 1))), ABSENT),
    ]
    for kind in (20, 21, 32, 33, 104, 105):  # addresses, rules, nexthop objects
        assert list(read_events(bytes_of(host, kind))) == [EverythingEvent()]
    assert list(read_events(bytes_of(host, 44))) == []
    absurd = route_message(("RTA_DST", "192.0.2.0"), dst_len=99)
    assert list(read_events(bytes(absurd.data))) == [EverythingEvent()]


def test_link_events_differ_where_ways_could() -> None:
    def event(*attributes: tuple[str, Any], **fields: Any) -> LinkEvent:
        (read,) = read_events(bytes(link_message(7, "eth0", *attributes, **fields).data))
        assert isinstance(read, LinkEvent)
        return read

    assert event() == event(("IFLA_TXQLEN", 5)), "statistics and the like"
    for changed in (
        event(flags=1),
        event(("IFLA_MTU", 1400)),
        event(("IFLA_ADDRESS", OTHER_MAC)),
        event(("IFLA_OPERSTATE", "DOWN")),
        event(("IFLA_IFNAME", "eth1")),
        event(("IFLA_XDP", {"attrs": [["IFLA_XDP_PROG_ID", 44]]})),
    ):
        assert changed != event()
    assert list(read_events(bytes_of(link_message(7, "eth0"), LINK + 1))) == [LinkEvent(7, ())]
    assert list(read_events(bytes(link_message(7, "eth0", family=socket.AF_BRIDGE).data))) == []


KINDS = st.sampled_from((16, 17, 20, 24, 25, 28, 29, 32, 104))


@given(KINDS, st.integers(0, 64), st.sampled_from((0, 2, 10, 7)), st.binary(max_size=80))
def test_any_bytes_are_read(kind: int, cut: int, family: int, body: bytes) -> None:
    length = (17 + len(body) - cut) & 0xFFFFFFFF
    header = length.to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)
    for event in read_events(header + bytes((family,)) + body):
        assert isinstance(event, NeighbourEvent | RouteEvent | LinkEvent | EverythingEvent)
        if isinstance(event, RouteEvent):
            assert event.length <= 8 * len(event.network)


def test_neighbour_that_is_not_there() -> None:
    assert Neighbour() == ABSENT
    assert ABSENT.usable_mac is None
    assert ABSENT.needs_care
