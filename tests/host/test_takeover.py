"""Groups of processes that grow and shrink, and what a supervisor does with those of one that died."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import host.process
from host.errors import OperatorError, StartError
from host.process import ProcessState
from host.registry import ProcessRegistry
from host.supervisor import ProcessGroup
from tests.host.bench import Bench, FakeService, History
from tests.host.deadline import until
from tests.host.programs import GOOD, SILENT, Programs, is_alive

LeaveBehind = Callable[[str, str], int]


@pytest.fixture
def leave_behind(tmp_path: Path, bench: Bench) -> Iterator[LeaveBehind]:
    """Have a process run that an earlier supervisor wrote down; returns its pid."""
    orphans: list[subprocess.Popen[str]] = []

    def leave(name: str, body: str = "") -> int:
        module = f"orphan_{len(orphans)}"
        (tmp_path / f"{module}.py").write_text(
            body + "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
        )
        orphan = subprocess.Popen(
            [sys.executable, "-m", module], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        orphans.append(orphan)
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "up\n"
        ProcessRegistry(bench.state_dir.processes_file).add(name, module, orphan.pid)
        return orphan.pid

    yield leave
    for orphan in orphans:
        orphan.kill()
        orphan.communicate()


def states(group: ProcessGroup) -> list[tuple[str, str]]:
    return [(process.spec.name, process.state.value) for process in group]


@pytest.fixture
async def group(programs: Programs) -> AsyncIterator[ProcessGroup]:
    """One process, ready."""
    group = ProcessGroup([programs.spec(GOOD, name="first")], programs.registry)
    await group.start()
    yield group
    await group.stop()


# groups


async def test_group_grows_and_shrinks(group: ProcessGroup, programs: Programs) -> None:
    await group.add([programs.spec(GOOD, name="second"), programs.spec(GOOD, name="third")])
    assert states(group) == [("first", "ready"), ("second", "ready"), ("third", "ready")]
    assert len(programs.found_in_registry()) == len(group) == 3
    first, second, third = group
    await group.remove([second, third])
    assert states(group) == [("first", "ready")]
    assert second.state is third.state is ProcessState.STOPPED
    assert programs.living() == [first.pid]
    await group.stop()
    assert programs.living() == []
    assert len(group) == 1


@pytest.mark.parametrize(
    "bad", [pytest.param(SILENT, id="never ready"), pytest.param("sys.exit(3)", id="ends at once")]
)
async def test_process_that_fails_to_start_leaves_none_of_those_added_with_it(
    group: ProcessGroup, programs: Programs, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 1.0)
    (first,) = group
    with pytest.raises(StartError, match="bad did not start"):
        await group.add([programs.spec(GOOD, name="good"), programs.spec(bad, name="bad")])
    assert states(group) == [("first", "ready")]
    assert programs.living() == [first.pid]
    assert [entry.pid for entry in programs.found_in_registry()] == [first.pid]


async def test_growing_that_is_called_off_leaves_nothing(group: ProcessGroup, programs: Programs) -> None:
    (first,) = group
    adding = asyncio.create_task(group.add([programs.spec(SILENT)]))
    await until(lambda: len(programs.living()) == 2, "the second program runs")
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    assert adding.cancelled()
    assert states(group) == [("first", "ready")]
    assert programs.living() == [first.pid]


# taking over


async def test_services_take_over_once_all_processes_of_all_are_ready(
    bench: Bench, programs: Programs
) -> None:
    history: History = []
    slow = programs.spec("time.sleep(0.3)\n" + GOOD)
    relay = FakeService("relay", [programs.spec(GOOD)], history)
    transceivers = FakeService("transceivers", [slow], history)
    seen: list[list[str]] = []

    async def look() -> None:
        seen.append([process.state.value for process in (*relay.processes, *transceivers.processes)])

    relay.take_over = look  # type: ignore[method-assign]
    await bench.start_and_wait(relay, transceivers)
    assert seen == [["ready", "ready"]]
    assert history == [("take over", "transceivers", "ready")]
    await bench.end()


async def test_take_over_that_fails_ends_everything_and_is_told(bench: Bench, programs: Programs) -> None:
    relay = FakeService("relay", [programs.spec(GOOD)], [])

    async def fail() -> None:
        raise OperatorError("eth0: another XDP program is there")

    relay.take_over = fail  # type: ignore[method-assign]
    ready = bench.start(relay)
    assert bench.running is not None
    with pytest.raises(OperatorError, match="eth0"):
        await asyncio.wait_for(bench.running, 10)
    assert not ready.is_set()
    assert programs.living() == []


async def test_status_names_the_processes_that_were_left_behind_while_they_live(
    bench: Bench, leave_behind: LeaveBehind
) -> None:
    pids = [leave_behind("worker-0", ""), leave_behind("transceiver-1", "")]
    await bench.start_and_wait()
    assert (await bench.ask("status"))["left_behind"] == [
        {"name": "worker-0", "pid": pids[0]},
        {"name": "transceiver-1", "pid": pids[1]},
    ]
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: not is_alive(pids[0]), "the end of the killed one", 1)
    assert [entry["pid"] for entry in (await bench.ask("status"))["left_behind"]] == [pids[1]]
    await bench.end()


async def test_stop_ends_also_what_was_left_behind(bench: Bench, leave_behind: LeaveBehind) -> None:
    polite = leave_behind("transceiver-0", "")
    deaf = leave_behind("transceiver-1", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n")
    other = leave_behind("worker-0", "")
    await bench.start_and_wait(drain_s=0.2, modules=["orphan_0", "orphan_1"])
    assert is_alive(polite)
    await bench.end()
    await until(lambda: not is_alive(polite) and not is_alive(deaf), "the end of both", 1)
    assert is_alive(other), "what no service here runs is not ours to end"
    assert [e.pid for e in ProcessRegistry(bench.state_dir.processes_file).left_behind] == [other]


async def test_start_that_fails_leaves_them_alone_and_on_file(
    bench: Bench, programs: Programs, leave_behind: LeaveBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They carry calls, and the next start may succeed."""
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.5)
    pid = leave_behind("worker-0", "")
    bench.start(FakeService("relay", [programs.spec(SILENT)], []))
    assert bench.running is not None
    with pytest.raises(StartError):
        await asyncio.wait_for(bench.running, 10)
    assert is_alive(pid)
    assert [e.pid for e in ProcessRegistry(bench.state_dir.processes_file).left_behind] == [pid]
