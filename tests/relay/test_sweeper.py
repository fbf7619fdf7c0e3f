"""The supervisor's sweeps in a row: what adds up, and when the cache is told of all flows."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest

from fleet.line import AgentLine, RelayLine, open_line
from relay import sweeper
from relay.sweeper import Sweeper
from tests.transceiver.waiting import until
from wire.address import Address
from wire.flow_record import FlowRecord

VIP, TRANSCEIVER = Address.parse("203.0.113.10:3478"), Address.parse("10.1.2.3:5000")
RECORDS = [
    FlowRecord(Address(bytes((198, 51, number >> 8, number & 255)), 40000), VIP, TRANSCEIVER, "x" * 8)
    for number in range(10_000)
]
PACKED = [record.pack() for record in RECORDS]


class CannedSweep:
    """Two assured flows and a provisional one, and as many records as are to be told."""

    assured, provisional, expired = 2, 1, 3

    def __init__(self, told: list[bytes]) -> None:
        self.hosts = {b"host"}
        self._told = told

    def steps(self) -> Iterator[list[bytes]]:
        for begin in range(0, max(1, len(self._told)), 1024):
            yield self._told[begin : begin + 1024]


class Hops:
    def __init__(self) -> None:
        self.kept: list[set[bytes]] = []

    def forget_all_but(self, hosts: set[bytes]) -> None:
        self.kept.append(set(hosts))


class Rig:
    """A sweeper over canned sweeps, and the agent's end of its line."""

    def __init__(self, line: socket.socket | None, refresh_s: float) -> None:
        self.tells: list[bool] = []
        self.hops, self.wanted = Hops(), list[set[bytes]]()
        self.told: list[bytes] = PACKED
        self.sweeper = Sweeper(
            self._new_sweep,  # type: ignore[arg-type]  # what a sweep shows
            self.wanted.append,
            self.hops,  # type: ignore[arg-type]  # what is asked of next hops
            RelayLine(line) if line is not None else None,
            refresh_s,
        )

    def _new_sweep(self, tells: bool) -> CannedSweep:
        self.tells.append(tells)
        return CannedSweep(self.told if tells else [])


@asynccontextmanager
async def sweeping(line: socket.socket | None, refresh_s: float = 1000.0) -> AsyncIterator[Rig]:
    rig = Rig(line, refresh_s)
    task = asyncio.create_task(rig.sweeper.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_SWEEP_INTERVAL_S", 0.02)


async def test_sweeps_add_up() -> None:
    async with sweeping(None) as rig:
        await until(lambda: len(rig.hops.kept) >= 3)
        assert rig.sweeper.gauges == {"flows": 3, "assured_flows": 2}
        assert rig.sweeper.expired == 3 * len(rig.hops.kept)
        assert rig.wanted[0] == rig.hops.kept[0] == {b"host"}
        assert not any(rig.tells), "there is no cache"


async def hear(agent: AgentLine, count: int) -> list[FlowRecord]:
    heard: list[FlowRecord] = []

    def has_heard() -> bool:
        heard.extend(agent.receive_untrusted()[0])
        return len(heard) >= count

    await until(has_heard)
    return heard


async def test_agent_that_reads_hears_of_all_flows_and_none_twice() -> None:
    """Many more than its line takes at a time."""
    ours, theirs = open_line()
    with closing(ours), closing(theirs):
        async with sweeping(ours) as rig:
            heard = await hear(AgentLine(theirs), len(RECORDS))
            await until(lambda: len(rig.tells) >= 3)
            assert heard == RECORDS
            assert rig.tells == [True] + [False] * (len(rig.tells) - 1)
            assert rig.sweeper.untold == 0


async def test_agent_that_has_lost_its_memory_hears_all_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeper, "_SWEEP_INTERVAL_S", 1000.0)
    ours, theirs = open_line()
    with closing(ours), closing(theirs):
        agent = AgentLine(theirs)
        async with sweeping(ours) as rig:
            rig.told = PACKED[:10]
            assert await hear(agent, 10) == RECORDS[:10]
            rig.sweeper.tell_again()
            assert await hear(agent, 10) == RECORDS[:10]
            assert rig.tells == [True, True]


async def test_rounds_follow_each_other() -> None:
    ours, theirs = open_line()
    with closing(ours), closing(theirs):
        async with sweeping(ours, refresh_s=0.2) as rig:
            rig.told = PACKED[:10]
            heard = await hear(AgentLine(theirs), 30)
            assert heard == RECORDS[:10] * 3
            assert sum(rig.tells) == 3
            assert len(rig.tells) > 10


async def test_agent_that_does_not_read_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_TELL_TRIES", 3)
    tell, tries = RelayLine.tell, []

    def try_to_tell(line: RelayLine, records: list[bytes]) -> int:
        tries.append(len(records))
        return tell(line, records)

    monkeypatch.setattr(RelayLine, "tell", try_to_tell)
    ours, theirs = open_line()
    with closing(ours), closing(theirs):
        async with sweeping(ours) as rig:
            await until(lambda: len(rig.tells) >= 5)
            assert len(tries) == -(-len(RECORDS) // 1024) + 2, "it is waited for once a sweep"
            said = len(RECORDS) - rig.sweeper.untold
            assert 0 < said < len(RECORDS)
            agent = AgentLine(theirs)
            assert len(await hear(agent, said)) == said
            assert agent.receive_untrusted() == ([], []), "what was not said is counted"
