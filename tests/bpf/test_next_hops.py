"""The map of next hops follows the kernel: real routes, neighbours and links, each change within a second."""

import asyncio
import ctypes
import logging
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from relay.dataplane.bpf import next_hops, route_events, route_queries
from relay.dataplane.bpf.abi import MAPS, MAX_NEXT_HOPS, Host, NextHop
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.next_hops import NextHops
from relay.dataplane.bpf.route_queries import RouteQueries
from relay.dataplane.bpf.ways import NeighbourKey
from tests.bpf.conftest import Network
from tests.bpf.kernel_objects import make_map
from tests.e2e import namespaces
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.usefixtures("network", "only_events")]

FOLLOWED_WITHIN_S = 1.0
BOTH = ("eth0", "eth1")
NEAR, NEAR_6 = "198.51.100.2", "fd00:0::2"
OTHER, OTHER_6 = "203.0.113.2", "fd00:1::2"
FAR, FAR_6 = "192.0.2.7", "2001:db8:7::7"
OURS = {4: "198.51.100.1", 6: "fd00:0::1"}
FAMILIES = pytest.mark.parametrize(
    ("near", "other", "far"),
    [pytest.param(NEAR, OTHER, FAR, id="IPv4"), pytest.param(NEAR_6, OTHER_6, FAR_6, id="IPv6")],
)


class WatchedMap(BpfMap):
    """Tells that it was written."""

    def __init__(self, max_entries: int = 64) -> None:
        layout = MAPS["next_hops"]
        key_size, value_size = ctypes.sizeof(layout.key), ctypes.sizeof(NextHop)
        super().__init__(make_map("next_hops", layout.kind.number, key_size, value_size, max_entries), layout)
        self.written = asyncio.Event()

    def put(self, key: Any, value: Any) -> None:
        super().put(key, value)
        self.written.set()

    def delete(self, key: Any) -> bool:
        was_there = super().delete(key)
        self.written.set()
        return was_there

    def hop(self, host: str) -> NextHop | None:
        """The entry of a host."""
        hop: NextHop | None = self.get(key(host))
        return hop

    async def until(
        self, host: str, is_so: Callable[[NextHop | None], bool], within_s: float = FOLLOWED_WITHIN_S
    ) -> None:
        """Wait for the entry of a host to be so."""
        async with asyncio.timeout(within_s):
            while not is_so(self.hop(host)):
                self.written.clear()
                await self.written.wait()

    async def until_to(
        self, host: str, interface: str, mac: str, within_s: float = FOLLOWED_WITHIN_S
    ) -> None:
        """Wait for an entry that leads there, out of an interface of this network namespace."""

        def is_so(hop: NextHop | None) -> bool:
            if hop is None or hop.path.ifindex != index_of(interface):
                return False
            return (bytes(hop.path.to_mac).hex(":"), bytes(hop.path.from_mac).hex(":")) == (
                mac,
                mac_of(interface),
            )

        await self.until(host, is_so, within_s)

    async def until_none(self, host: str, within_s: float = FOLLOWED_WITHIN_S) -> None:
        """Wait for there to be no entry."""
        await self.until(host, lambda hop: hop is None, within_s)


def key(host: str) -> Host:
    return Host((ctypes.c_uint8 * 16)(*Address(packed(host), 0).mapped))


def packed(host: str) -> bytes:
    return ip_address(host).packed


def ip(host: namespaces.Host, command: str) -> str:
    """``ip`` on a host."""
    return subprocess.run(
        ["ip", "-n", host.name, *command.split()], check=True, capture_output=True, text=True
    ).stdout


async def eventually(question: Callable[[], bool], within_s: float = FOLLOWED_WITHIN_S) -> None:
    """Ask until the answer is yes, where nothing tells."""
    async with asyncio.timeout(within_s):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def quiet() -> None:
    """Let what earlier changes set off end, so that nothing but the next one's event leads to a look-up."""
    await asyncio.sleep(0.2)


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def mac_of(interface: str, host: namespaces.Host | None = None) -> str:
    where = ["-n", host.name] if host else []
    shown = subprocess.run(
        ["ip", *where, "-o", "link", "show", interface], check=True, capture_output=True, text=True
    ).stdout
    return shown.split("link/ether ")[1].split()[0]


