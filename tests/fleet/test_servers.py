"""Who has what, as nodes of a Cluster and Sentinels tell; either may tell anything."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from fleet.line import Found
from fleet.redis_client import Connector, Link, Node
from fleet.servers import SentinelServers, _read_slots_untrusted
from tests.fleet.bench import fleet_bench, flow, key_of
from tests.fleet.impostor import Serve, server_that
from tests.host.deadline import until
from tests.redis.server import RedisServer, redis_server

ASKED = Node("10.0.0.1", 7000)


def test_slots() -> None:
    slots = _read_slots_untrusted(
        [
            [0, 99, [b"10.0.0.2", 7000, b"id"], [b"10.0.0.3", 7000, b"a replica"]],
            [100, 16_383, [b"", 7001, b"id", []]],
        ],
        ASKED,
    )
    assert slots[0] == slots[99] == Node("10.0.0.2", 7000)
    assert slots[100] == slots[16_383] == Node("10.0.0.1", 7001)
    assert str(slots[0]) == "10.0.0.2:7000"


def test_a_node_that_does_not_know_its_address_has_no_slots() -> None:
    assert set(_read_slots_untrusted([[0, 16_383, [b"?", 7000]]], ASKED)) == {None}


@pytest.mark.parametrize(
    "reply",
    [
        None,
        5,
        b"OK",
        [],
        [5],
        [[0, 5]],
        [[0, 16_384, [b"a", 1]]],
        [[-1, 5, [b"a", 1]]],
        [[5, 0, [b"a", 1]]],
        [[0, 5, [b"a", 0]]],
        [[0, 5, [b"a", 65_536]]],
        [[0, 16_383, [b"a", 1]], [5, 5, [b"b", 1]]],
        [[0, 5, [b"\xff", 1]]],
        [[0, 5, [5, 1]]],
        [[b"0", 5, [b"a", 1]]],
        [[index, index, [b"%d" % index, 1]] for index in range(1001)],
    ],
)
def test_what_is_no_answer(reply: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, IndexError)):
        _read_slots_untrusted(reply, ASKED)


_REPLIES = st.recursive(
    st.integers(-1, 20_000) | st.binary(max_size=5) | st.none(), lambda inner: st.lists(inner, max_size=4)
)


@given(_REPLIES)
def test_whatever_is_told(reply: Any) -> None:
    try:
        slots = _read_slots_untrusted(reply, ASKED)
    except (ValueError, TypeError, AttributeError, IndexError):
        return
    assert len(slots) == 16_384


def sentinel_that_names(address: str) -> Serve:
    host, _, port = address.partition(":")
    answer = f"*2\r\n${len(host)}\r\n{host}\r\n${len(port)}\r\n{port}\r\n".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(answer if address else b"*-1\r\n")

    return serve


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def test_sentinels_are_asked_until_one_names_a_master(redis: RedisServer, tmp_path: Path) -> None:
    """One is gone, one is frozen, one knows nothing, and one still names the old master, now a replica."""
    with redis_server(tmp_path / "replica", "--replicaof", "127.0.0.1 1") as replica:
        async with (
            server_that(silence) as frozen,
            server_that(sentinel_that_names("")) as ignorant,
            server_that(sentinel_that_names(replica.url.split("/")[2])) as behind,
            server_that(sentinel_that_names(redis.url.split("/")[2])) as good,
        ):
            sentinels = f"127.0.0.1:1,{frozen},{ignorant},{behind},{good}"
            async with fleet_bench(f"redis+sentinel://{sentinels}/main", tmp_path, timeout_s=0.3) as bench:
                await bench.reaches("connected")
                bench.line.tell([flow().pack()])
                await bench.written(1)
                # The master dies: those that know no other are heard, and nobody waits for them.
                redis.kill()
                assert (await bench.ask([flow()]))[0].found is Found.UNAVAILABLE
                status = await bench.reaches("away")
                assert "no Sentinel names a master" in status["why"]
                redis.start()
                await bench.reaches("connected")


async def test_frozen_sentinels_are_passed_over_also_with_a_long_time_out(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        server_that(silence) as frozen,
        server_that(silence) as frozen_too,
        server_that(sentinel_that_names(redis.url.split("/")[2])) as good,
    ):
        url = f"redis+sentinel://{frozen},{frozen_too},{good}/main"
        async with fleet_bench(url, tmp_path, timeout_s=1.5) as bench:
            await bench.reaches("connected", timeout_s=6)


async def test_whoever_gives_up_waiting_for_a_sentinel_asks_the_next_one_first() -> None:
    asked: list[str] = []

    class Hanging:
        async def open_sentinel(self, node: Node) -> Link:
            asked.append(node.host)
            await asyncio.sleep(600)
            raise AssertionError

    sentinels = [Node("first", 1), Node("second", 1)]
    servers = SentinelServers(cast("Connector", Hanging()), sentinels, "main", timeout_s=5.0)
    for _ in range(2):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await servers.open(Node("main", 0))
    assert asked == ["first", "second"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Two masters with half of the slots each."""
    with redis_server(tmp_path / "probe") as probe:  # else it is the port + 10000, which may be none
        bus_ports = [str(probe.port), str(probe.port - 1)]
    options = (
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-require-full-coverage",
        "no",
    )
    with (
        redis_server(tmp_path / "first", *options, "--cluster-port", bus_ports[0]) as first,
        redis_server(tmp_path / "second", *options, "--cluster-port", bus_ports[1]) as second,
    ):
        first.cli("cluster", "addslotsrange", "0", "8191")
        second.cli("cluster", "addslotsrange", "8192", "16383")
        first.cli("cluster", "meet", second.host, str(second.port), bus_ports[1])
        yield [first, second]


