"""What an operator changes while something else goes on: the end of the host, a start that fails."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import host.supervisor
from host.config_table import ConfigTable
from host.errors import OperatorError, StartError
from host.process import ProcessSpec, ProcessState
from host.registry import ProcessRegistry
from host.sockets import bind_tcp
from host.supervisor import ProcessGroup
from tests.host.deadline import until
from transceiver.changes import Changes
from transceiver.config import TransceiverConfig
from transceiver.load_board import Load, LoadBoard, create_board_fd
from transceiver.slots import SlotMaker, TransceiverSlot, Wanted
from wire.address import Address

pytestmark = pytest.mark.usefixtures("no_task_left")


class FakeProcess:
    """Comes up when it may, or fails to; ends at once, or when it may."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.state = ProcessState.STOPPED
        self.may_start, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.fails = False

    async def start(self) -> None:
        self.state = ProcessState.STARTING
        await self.may_start.wait()
        if self.fails:
            raise StartError(f"{self.spec.name} did not start")
        self.state = ProcessState.READY

    async def stop(self) -> None:
        await self.may_end.wait()
        self.state = ProcessState.STOPPED


class Bench:
    """``count`` transceivers that serve; those that come later start when the test lets them."""

    def __init__(self, directory: Path) -> None:
        self.made: list[FakeProcess] = []
        self.slots: dict[str, TransceiverSlot] = {}
        self._fd = create_board_fd()
        self._board = LoadBoard(self._fd)
        self._http = bind_tcp("transceiver.http", Address.parse("127.0.0.1:0"))
        config = TransceiverConfig.from_table(ConfigTable("transceiver", {}), directory / "token")
        self._maker = SlotMaker(config, set())
        self.group = ProcessGroup([], ProcessRegistry(directory / "processes"))
        self.changes = Changes(
            self.slots, self.group, self._board, self._http, self._maker, self._spec, drain_s=60
        )

    def make_process(self, spec: ProcessSpec, registry: ProcessRegistry) -> FakeProcess:
        self.made.append(FakeProcess(spec))
        return self.made[-1]

    def _spec(self, slot: TransceiverSlot) -> ProcessSpec:
        return ProcessSpec(name=slot.name, module="fake", fds=(), settings=dict)

    async def start(self, count: int) -> None:
        """By way of ``scale``, as the service's own start takes no part in what is tested here."""
        scaling = asyncio.create_task(self.changes.scale(count, None))
        await until(lambda: len(self.made) == count, "they are being started")
        for process in self.made:
            process.may_start.set()
        await scaling

    def cell(self, index: int) -> LoadBoard:
        """The board as that process sees it."""
        return LoadBoard(self._fd, own=index)

    def port(self, index: int) -> int:
        """Where the others pass on to it."""
        with self.cell(0).passing_to(index) as port:
            return port

    async def has_begun_to_end(self, name: str) -> None:
        await until(lambda: self.slots[name].is_ending, f"{name} is told to end")

    async def close(self) -> None:
        """The end of a host: nobody waits for a process then."""
        self.changes.drain_all()
        for process in self.made:
            process.may_end.set()
        await self.group.stop()
        for slot in self.slots.values():
            slot.close()
        self._http.close()
        self._board.close()
        os.close(self._fd)


@pytest_asyncio.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_task_left: None) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setattr(host.supervisor, "Process", bench.make_process)
    await bench.start(2)
    yield bench
    await bench.close()


# the end of the host


async def test_start_that_waits_for_a_process_to_end_does_not_outlive_the_host(bench: Bench) -> None:
    bench.made[1].may_end.clear()
    bench.changes.stop(["transceiver-1"], 0)
    await bench.has_begun_to_end("transceiver-1")
    starting = asyncio.create_task(bench.changes.start(["transceiver-1"]))
    await asyncio.sleep(0)
    bench.changes.drain_all()
    with pytest.raises(OperatorError, match="is ending"):
        await asyncio.wait_for(starting, 5)
    assert bench.slots["transceiver-1"].wanted is Wanted.STOPPED
    assert not bench.cell(1).is_admitted