def speak(host: namespaces.Host, to: str) -> None:
    """A datagram from there, which makes its neighbours know its MAC."""
    with host, socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (to, 9))


@pytest.fixture
def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by the check that comes every few seconds anyway."""
    monkeypatch.setattr(next_hops, "_CHECK_INTERVAL_S", 1000.0)


@pytest.fixture
def here(network: Network) -> namespaces.Host:
    """With IPv6 as IPv4 is there: usable at once, and kept, as a daemon of the network would, while a link is down."""
    for host, end in ((network.here, 1), (network.there, 2)):
        for number, interface in enumerate(BOTH):
            with host:
                for name, value in (("keep_addr_on_down", "1"), ("accept_dad", "0"), ("dad_transmits", "0")):
                    Path(f"/proc/sys/net/ipv6/conf/{interface}/{name}").write_text(value)
            ip(host, f"link set {interface} down")
            ip(host, f"link set {interface} up")
            ip(host, f"address add fd00:{number}::{end}/64 dev {interface} nodad")
    with network.here:
        # As routing daemons set it: routes are not told of again when their nexthop changes.
        Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text("0")
    return network.here


@pytest.fixture
def there(network: Network) -> namespaces.Host:
    return network.there


@pytest.fixture
def table(here: namespaces.Host) -> Iterator[WatchedMap]:
    made = WatchedMap()
    yield made
    made.close()


class Follower(NextHops):
    """One that runs, and what it told."""

    def __init__(self, table: BpfMap, **options: Any) -> None:
        self.mtus: list[int] = []
        super().__init__(
            table, options.pop("interfaces", BOTH), options.pop("sources", {}), self.mtus.append, **options
        )

    def why(self, host: str) -> str:
        return str(next(row["why"] for row in self.describe() if row["host"] == str(ip_address(host))))

    async def until_why(self, host: str, words: str, within_s: float = FOLLOWED_WITHIN_S) -> None:
        """Wait for it to say why there is no entry."""
        await eventually(lambda: words in self.why(host), within_s)


@asynccontextmanager
async def following(table: BpfMap, *wanted: str, **options: Any) -> AsyncIterator[Follower]:
    follower = Follower(table, **options)
    follower.want([packed(host) for host in wanted])
    running = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@FAMILIES
async def test_host_on_the_link(
    table: WatchedMap, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    async with following(table, near) as follower:
        await table.until_to(near, "eth0", mac_of("eth0", there))
        hop = table.hop(near)
        assert hop is not None
        assert hop.mtu == 1500
        assert (list(hop.path.tag_proto), list(hop.path.tag_tci)) == ([0, 0], [0, 0])
        assert follower.describe() == [
            {
                "host": str(ip_address(near)),
                "interface": "eth0",
                "mac": mac_of("eth0", there),
                "vlans": [],
                "mtu": 1500,
                "why": "",
            }
        ]
        follower.want([packed(other)])
        await table.until_to(other, "eth1", mac_of("eth1", there))


@FAMILIES
async def test_neighbour_changes_its_mac(
    table: WatchedMap, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    async with following(table, near):
        await table.until_to(near, "eth0", mac_of("eth0", there))
        ip(there, "link set eth0 address 02:00:00:00:00:77")
        speak(there, OURS[ip_address(near).version])
        await table.until_to(near, "eth0", "02:00:00:00:00:77")


@FAMILIES
async def test_our_mac_changes(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    async with following(table, near):
        await table.until_to(near, "eth0", mac_of("eth0", there))
        ip(here, "link set eth0 address 02:00:00:00:00:66")
        assert mac_of("eth0") == "02:00:00:00:00:66"
        await table.until_to(near, "eth0", mac_of("eth0", there))


@FAMILIES
async def test_gateway_and_interface_of_a_route_change(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    second = near.removesuffix("2") + "22"
    length = 64 if ":" in near else 24
    ip(there, f"address add {second}/{length} dev eth0" + (" nodad" if ":" in near else ""))
    async with following(table, far) as follower:
        await follower.until_why(far, "it has no route")
        ip(here, f"route add {far} via {near}")
        await table.until_to(far, "eth0", mac_of("eth0", there))
        ip(here, f"route replace {far} via {other}")
        await table.until_to(far, "eth1", mac_of("eth1", there))
        # Another gateway on another interface, of a wider route.
        ip(here, f"route del {far}")
        await table.until_none(far)
        ip(here, f"route add default via {second}")
        await table.until_to(far, "eth0", mac_of("eth0", there))
        ip(here, "neigh add " + f"{near.removesuffix('2')}33 lladdr 02:00:00:00:00:33 dev eth0")
        ip(here, f"route replace default via {near.removesuffix('2')}33")
        await table.until_to(far, "eth0", "02:00:00:00:00:33")


@FAMILIES
async def test_rule_changes(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    """Policy routing by our fleet address."""
    version = ip_address(near).version
    flag = "-6 " if version == 6 else ""
    ip(here, f"{flag}route add default via {near}")
    ip(here, f"{flag}route add default via {other} table 100")
    async with following(table, far, sources={version: packed(OURS[version])}):
        await table.until_to(far, "eth0", mac_of("eth0", there))
        await quiet()
        ip(here, f"{flag}rule add from {OURS[version]} lookup 100")
        await table.until_to(far, "eth1", mac_of("eth1", there))
        await quiet()
        ip(here, f"{flag}rule del from {OURS[version]} lookup 100")
        await table.until_to(far, "eth0", mac_of("eth0", there))


@FAMILIES
@pytest.mark.parametrize("end", ["ours", "theirs"])
async def test_link_flaps(
    table: WatchedMap,
    here: namespaces.Host,
    there: namespaces.Host,
    end: str,
    near: str,
    other: str,
    far: str,
) -> None:
    async with following(table, near) as follower:
        await table.until_to(near, "eth0", mac_of("eth0", there))
        for _ in range(2):
            ip(here if end == "ours" else there, "link set eth0 down")
            await table.until_none(near)
            if end == "theirs":
                assert follower.why(near) == "eth0 is down or has no carrier"
            ip(here if end == "ours" else there, "link set eth0 up")
            await table.until_to(near, "eth0", mac_of("eth0", there))


async def test_default_route_is_taken_while_a_link_is_down(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    """IPv4 routes go with their link, and nobody is told of each."""
    ip(here, f"route add {FAR} via {NEAR} metric 5")
    ip(here, f"route add default via {OTHER}")
    async with following(table, FAR):
        await table.until_to(FAR, "eth0", mac_of("eth0", there))
        ip(here, "link set eth0 down")
        await table.until_to(FAR, "eth1", mac_of("eth1", there))


async def test_ipv4_by_an_ipv6_gateway(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    ip(here, f"route add {FAR} via inet6 {NEAR_6} dev eth0 mtu 1300")
    async with following(table, FAR):
        await table.until_to(FAR, "eth0", mac_of("eth0", there))
        hop = table.hop(FAR)
        assert hop is not None
        assert hop.mtu == 1300


async def test_nexthop_object_changes(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    ip(here, f"nexthop add id 5 via {NEAR} dev eth0")
    ip(here, f"route add {FAR} nhid 5")
    async with following(table, FAR):
        await table.until_to(FAR, "eth0", mac_of("eth0", there))
        await quiet()
        ip(here, f"nexthop replace id 5 via {OTHER} dev eth1")
        await table.until_to(FAR, "eth1", mac_of("eth1", there))


async def test_interface_comes_back_as_another(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    async with following(table, NEAR) as follower:
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        index = index_of("eth0")
        ip(here, "link del eth0")
        await table.until_none(NEAR)
        # As pyroute2's own loop cannot run in this one.
        await asyncio.to_thread(
            namespaces.connect, here, "eth0", there, "eth0", [("198.51.100.1", "198.51.100.2", 24)]
        )
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        assert index_of("eth0") != index
        assert follower.mtus == [1500]


async def test_mtu(table: WatchedMap, here: namespaces.Host) -> None:
    async with following(table, NEAR) as follower:
        await table.until(NEAR, lambda hop: hop is not None and hop.mtu == 1500)
        assert follower.mtus == [1500]
        ip(here, "link set eth0 mtu 1400")
        await table.until(NEAR, lambda hop: hop is not None and hop.mtu == 1400)
        ip(here, "route replace 198.51.100.0/24 dev eth0 src 198.51.100.1 mtu 1350")
        await table.until(NEAR, lambda hop: hop is not None and hop.mtu == 1350)
        assert follower.mtus == [1500, 1400]
    async with following(table, NEAR, interfaces=("eth7",)) as follower:
        await table.until_none(NEAR)
        assert follower.mtus == [0]


@pytest.mark.parametrize(
    ("command", "host", "why"),
    [
        pytest.param("", FAR, "it has no route", id="no route"),
        pytest.param(f"route add blackhole {FAR}", FAR, "its route is a blackhole", id="blackhole"),
        pytest.param(f"route add unreachable {FAR}", FAR, "its route is unreachable", id="unreachable"),
        pytest.param(f"route add prohibit {FAR}", FAR, "its route is prohibited", id="prohibit"),
        pytest.param(f"route add throw {FAR}", FAR, "it has no route", id="throw"),
        pytest.param(f"route add local {FAR} dev lo", FAR, "its route is local", id="local"),
        pytest.param("", OURS[4], "its route is local", id="ourselves"),
        pytest.param("", "127.0.0.1", "its route is local", id="loopback"),
        pytest.param("", "198.51.100.255", "its route is broadcast", id="broadcast"),
        pytest.param("route add 224.0.0.0/4 dev eth0", "224.0.0.9", "its route is multicast", id="multicast"),
        pytest.param("", OTHER, "eth1, which is not one of relay.interfaces", id="interface without us"),
        pytest.param(f"route add {FAR} dev lo", FAR, "lo is not Ethernet", id="no Ethernet"),
        pytest.param("", "198.51.100.99", "198.51.100.99 does not answer on eth0", id="silent neighbour"),
    ],
)
async def test_no_way(table: WatchedMap, here: namespaces.Host, command: str, host: str, why: str) -> None:
    if command:
        ip(here, command)
    # A dead predecessor thought otherwise.
    table.put(key(host), NextHop())
    async with following(table, interfaces=("eth0",)) as follower:
        await table.until_none(host)
        await follower.until_why(host, why)


async def test_source_that_is_not_here_has_no_way(table: WatchedMap) -> None:
    async with following(table, NEAR, sources={4: packed("198.51.100.9")}) as follower:
        await follower.until_why(NEAR, "it has no route")


async def test_wildcard_source_says_nothing(table: WatchedMap, there: namespaces.Host) -> None:
    async with following(table, NEAR, sources={4: bytes(4), 6: bytes(16)}):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))


async def test_interface_without_our_program(table: WatchedMap) -> None:
    asked = []

    def is_ours(program_id: int) -> bool:
        asked.append(program_id)
        return False

    async with following(table, NEAR, is_ours=is_ours) as follower:
        await follower.until_why(NEAR, "our program is not on eth0")
    assert set(asked) == {0}


async def test_entries_outlive_the_follower_and_are_taken_up(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    async with following(table, NEAR, FAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
    assert table.hop(NEAR) is not None
    hop = table.hop(NEAR)
    ip(there, "link set eth0 address 02:00:00:00:00:77")
    speak(there, OURS[4])
    assert bytes(table.hop(NEAR) or b"") == bytes(hop or b"")
    async with following(table):
        await table.until_to(NEAR, "eth0", "02:00:00:00:00:77")


async def test_forgotten_host_leaves(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host
) -> None:
    mapped = b"\0" * 10 + b"\xff\xff" + packed(NEAR)
    async with following(table, OTHER) as follower:
        follower.want([mapped])
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        await table.until_to(OTHER, "eth1", mac_of("eth1", there))
        assert "managed" in ip(here, f"neigh show {OTHER} dev eth1")
        follower.forget_all_but([mapped])
        assert table.hop(OTHER) is None
        assert table.hop(NEAR) is not None
        assert [row["host"] for row in follower.describe()] == [NEAR]
        # Its neighbour is let go of with the next look-ups.
        ip(here, f"route add {FAR} via {NEAR}")
        follower.want([packed(FAR)])
        await table.until(FAR, lambda hop: hop is not None)
        await eventually(lambda: "managed" not in ip(here, f"neigh show {OTHER} dev eth1"))
        assert "managed" in ip(here, f"neigh show {NEAR} dev eth0")
    await follower.release()
    assert "managed" not in ip(here, f"neigh show {NEAR} dev eth0")


async def test_neighbour_that_somebody_vouches_for_is_left_alone(
    table: WatchedMap, here: namespaces.Host
) -> None:
    ip(here, f"neigh replace {NEAR} lladdr 02:00:00:00:00:33 dev eth0 nud permanent")
    ip(here, f"neigh replace {OTHER} lladdr 02:00:00:00:00:44 dev eth1 nud reachable extern_learn")
    async with following(table, NEAR, OTHER):
        await table.until_to(NEAR, "eth0", "02:00:00:00:00:33")
        await table.until_to(OTHER, "eth1", "02:00:00:00:00:44")
        assert "PERMANENT" in ip(here, f"neigh show {NEAR} dev eth0")
        shown = ip(here, f"neigh show {OTHER} dev eth1")
        assert "extern_learn" in shown
        assert "managed" not in shown
        ip(here, f"neigh replace {NEAR} lladdr 02:00:00:00:00:55 dev eth0 nud permanent")
        await table.until_to(NEAR, "eth0", "02:00:00:00:00:55")


@FAMILIES
async def test_neighbour_that_died(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    async with following(table, near):
        await table.until_to(near, "eth0", mac_of("eth0", there))
        subnet = f"{near}/64" if ":" in near else f"{near}/24"
        ip(there, f"address del {subnet} dev eth0")
        ip(here, f"neigh change {near} dev eth0 nud failed")
        await table.until_none(near)
        ip(there, f"address add {subnet} dev eth0" + (" nodad" if ":" in near else ""))
        await table.until_to(near, "eth0", mac_of("eth0", there), within_s=3.0)


@pytest.mark.slow
@FAMILIES
async def test_neighbour_that_comes_late(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, near: str, other: str, far: str
) -> None:
    """The kernel gives up after three seconds, and is asked again."""
    late = near.removesuffix("2") + "44"
    async with following(table, late) as follower:
        await follower.until_why(late, "does not answer")
        await eventually(lambda: "FAILED" in ip(here, f"neigh show {late} dev eth0"), within_s=10.0)
        is_6 = ":" in near
        ip(there, f"address add {late}/{64 if is_6 else 24} dev eth0" + (" nodad" if is_6 else ""))
        await table.until_to(late, "eth0", mac_of("eth0", there), within_s=3.0)


@pytest.mark.slow
async def test_kernel_that_manages_no_neighbours(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 5.16: a neighbour that nobody heard of for long is verified all the same."""
    monkeypatch.setattr(route_queries, "NTF_EXT_MANAGED", 0)
    async with following(table, NEAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        assert "managed" not in ip(here, f"neigh show {NEAR} dev eth0")
        await quiet()
        ip(here, f"neigh change {NEAR} dev eth0 nud stale")
        await eventually(lambda: "STALE" not in ip(here, f"neigh show {NEAR} dev eth0"), within_s=3.0)
        assert table.hop(NEAR) is not None


async def test_more_hosts_than_there_is_room_for(table: WatchedMap, caplog: pytest.LogCaptureFixture) -> None:
    follower = NextHops(table, BOTH, {}, lambda mtu: None)
    follower.want([bytes((10, 0)) + number.to_bytes(2, "big") for number in range(MAX_NEXT_HOPS + 9)])
    follower.want([packed(NEAR)])
    assert len(follower.describe()) == MAX_NEXT_HOPS
    assert [record.message for record in caplog.records] == [
        "more than 4096 hosts of transceivers: workers serve the others"
    ]


async def test_map_that_is_full_does_not_end_it(here: namespaces.Host, there: namespaces.Host) -> None:
    table = WatchedMap(max_entries=1)
    async with following(table, NEAR) as follower:
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        follower.want([packed(OTHER)])
        await follower.until_why(OTHER, "the map takes no entry for it")
        assert table.hop(NEAR) is not None
        follower.forget_all_but([packed(OTHER)])
        ip(here, "link set eth1 mtu 1400")
        await table.until_to(OTHER, "eth1", mac_of("eth1", there))
    table.close()


def storm(host: namespaces.Host, count: int) -> None:
    """Strangers' neighbour entries, one event each."""
    lines = (
        f"neigh replace 198.51.{100 + i // 250}.{i % 250 + 5} lladdr 02:00:00:00:01:01 dev eth0\n"
        for i in range(count)
    )
    subprocess.run(
        ["ip", "-n", host.name, "-batch", "-"],
        input="".join(lines),
        text=True,
        check=True,
        capture_output=True,
    )


async def test_events_of_strangers_cost_no_question(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(table, NEAR) as follower:
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        # A fence: what came before has been looked up.
        ip(here, "link set eth0 mtu 1400")
        await table.until(NEAR, lambda hop: hop is not None and hop.mtu == 1400)
        follower.want([packed(OTHER)])
        await table.until_to(OTHER, "eth1", mac_of("eth1", there))
        asked: list[bytes] = []
        route = RouteQueries.route

        async def counting(self: RouteQueries, host: bytes, source: bytes | None) -> Any:
            asked.append(host)
            return await route(self, host, source)

        monkeypatch.setattr(RouteQueries, "route", counting)
        storm(here, 500)
        ip(here, f"route add {FAR}/24 dev eth0".replace("7/", "0/"))
        ip(here, f"route add {OTHER} dev eth1 mtu 1300")
        await table.until(OTHER, lambda hop: hop is not None and hop.mtu == 1300)
    assert set(asked) == {packed(OTHER)}


async def test_events_that_were_lost(
    table: WatchedMap,
    here: namespaces.Host,
    there: namespaces.Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(route_events, "_BUFFER_BYTES", 1)
    async with following(table, NEAR, FAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        # The loop does not run meanwhile, and the buffer is full before the route comes.
        storm(here, 200)
        ip(here, f"route add {FAR} via {OTHER}")
        await table.until_to(FAR, "eth1", mac_of("eth1", there))
        storm(here, 200)
        ip(here, "link set eth0 down")
        await table.until_none(NEAR)
        # And what is told later is heard.
        ip(here, "link set eth0 up")
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))


async def test_what_no_event_tells_is_found(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_hops, "_CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(route_events, "_GROUPS", ())
    monkeypatch.setattr(route_events, "_NEXTHOP", 1000)
    async with following(table, NEAR, FAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        ip(here, f"route add {FAR} via {OTHER}")
        await table.until_to(FAR, "eth1", mac_of("eth1", there))
        ip(here, f"route del {FAR} via {OTHER}")
        await table.until_none(FAR)


async def test_kernel_that_cannot_be_followed(
    table: WatchedMap,
    there: namespaces.Host,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No entry is better than one that nobody keeps true."""
    monkeypatch.setattr(next_hops, "_RETRY_S", 0.01)
    table.put(key(NEAR), NextHop())
    attempts: list[None] = []
    subscribe = route_events.RouteEvents

    def refuse(*arguments: Any) -> Any:
        attempts.append(None)
        if len(attempts) < 5:
            raise OSError(24, os.strerror(24))
        return subscribe(*arguments)

    monkeypatch.setattr(next_hops, "RouteEvents", refuse)
    async with following(table):
        await table.until_none(NEAR)
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
    errors = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert errors == [
        "routes cannot be followed: [Errno 24] Too many open files; the workers serve every flow until they can be"
    ]


async def test_subscription_that_ends(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_hops, "_RETRY_S", 0.01)
    made: list[route_events.RouteEvents] = []
    subscribe = route_events.RouteEvents

    def keep(*arguments: Any) -> Any:
        made.append(subscribe(*arguments))
        return made[-1]

    monkeypatch.setattr(next_hops, "RouteEvents", keep)
    async with following(table, NEAR, FAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))

        class Broken:
            def recv(self, size: int) -> bytes:
                raise OSError(5, "broken")

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        real = made[0]._socket
        monkeypatch.setattr(made[0], "_socket", Broken())
        ip(here, f"route add {FAR} via {OTHER}")
        await table.until_none(NEAR)
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        await table.until_to(FAR, "eth1", mac_of("eth1", there))
    assert len(made) == 2


async def test_answer_that_never_comes(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_hops, "_RETRY_S", 0.01)
    monkeypatch.setattr(route_queries, "_ANSWER_S", 0.2)
    table.put(key(NEAR), NextHop())
    ask = AsyncIPRoute.neigh

    async def silent(self: Any, *arguments: Any, **options: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(AsyncIPRoute, "neigh", silent)
    async with following(table):
        await table.until_none(NEAR)
        monkeypatch.setattr(AsyncIPRoute, "neigh", ask)
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))


@pytest.mark.parametrize("is_known", [True, False], ids=["known neighbour", "new neighbour"])
async def test_neighbour_that_changes_while_it_is_asked_for(
    table: WatchedMap,
    here: namespaces.Host,
    there: namespaces.Host,
    monkeypatch: pytest.MonkeyPatch,
    is_known: bool,
) -> None:
    """What the kernel tells is read before an answer that is older."""
    ask, macs = RouteQueries.neighbour, ["02:00:00:00:00:88"]
    host = "198.51.100.88"
    ip(here, f"neigh replace {host} lladdr 02:00:00:00:00:77 dev eth0 nud permanent")

    async def slow(self: RouteQueries, neighbour: NeighbourKey) -> Any:
        answer = await ask(self, neighbour)
        if macs:
            ip(here, f"neigh replace {host} lladdr {macs.pop()} dev eth0 nud permanent")
            told = asyncio.Event()
            # The loop reads what can be read before it calls this.
            asyncio.get_running_loop().call_later(0.05, told.set)
            await told.wait()
        return answer

    async with following(table, *([host] if is_known else [])) as follower:
        if is_known:
            await table.until_to(host, "eth0", "02:00:00:00:00:77")
        monkeypatch.setattr(RouteQueries, "neighbour", slow)
        follower.want([packed(host)])
        ip(here, "link set eth0 mtu 1400")
        await table.until_to(host, "eth0", "02:00:00:00:00:88")


async def test_neighbour_that_goes_while_it_is_asked_for(
    table: WatchedMap, here: namespaces.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to be gone, as it was known to be, before the answer that it is there."""
    ask, host, times = RouteQueries.neighbour, "198.51.100.88", [1]

    async def slow(self: RouteQueries, neighbour: NeighbourKey) -> Any:
        answer = await ask(self, neighbour)
        if answer.usable_mac and times:
            times.pop()
            ip(here, f"neigh del {host} dev eth0")
            await quiet()
        return answer

    async with following(table, host) as follower:
        await follower.until_why(host, "does not answer")
        monkeypatch.setattr(RouteQueries, "neighbour", slow)
        ip(here, f"neigh replace {host} lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
        await table.until_to(host, "eth0", "02:00:00:00:00:77")
        await table.until_none(host)


async def test_changes_are_logged(
    table: WatchedMap, here: namespaces.Host, there: namespaces.Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "relay.dataplane.bpf.next_hops")
    async with following(table, NEAR):
        await table.until_to(NEAR, "eth0", mac_of("eth0", there))
        ip(there, "link set eth0 down")
        await table.until_none(NEAR)
    told = [record.message for record in caplog.records]
    assert told[-2:] == [
        f"{NEAR}: by eth0 to {mac_of('eth0', there)}, MTU 1500",
        f"{NEAR}: by way of the workers: eth0 is down or has no carrier",
    ]
