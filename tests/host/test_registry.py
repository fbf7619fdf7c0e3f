"""Processes on file: found again while they live, never mistaken for others, ended when they are in the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from host.registry import Entry, ProcessRegistry
from tests.host.deadline import wait_until
from tests.host.programs import is_alive

DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
Run = Callable[..., int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "processes.json"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a module as another supervisor would; returns its pid."""
    children: list[subprocess.Popen[str]] = []

    def start(module: str = "a_worker", body: str = "") -> int:
        (tmp_path / f"{module}.py").write_text(
            body + "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-m", module], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        return child.pid

    yield start
    for child in children:
        child.kill()
        child.communicate()


def write(path: Path, *entries: Entry) -> None:
    path.write_text(json.dumps([vars(entry) for entry in entries]))


def on_file(path: Path) -> list[Entry]:
    return ProcessRegistry(path).left_behind


def entry_of(path: Path, pid: int, module: str = "a_worker") -> Entry:
    """As the registry itself writes it."""
    ProcessRegistry(path).add("worker-0", module, pid)
    (entry,) = on_file(path)
    return entry


def test_process_is_found_by_the_next_registry_while_it_lives(path: Path, run: Run) -> None:
    pid = run()
    first = ProcessRegistry(path)
    assert (first.left_behind, path.exists()) == ([], False)
    first.add("worker-0", "a_worker", pid)
    assert first.left_behind == [], "it is our own"
    (found,) = on_file(path)
    assert (found.name, found.module, found.pid) == ("worker-0", "a_worker", pid)
    ticks_a_second = os.sysconf("SC_CLK_TCK")
    assert abs(found.start_ticks / ticks_a_second - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
    assert found.is_alive
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert on_file(path) == []


def test_removed_process_is_not_found(path: Path, run: Run) -> None:
    registry = ProcessRegistry(path)
    pids = [run(), run("another")]
    registry.add("worker-0", "a_worker", pids[0])
    registry.add("worker-1", "another", pids[1])
    registry.remove(pids[0])
    registry.remove(pids[0])
    assert [entry.name for entry in on_file(path)] == ["worker-1"]
    registry.remove(pids[1])
    assert not path.exists()


def test_process_that_has_already_ended_is_not_added(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ProcessRegistry(path).add("worker-0", "a_worker", child.pid)
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"module": "relay.worker"}, id="runs another module"),
        pytest.param({"module": "a_work"}, id="part of its module's name"),
        pytest.param({"start_ticks": 1}, id="started long before"),
        pytest.param({"pid": os.getpid()}, id="another process"),
        pytest.param({"pid": 2**22 + 1}, id="a pid above pid_max"),
    ],
)
def test_pid_that_is_another_process_by_now_is_not_ours(path: Path, run: Run, change: dict[str, Any]) -> None:
    entry = entry_of(path, run())
    stale = replace(entry, **change)
    write(path, stale)
    assert not stale.is_alive
    registry = ProcessRegistry(path)
    assert registry.left_behind == []
    stale.kill(signal.SIGKILL)
    assert registry.end_left_behind() == []
    assert entry.is_alive


GOOD_ENTRY = '{"name": "worker-0", "module": "m", "pid": 1, "start_ticks": 1}'


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[" + GOOD_ENTRY.encode()[:-9], id="truncated"),
        pytest.param(b"\x00\xff\xfe garbage", id="no text"),
        pytest.param(b"null", id="null"),
        pytest.param(b"7", id="number"),
        pytest.param(b'"worker-0"', id="string"),
        pytest.param(GOOD_ENTRY.encode(), id="an entry alone"),
        pytest.param(b"[7]", id="list of numbers"),
        pytest.param(b"[{}]", id="list of empty entries"),
        pytest.param(b'[{"name": "a", "module": "m", "pid": "one", "start_ticks": 1}]', id="pid in words"),
        pytest.param(b'[{"name": "a", "module": "m", "pid": 1, "start_ticks": []}]', id="start is a list"),
        pytest.param(b'[{"name": "a", "module": "m", "pid": -1, "start_ticks": 1}]', id="negative pid"),
        pytest.param(b'[{"name": "a", "module": "m", "pid": 1e999, "start_ticks": 1}]', id="infinite pid"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
    ],
)
def test_file_that_makes_no_sense_is_as_none(path: Path, run: Run, content: bytes) -> None:
    path.write_bytes(content)
    registry = ProcessRegistry(path)
    assert registry.left_behind == []
    registry.add("worker-0", "a_worker", run())
    assert [entry.name for entry in on_file(path)] == ["worker-0"]


