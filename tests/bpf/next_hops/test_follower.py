"""The follower itself: what it takes up and lets go, whom it asks, what it does when the kernel fails it."""

import asyncio
import logging
import os
import subprocess
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from relay.dataplane.bpf import next_hops, route_events, route_queries
from relay.dataplane.bpf.abi import MAX_NEXT_HOPS, NextHop
from relay.dataplane.bpf.next_hops import NextHops
from relay.dataplane.bpf.route_queries import RouteQueries
from relay.dataplane.bpf.ways import NeighbourKey
from tests.bpf.next_hops.follower import (
    BOTH,
    FAMILIES,
    FAR,
    NEAR,
    OTHER,
    OURS,
    WatchedMap,
    eventually,
    following,
    ip,
    key,
    mac_of,
    packed,
    quiet,
    speak,
)
from tests.e2e import namespaces

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.usefixtures("network", "only_events")]


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
        # no bound of the product's: its checks are seconds apart
        await table.until_to(FAR, "eth1", mac_of("eth1", there), within_s=10.0)
        ip(here, f"route del {FAR} via {OTHER}")
        await table.until_none(FAR, within_s=10.0)


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
