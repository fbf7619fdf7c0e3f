"""Lanes: one pipeline at a time, what waits shares the next, nothing waits for a server that is believed dead."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from fleet.flow_cache import CacheRules, FlowReads, FlowWrites, unix_s
from fleet.lane import Lane, LaneRules, Lanes
from fleet.line import AgentLine, Found, RelayLine, open_line
from fleet.redis_client import Command, Link, LinkError, Node, Reply, Trouble
from tests.fleet.bench import KEYS, fleet_bench, flow, key_of
from tests.host.deadline import until
from tests.redis.server import RedisServer
from wire.address import Address
from wire.errors import WireError
from wire.flow_record import seal_flow

MAX_COMMANDS = 512
NODE = Node("redis", 6379)
Answer = Callable[[Sequence[Command]], list[Reply]]


class FakeServers:
    """One server that answers as told; ``opened`` and ``pipelines`` are what it saw."""

    def __init__(self) -> None:
        self.nodes = frozenset({NODE})
        self.error = ""
        self.opened = 0
        self.doubts = 0
        self.pipelines: list[list[Command]] = []
        self.answer: Answer = lambda commands: [b"OK"] * len(commands)
        self.hangs = False
        self.we_are_late = False

    def node_of(self, key: bytes) -> Node | None:
        return NODE

    async def open(self, node: Node) -> Link:
        self.opened += 1
        return FakeLink(self)

    def doubt(self) -> None:
        self.doubts += 1

    async def refresh(self) -> None: ...

    async def follow(self) -> None: ...

    @property
    def work(self) -> list[list[Command]]:
        """Without PINGs."""
        return [pipeline for pipeline in self.pipelines if pipeline != [("PING",)]]


class FakeLink(Link):
    def __init__(self, servers: FakeServers) -> None:
        self._servers = servers

    async def execute(self, commands: Sequence[Command]) -> list[Reply]:
        self._servers.pipelines.append(list(commands))
        await asyncio.sleep(0)
        if self._servers.hangs:
            await asyncio.sleep(60)
        if self._servers.we_are_late:
            time.sleep(0.15)  # noqa: ASYNC251
            await asyncio.sleep(0)
        return self._servers.answer(commands)

    async def is_stale(self) -> bool:
        return False

    def close(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.servers = FakeServers()
        self.counts = Counter[str]()
        self.returns = 0
        rules = CacheRules(keys=KEYS, cluster_id=1, ttl_s=180)
        self.flow_writes = FlowWrites(rules, self.counts)
        self.flow_reads = FlowReads(rules, self.counts)
        self.writes: Lanes[bytes] = Lanes(self.servers, lambda node: self._lane(node, self.flow_writes))
        self.reads: Lanes[Any] = Lanes(self.servers, lambda node: self._lane(node, self.flow_reads))

    def _lane(self, node: Node, work: Any) -> Lane[Any]:
        def on_return() -> None:
            self.returns += 1

        return Lane(
            node,
            self.servers,
            work,
            LaneRules(deadline_s=0.1, max_commands=MAX_COMMANDS),
            self.counts,
            on_return,
        )

    def refuse(self, kind: Trouble) -> None:
        def answer(commands: Sequence[Command]) -> list[Reply]:
            return [b"PONG" if command == ("PING",) else LinkError(kind, "no") for command in commands]

        self.servers.answer = answer


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.writes.close()
    await bench.reads.close()


async def test_what_waits_shares_a_pipeline_and_the_newest_counts(bench: Bench) -> None:
    bench.writes.follow()
    bench.flow_writes.tell(bench.writes, [flow(index) for index in range(600)])
    bench.flow_writes.tell(bench.writes, [flow(0), flow(0)])
    await until(lambda: bench.counts["written"] == 600, "all are written")
    assert [len(pipeline) for pipeline in bench.servers.work] == [MAX_COMMANDS, 600 - MAX_COMMANDS]
    assert bench.servers.opened == 1
    assert bench.returns == 1


async def test_what_waits_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.flow_cache.MAX_PENDING_WRITES", 100)
    monkeypatch.setattr("fleet.flow_cache.MAX_QUESTIONS", 10)
    bench.servers.hangs = True
    bench.writes.follow()
    bench.reads.follow()
    bench.flow_writes.tell(bench.writes, [flow(index) for index in range(150)])
    assert len(bench.writes) == 100
    assert bench.counts["unwritten"] == 50
    relay_end, agent_end = open_line()
    with relay_end, agent_end:
        bench.flow_reads.ask(bench.reads, AgentLine(agent_end), [flow(index).name for index in range(30)])
        assert len(bench.reads) == 10
        findings, _ = RelayLine(relay_end).receive()
        assert [finding.found for finding in findings] == [Found.UNAVAILABLE] * 20
        # Nor does anything wait for long.
        await until(lambda: len(RelayLine(relay_end).receive()[0]) == 10, "the others' answers", 2)
    await until(lambda: bench.counts["unwritten"] == 150, "they are given up", 2)
    assert len(bench.writes) == len(bench.reads) == 0


async def test_a_name_that_is_none(bench: Bench) -> None:
    with pytest.raises(WireError):
        bench.flow_reads.ask(bench.reads, None, [b"short"])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Trouble.REFUSED, Trouble.AWAY])
async def test_a_probe_tries_what_was_refused(bench: Bench, kind: Trouble) -> None:
    """A PING would be answered by a server that is full."""
    bench.writes.follow()
    bench.refuse(kind)
    bench.flow_writes.tell(bench.writes, [flow()])
    (lane,) = bench.writes
    await until(lambda: not lane.breaker.is_closed, "it opens")
    bench.flow_writes.tell(bench.writes, [flow(1)])
    assert bench.counts["unwritten"] == 2
    await until(lambda: len(bench.servers.work) >= 3, "probes")
    assert not lane.is_working
    assert {command[0] for pipeline in bench.servers.work for command in pipeline} == {"SET"}
    with pytest.raises(LinkError):
        await bench.writes.execute(b"key", [("PING",)])
    returns = bench.returns
    bench.servers.answer = lambda commands: [b"OK"] * len(commands)
    await until(lambda: lane.is_working, "it closes")
    assert bench.returns == returns + 1


async def test_a_probe_puts_no_old_value_back(redis: RedisServer, tmp_path: Path) -> None:
    old, new = flow(), flow(transceiver=Address.parse("10.0.1.8:5000"))
    with redis_py.Redis(redis.host, redis.port) as other_relay:
        async with fleet_bench(redis.url, tmp_path) as bench:
            await bench.reaches("connected")
            redis.cli("config", "set", "maxmemory", "1")
            bench.line.tell([old.pack()])
            await bench.reaches("degraded", why="is full")
            assert (await bench.ask([old]))[0].found is Found.MISS
            with other_relay.pipeline(transaction=False) as pipeline:
                pipeline.config_set("maxmemory", 0)
                pipeline.set(key_of(new), seal_flow(KEYS, new, int(unix_s())), ex=180)
                pipeline.execute()
            await bench.reaches("connected")
            (finding,) = await bench.ask([old])
            assert finding.record == new


async def test_a_probe_leaves_no_value_of_its_own(bench: Bench) -> None:
    bench.writes.follow()
    bench.refuse(Trouble.REFUSED)
    bench.flow_writes.tell(bench.writes, [flow()])
    await until(lambda: len(bench.servers.work) >= 3, "probes")
    key = bench.servers.work[0][0][1]
    assert bench.servers.work[1:3] == 2 * [[("SET", key, b"", "EX", 1, "NX")]]


async def test_a_reply_counts_though_we_were_late_to_read_it(bench: Bench) -> None:
    bench.servers.we_are_late = True
    bench.writes.follow()
    bench.flow_writes.tell(bench.writes, [flow()])
    await until(lambda: bench.counts["written"] == 1, "it is written")
    assert bench.counts["timeouts"] == 0


async def test_a_defect_ends_no_lane(bench: Bench) -> None:
    def fail(commands: Sequence[Command]) -> list[Reply]:
        raise RuntimeError("a defect")

    bench.servers.answer = fail
    bench.writes.follow()
    (lane,) = bench.writes
    await until(lambda: not lane.breaker.is_closed, "it opens")
    bench.servers.answer = lambda commands: [b"OK"] * len(commands)
    await until(lambda: lane.is_working, "it works")


async def test_a_part_that_is_refused_opens_nothing(bench: Bench) -> None:
    bench.writes.follow()
    bench.servers.answer = lambda commands: [b"OK", *(LinkError(Trouble.REFUSED, "no") for _ in commands[1:])]
    bench.flow_writes.tell(bench.writes, [flow(index) for index in range(3)])
    await until(lambda: bench.counts["unwritten"] == 2, "two are refused")
    (lane,) = bench.writes
    assert lane.is_working


async def test_a_key_that_has_moved_raises_a_doubt(bench: Bench) -> None:
    bench.writes.follow()
    bench.refuse(Trouble.MOVED)
    bench.flow_writes.tell(bench.writes, [flow()])
    await until(lambda: bench.servers.doubts, "a doubt")
    (lane,) = bench.writes
    assert lane.is_working
    assert bench.counts["moved"] == 1


async def test_an_errand_under_way_at_a_server_that_is_gone_ends(bench: Bench) -> None:
    bench.writes.follow()
    (lane,) = bench.writes
    await until(lambda: lane.is_working, "it works")
    bench.servers.hangs = True
    errand = asyncio.create_task(bench.writes.execute(b"key", [("GET", "key")]))
    await until(lambda: bench.servers.work, "it is under way")
    bench.servers.nodes = frozenset()
    bench.writes.follow()
    with pytest.raises(LinkError, match="asked no more"):
        await asyncio.wait_for(errand, 1)
    # Nor does one wait that comes to it later.
    with pytest.raises(LinkError, match="asked no more"):
        await asyncio.wait_for(lane.execute([("GET", "key")]), 1)


async def test_a_defect_loses_no_errand(bench: Bench) -> None:
    def fail(commands: Sequence[Command]) -> list[Reply]:
        raise RuntimeError("a defect")

    bench.writes.follow()
    (lane,) = bench.writes
    await until(lambda: lane.is_working, "it works")
    bench.servers.answer = fail
    with pytest.raises(LinkError):
        await asyncio.wait_for(bench.writes.execute(b"key", [("GET", "key")]), 1)


async def test_a_server_that_is_gone_takes_its_questions_along(bench: Bench) -> None:
    bench.servers.hangs = True
    bench.reads.follow()
    errand = asyncio.create_task(bench.reads.execute(b"key", [("GET", "key")]))
    relay_end, agent_end = open_line()
    with relay_end, agent_end:
        await asyncio.sleep(0.02)
        bench.flow_reads.ask(bench.reads, AgentLine(agent_end), [flow().name])
        bench.servers.nodes = frozenset()
        bench.reads.follow()
        await until(lambda: RelayLine(relay_end).receive()[0], "an answer")
        with pytest.raises(LinkError):
            await errand