@pytest.mark.parametrize("body", [pytest.param("", id="by SIGTERM"), pytest.param(DEAF, id="by SIGKILL")])
def test_left_behind_are_ended(path: Path, run: Run, body: str) -> None:
    pid = run(body=body)
    ProcessRegistry(path).add("worker-0", "a_worker", pid)
    registry = ProcessRegistry(path)
    started = time.monotonic()
    assert [entry.pid for entry in registry.end_left_behind(timeout_s=0.3)] == [pid]
    took_s = time.monotonic() - started
    assert (took_s >= 0.3) == bool(body), "who ignores SIGTERM has the whole grace, others delay nothing"
    wait_until(lambda: not is_alive(pid), "the end", 2)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == (signal.SIGKILL if body else signal.SIGTERM)
    assert registry.left_behind == []
    assert not path.exists()
    assert registry.end_left_behind() == []


def test_only_the_named_module_is_ended(path: Path, run: Run) -> None:
    worker, other_worker, transceiver = run(), run(), run("a_transceiver")
    earlier = ProcessRegistry(path)
    earlier.add("worker-0", "a_worker", worker)
    earlier.add("worker-1", "a_worker", other_worker)
    earlier.add("transceiver-0", "a_transceiver", transceiver)
    registry = ProcessRegistry(path)
    assert {e.name for e in registry.end_left_behind("a_worker")} == {"worker-0", "worker-1"}
    wait_until(lambda: not is_alive(worker) and not is_alive(other_worker), "the end of both")
    assert is_alive(transceiver)
    assert [entry.name for entry in registry.left_behind] == ["transceiver-0"]
    assert [entry.name for entry in on_file(path)] == ["transceiver-0"]


def test_our_own_processes_are_never_among_those_that_are_ended(path: Path, run: Run) -> None:
    pid = run()
    registry = ProcessRegistry(path)
    registry.add("worker-0", "a_worker", pid)
    assert registry.end_left_behind() == []
    assert is_alive(pid)


def test_file_stays_while_a_process_of_an_earlier_supervisor_needs_it(path: Path, run: Run) -> None:
    """A second start that dies as well must still find what the first one left."""
    old, own = run(), run("another")
    ProcessRegistry(path).add("transceiver-0", "a_worker", old)
    second = ProcessRegistry(path)
    second.add("worker-0", "another", own)
    assert [entry.name for entry in on_file(path)] == ["transceiver-0", "worker-0"]
    second.close()
    assert [entry.name for entry in on_file(path)] == ["transceiver-0"]
    os.kill(old, signal.SIGKILL)
    os.waitpid(old, 0)
    third = ProcessRegistry(path)
    third.close()
    assert not path.exists()


def test_file_is_whole_at_every_moment(path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor may be killed while it writes."""
    entry_of(path, run())
    registry, pid = ProcessRegistry(path), run("another")

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    registry.add("worker-1", "another", pid)
    assert [entry.name for entry in on_file(path)] == ["worker-0"]


@pytest.mark.parametrize(
    "disk", [pytest.param("gone", id="directory removed"), pytest.param("full", id="write refused")]
)
def test_failing_disk_does_not_stop_a_call(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    path = tmp_path / "state" / "processes.json"
    path.parent.mkdir()
    old, pid = run("another"), run()
    ProcessRegistry(path).add("worker-9", "another", old)
    registry = ProcessRegistry(path)
    if disk == "gone":
        path.unlink()
        path.parent.rmdir()
    else:

        def fail(*args: Any, **options: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", fail)
    registry.add("worker-0", "a_worker", pid)
    registry.remove(pid)
    assert [entry.pid for entry in registry.end_left_behind()] == [old]
    registry.close()
    wait_until(lambda: not is_alive(old), "the end")