async def test_scale_that_waits_for_a_process_to_end_does_not_outlive_the_host(bench: Bench) -> None:
    bench.made[1].may_end.clear()
    await bench.changes.scale(1, 0)
    await bench.has_begun_to_end("transceiver-1")
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await asyncio.sleep(0)
    bench.changes.drain_all()
    with pytest.raises(OperatorError, match="is ending"):
        await asyncio.wait_for(scaling, 5)
    assert len(bench.made) == 2
    assert not any(bench.cell(index).is_admitted for index in range(3))


async def test_scale_that_waits_for_a_start_adds_nothing_once_the_host_ends(bench: Bench) -> None:
    bench.changes.stop(["transceiver-1"], 0)
    await until(lambda: bench.made[1].state is ProcessState.STOPPED, "it is stopped")
    bench.made[1].may_start.clear()
    bench.slots["transceiver-1"].wanted = Wanted.REMOVED
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await until(lambda: bench.made[1].state is ProcessState.STARTING, "it is started again")
    bench.changes.drain_all()
    bench.made[1].may_start.set()
    with pytest.raises(OperatorError, match="is ending"):
        await asyncio.wait_for(scaling, 5)
    assert len(bench.made) == 2


@pytest.mark.parametrize("fails", [False, True])
async def test_new_ones_that_come_up_while_the_host_ends_take_no_calls(bench: Bench, fails: bool) -> None:
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await until(lambda: len(bench.made) == 3, "it is being started")
    bench.changes.drain_all()
    bench.made[2].fails = fails
    bench.made[2].may_start.set()
    (failure,) = await asyncio.gather(scaling, return_exceptions=True)
    assert isinstance(failure, StartError) == fails
    assert not any(bench.cell(index).is_admitted for index in range(3))


# a start that fails


@pytest.mark.parametrize("has_sessions", [False, True])
async def test_stop_of_one_whose_start_fails_leaves_its_number_to_the_next(
    bench: Bench, has_sessions: bool
) -> None:
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await until(lambda: len(bench.made) == 3, "it is being started")
    failing = bench.made[2]
    if has_sessions:
        bench.cell(2).publish(Load(sessions=1, connected=0, limit=1))
    bench.changes.stop(["transceiver-2"], 60)
    stopping = bench.slots["transceiver-2"].changing
    assert stopping is not None
    failing.fails = True
    failing.may_start.set()
    with pytest.raises(StartError):
        await asyncio.wait_for(scaling, 5)
    assert "transceiver-2" not in bench.slots
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await until(lambda: len(bench.made) == 4, "another takes its number")
    bench.made[3].may_start.set()
    await asyncio.wait_for(scaling, 5)
    bench.cell(2).close_process(2)
    await asyncio.wait_for(asyncio.wait({stopping}), 5)
    assert stopping.done()
    assert bench.port(2) == bench.slots["transceiver-2"].internal_http.port
    assert bench.cell(2).is_admitted


async def test_start_that_fails_after_everything_was_closed_touches_nothing(bench: Bench) -> None:
    scaling = asyncio.create_task(bench.changes.scale(3, None))
    await until(lambda: len(bench.made) == 3, "it is being started")
    bench.changes.drain_all()
    slot = bench.slots.pop("transceiver-2")
    bench.cell(2).open(2, 7)
    bench.made[2].fails = True
    bench.made[2].may_start.set()
    with pytest.raises(StartError):
        await asyncio.wait_for(scaling, 5)
    assert slot.udp.fileno() == -1
    assert bench.port(2) == 7


async def test_slot_without_a_process_is_explained(bench: Bench) -> None:
    (process,) = [process for process in bench.group if process.spec.name == "transceiver-1"]
    await bench.group.remove([process])
    with pytest.raises(OperatorError, match="transceiver-1 has no process"):
        await bench.changes.start(["transceiver-1"])