async def test_a_cluster_of_which_a_part_dies(cluster: list[RedisServer], tmp_path: Path) -> None:
    first, second = cluster
    await until(
        lambda: all("cluster_state:ok" in node.cli("cluster", "info") for node in cluster), "a Cluster"
    )
    flows = [flow(index) for index in range(100)]
    async with fleet_bench(f"redis+cluster://{first.host}:{first.port}", tmp_path) as bench:
        status = await bench.reaches("connected")
        bench.line.tell(record.pack() for record in flows)
        await bench.written(len(flows))
        halves = [int(node.cli("dbsize")) for node in cluster]
        assert sum(halves) == len(flows)
        assert {finding.found for finding in await bench.ask(flows)} == {Found.HIT}
        second.freeze()
        for _ in range(3):
            found = Counter(finding.found for finding in await bench.ask(flows))
            assert found == {Found.HIT: halves[0], Found.UNAVAILABLE: halves[1]}
        status = await bench.reaches("degraded")
        assert str(second.port) in status["why"]
        second.thaw()
        await bench.reaches("connected")
        await bench.hears_again()
        assert {finding.found for finding in await bench.ask(flows)} == {Found.HIT}


async def test_slots_that_move(cluster: list[RedisServer], tmp_path: Path) -> None:
    first, second = cluster
    await until(
        lambda: all("cluster_state:ok" in node.cli("cluster", "info") for node in cluster), "a Cluster"
    )
    async with fleet_bench(f"redis+cluster://{second.host}:{second.port}", tmp_path) as bench:
        await bench.reaches("connected")
        await bench.hears_again()
        first.cli("cluster", "bumpepoch")
        flows = [flow(index) for index in range(400)]
        slots = sorted({key_slot(key_of(record).encode()) for record in flows})
        moving = [slot for slot in slots if slot > 8191][:20]
        for slot in moving:
            for node in (second, first):
                node.cli("cluster", "setslot", str(slot), "node", first.cli("cluster", "myid"))
        # What goes to the wrong node tells that slots have moved, and everything is told again.
        bench.line.tell(record.pack() for record in flows)
        await bench.hears_again()
        bench.line.tell(record.pack() for record in flows)
        for _ in range(20):
            found = Counter(finding.found for finding in await bench.ask(flows))
            if found == {Found.HIT: len(flows)}:
                break
            await asyncio.sleep(0.1)
        assert found == {Found.HIT: len(flows)}
        assert (await bench.counts())["moved"]
