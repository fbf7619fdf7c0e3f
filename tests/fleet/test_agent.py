"""The agent: as a process of its own, when its supervisor dies; and its chores one by one."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fleet.agent import Agent
from fleet.line import Finding, Found, RelayLine, open_line
from fleet.settings import AgentSettings
from host.channel import STREAM_LIMIT, Channel
from tests.fleet.bench import KEYS, config, flow
from tests.host.deadline import until
from tests.redis.server import RedisServer


async def test_it_serves_until_the_last_worker_is_gone(redis: RedisServer, tmp_path: Path) -> None:
    lines = [open_line() for _ in range(3)]
    agent_fds = tuple(agent_end.fileno() for _, agent_end in lines)
    settings = AgentSettings(
        redis=config(redis.url),
        secrets=config(redis.url).read_secrets(),
        cluster_id=1,
        keys=KEYS.record_keys(),
        line_fds=agent_fds,
    )
    ours, theirs = socket.socketpair()
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fleet.agent", str(theirs.fileno())),
        pass_fds=(theirs.fileno(), *agent_fds),
    )
    try:
        theirs.close()
        for _, agent_end in lines:
            agent_end.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT)
        events: list[str] = []
        channel = Channel(reader, writer, on_event=lambda message: events.append(message["event"]))
        serving = asyncio.create_task(channel.run())
        channel.send_event("configure", settings=settings.to_message(), core=None, user=None)
        await until(lambda: "ready" in events, "it is ready")
        line = RelayLine(lines[0][0])
        await until(lambda: line.receive()[1], "everything is to be told")
        # The supervisor dies, and with it all its ends but the one of a worker that goes on.
        channel.close()
        await serving
        for relay_end, _ in lines[1:]:
            relay_end.close()
        line.tell([flow().pack()])
        found: list[Found] = []

        def ask() -> bool:
            line.ask([flow().name])
            found.extend(finding.found for finding in line.receive()[0])
            return Found.HIT in found

        await until(ask, "it serves on")
        assert agent.returncode is None
        lines[0][0].close()
        assert await asyncio.wait_for(agent.wait(), 5) == 0
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
        for relay_end, _ in lines:
            relay_end.close()


class FakeChannel:
    """The supervisor's; ``sent`` are the events that it got."""

    def __init__(self) -> None:
        self.is_closed = False
        self.sent: list[str] = []

    async def run(self) -> None:
        """It has ended."""

    def send_event(self, event: str, **params: Any) -> None:
        self.sent.append(event)


class AgentBench:
    """An agent with two lines, whose chores a test begins by itself."""

    def __init__(self) -> None:
        lines = [open_line() for _ in range(2)]
        self.workers = [relay_end for relay_end, _ in lines]
        self.channel = FakeChannel()
        settings = AgentSettings(
            redis=config("redis://127.0.0.1:1", lease_s=2.0),
            secrets=config("").read_secrets(),
            cluster_id=1,
            keys=KEYS.record_keys(),
            line_fds=tuple(agent_end.detach() for _, agent_end in lines),
        )
        self.agent = Agent(settings, None)
        self.agent._channel = self.channel  # type: ignore[assignment]

    @property
    def lines(self) -> list[RelayLine]:
        return [RelayLine(worker) for worker in self.workers]


@pytest.fixture
def bench() -> Iterator[AgentBench]:
    bench = AgentBench()
    yield bench
    for worker in bench.workers:
        worker.close()
    for line in bench.agent._lines:
        line.close()


@contextlib.asynccontextmanager
async def under_way(chore: Coroutine[Any, Any, None]) -> Any:
    task = asyncio.create_task(chore)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def agains(worker: socket.socket) -> int:
    """How many wait in a worker's line."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while worker.recv(65_536) == b"R":
            count += 1
    return count


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.agent._AGAIN_PAUSE_S", 0.0)
    monkeypatch.setattr("fleet.agent._TICK_S", 0.001)


@pytest.mark.usefixtures("no_pause")
async def test_a_line_that_nobody_reads_gets_one_again(bench: AgentBench) -> None:
    agent, (reader, unread) = bench.agent, bench.workers
    counts = agent._cache.counts
    heard = 0
    async with under_way(agent._tick()):
        for wanted in range(1, 21):
            agent._want_everything()
            await until(partial(lambda wanted: counts["again"] == wanted, wanted), "a round", 2)
            await until(lambda: not agent._owed - {agent._lines[1]}, "the one that is read has it", 2)
            heard += agains(reader)
        await asyncio.sleep(0.05)
        assert heard == 20
        assert agains(unread) == 1
        # Whoever reads there now has missed some, and is told so once.
        await until(lambda: not agent._owed, "it has it, too", 2)
        assert agains(unread) == 1
    assert counts["again"] == 20


@pytest.mark.usefixtures("no_pause")
async def test_a_line_whose_queue_is_full_gets_it_later_and_it_is_counted_once(bench: AgentBench) -> None:
    agent, (worker, _) = bench.agent, bench.workers
    findings = [Finding(flow().name, Found.MISS)]
    while not agent._lines[0].answer(findings):
        pass
    async with under_way(agent._tick()):
        agent._want_everything()
        await asyncio.sleep(0.05)
        assert agent._cache.counts["again"] == 1
        await until(lambda: RelayLine(worker).receive()[1], "it is asked for", 2)
        await asyncio.sleep(0.05)
    assert agains(worker) == 0
    assert agent._cache.counts["again"] == 1


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
async def test_a_line_that_a_worker_shuts_down_keeps_nobody_busy(
    bench: AgentBench, how: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fleet.agent._GOODBYE_S", 0.01)
    agent = bench.agent
    loop = asyncio.get_running_loop()
    for line in agent._lines:
        loop.add_reader(line.fileno(), agent._receive, line)
    for left in (1, 0):
        bench.workers[left].shutdown(how)
        await until(partial(lambda left: len(agent._lines) == left, left), "the agent reads it no more", 2)
    await asyncio.sleep(0.1)
    assert [record.message[:33] for record in caplog.records] == ["a worker has shut its line down, "]
    assert not agent._ending.is_set()
    # Only a line of somebody who lives keeps an agent without a supervisor.
    bench.channel.is_closed = True
    await agent._serve_supervisor(bench.channel)  # type: ignore[arg-type]
    assert agent._ending.is_set()


async def test_a_renewal_that_hangs_does_not_end_the_leases(
    bench: AgentBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any) -> None:
        await asyncio.sleep(600)

    async def read(*_: Any) -> list[dict[str, Any]]:
        return []

    monkeypatch.setattr(bench.agent._cache.registry, "renew", hang)
    monkeypatch.setattr(bench.agent._cache.registry, "read", read)
    bench.agent.follow_supervisor({"event": "presence", "leases": {"relay:1": {"state": "running"}}})
    async with under_way(bench.agent._keep_leases()):
        await until(lambda: "leases" in bench.channel.sent, "others' leases are told", 5)
