"""The map of next hops follows the kernel: real routes, neighbours and links, each change within a second."""

import asyncio
from ipaddress import ip_address

import pytest

from relay.dataplane.bpf.abi import NextHop
from tests.bpf.next_hops.follower import (
    FAMILIES,
    FAR,
    NEAR,
    NEAR_6,
    OTHER,
    OURS,
    WatchedMap,
    following,
    index_of,
    ip,
    key,
    mac_of,
    packed,
    quiet,
    speak,
)
from tests.e2e import namespaces

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.usefixtures("network", "only_events")]


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


async def test_end_that_comes_with_a_change_is_heard(table: WatchedMap) -> None:
    """asyncio.wait_for of Python 3.11 forgets its cancellation there, and the supervisor would not end."""
    async with following(table, NEAR) as follower:
        waiting = asyncio.create_task(follower._wait_for_change(float("inf"), float("inf")))
        await asyncio.sleep(0)
        follower._woken.set()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
