"""A supervised process that ends, hangs or is ended: restarted with back-off, killed, stopped."""

import asyncio
import gc
import itertools
import logging
import os
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import host.process
from host.channel import ChannelError
from host.errors import StartError
from host.process import ProcessState
from tests.host.deadline import until
from tests.host.programs import (
    GOOD,
    HUNG,
    POLITE,
    READY,
    STUBBORN,
    Heard,
    Programs,
    is_alive,
    kill,
    restarted,
)

pytestmark = pytest.mark.usefixtures("quick")


def count_sockets() -> int:
    """Sockets that this process has open."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(fd))
    return sum(link.startswith("socket:") for link in links)


# restart


async def test_killed_process_is_restarted_and_says_what_ended_it(programs: Programs) -> None:
    starts: list[int] = []

    def settings() -> dict[str, Any]:
        starts.append(len(starts))
        return {"start": len(starts)}

    heard = Heard()
    process = programs.process(
        "line.send({'event': 'told', 'start': settings['start']})\n" + GOOD,
        settings=settings,
        on_event=heard,
    )
    await process.start()
    first = kill(process)
    await restarted(process)
    assert process.last_exit == "killed by SIGKILL"
    assert process.restarts == 1
    assert process.pid != first
    assert heard.values("told", "start") == [1, 2], "each start has the settings of its time"
    assert await process.request("ping") == "ping"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        pytest.param(signal.SIGTERM, "killed by SIGTERM", id="SIGTERM"),
        pytest.param(signal.SIGABRT, "killed by SIGABRT", id="SIGABRT"),
        pytest.param(signal.SIGRTMIN + 3, str(signal.SIGRTMIN + 3), id="signal without a name"),
    ],
)
async def test_process_is_restarted_after_any_signal(programs: Programs, number: int, told: str) -> None:
    process = programs.process(GOOD)
    await process.start()
    kill(process, number)
    await restarted(process)
    assert told in str(process.last_exit)


async def test_every_end_is_told_before_the_next_start(programs: Programs) -> None:
    history: list[str] = []

    def settings() -> dict[str, Any]:
        history.append("start")
        return {}

    process = programs.process(GOOD, settings=settings, on_exit=lambda: history.append("exit"))
    await process.start()
    kill(process)
    await restarted(process)
    await process.stop()
    assert history == ["start", "exit", "start", "exit"]


async def test_exit_code_is_told(programs: Programs) -> None:
    process = programs.process(READY + "line.receive()\nsys.exit(9)")
    await process.start()
    with pytest.raises(ChannelError, match="gone"):
        await process.request("end")
    await restarted(process)
    assert process.last_exit == "exit code 9"


async def test_process_that_keeps_crashing_waits_longer_each_time(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (0.0, 0.1, 0.2))
    starts: list[float] = []

    def settings() -> dict[str, Any]:
        starts.append(time.monotonic())
        return {}

    process = programs.process(READY + "sys.exit(1)", settings=settings)
    with caplog.at_level(logging.WARNING, "host.process"):
        await process.start()
        await until(lambda: len(starts) >= 5, "five starts")
    delays = [record.args[2] for record in caplog.records if isinstance(record.args, tuple)][:4]
    assert delays == [0.0, 0.1, 0.2, 0.2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(gap >= delay for gap, delay in zip(gaps, [0.0, 0.1, 0.2, 0.2], strict=False))


async def test_process_that_lived_long_starts_again_at_once(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (0.0, 600.0))
    monkeypatch.setattr(host.process, "_HEALTHY_AFTER_S", 0.0)
    process = programs.process(GOOD)
    await process.start()
    for times in (1, 2, 3):
        kill(process)
        await restarted(process, times)


async def test_back_off_is_a_state_of_its_own(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (600.0,))
    process = programs.process(GOOD)
    await process.start()
    kill(process)
    await until(lambda: process.state is ProcessState.BACKING_OFF, "back-off")
    assert process.describe()["pid"] is None
    assert process.describe()["uptime_s"] == 0.0
    with pytest.raises(ChannelError, match="not running"):
        await process.request("ping")


async def test_restart_that_cannot_fork_is_tried_again(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EAGAIN (pids limit) or EMFILE at a restart passes; the process must come back when it has."""
    process = programs.process(GOOD)
    await process.start()
    spawn = asyncio.create_subprocess_exec
    refused: list[str] = []

    async def refuse_once(*command: Any, **options: Any) -> Any:
        if not refused:
            refused.append("once")
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await spawn(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_once)
    sockets_before = count_sockets()
    try:
        kill(process)
        await until(lambda: refused, "the refusal")
        await until(lambda: process.state is ProcessState.READY and process.pid, "the process is back", 2)
        assert count_sockets() == sockets_before
    finally:
        # Where this fails, a socket hangs on the dead task's error: drop both here, so that only this test tells.
        await programs.end()
        process._task = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


async def test_host_without_processes_is_asked_at_growing_intervals(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was healthy for long must not turn its restart into a busy loop."""
    process = programs.process(GOOD)
    await process.start()
    process.started_at -= 3600
    asked: list[float] = []
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (0.0, 0.05, 0.1))

    async def refuse(*command: Any, **options: Any) -> Any:
        asked.append(time.monotonic())
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    kill(process)
    await until(lambda: len(asked) >= 3, "three tries", 3)
    await process.stop()
    assert len(asked) <= 5
    assert asked[-1] - asked[0] >= 0.09


# hangs


async def test_hung_process_is_killed_and_restarted(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(host.process, "_PING_TIMEOUT_S", 0.1)
    process = programs.process(HUNG, name="worker-2")
    await process.start()
    hung = process.pid
    await restarted(process)
    assert process.last_exit == "killed by SIGKILL"
    assert process.pid != hung
    assert "worker-2 hangs (no answer to 'ping' within 0.1 s), killed" in caplog.text


async def test_stopped_process_counts_as_hung(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(host.process, "_PING_TIMEOUT_S", 0.2)
    process = programs.process(GOOD)
    await process.start()
    kill(process, signal.SIGSTOP)
    await restarted(process)
    assert process.last_exit == "killed by SIGKILL"


async def test_process_that_answers_pings_is_left_alone(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 0.02)
    heard = Heard()
    process = programs.process(GOOD, on_event=heard)
    await process.start()
    await until(lambda: len(heard.values("asked", "method")) >= 5, "five pings")
    assert set(heard.values("asked", "method")) == {"ping"}
    assert process.restarts == 0


async def test_process_that_babbles_is_replaced(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel is closed at the first line that is no message; the next ping finds that."""
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 0.05)
    process = programs.process(
        READY + "line._sock.sendall(b'Traceback (most recent call last):\\n')\ntime.sleep(600)"
    )
    await process.start()
    await restarted(process)
    assert process.last_exit == "killed by SIGKILL"


@pytest.mark.slow
async def test_restarted_process_that_never_says_ready_is_killed_too(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(host.process, "_PING_TIMEOUT_S", 0.1)
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 1.0)
    process = programs.process(
        "starts = Path(settings['starts'])\nstarts.write_text(starts.read_text() + '.')\n"
        "if starts.read_text() == '..': time.sleep(600)\n" + GOOD,
        settings=lambda: {"starts": str(tmp_path / "starts")},
    )
    (tmp_path / "starts").write_text("")
    await process.start()
    kill(process)
    await until(lambda: (tmp_path / "starts").read_text() == "..", "the second start")
    await until(lambda: process.restarts == 2, "the hung start is given up", 4)


# end


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(POLITE, "exit code 0", id="handles SIGTERM"),
        pytest.param(GOOD, "killed by SIGTERM", id="default action"),
        pytest.param(HUNG, "killed by SIGTERM", id="hung"),
    ],
)
async def test_stop_ends_the_process_by_sigterm(programs: Programs, body: str, told: str) -> None:
    process = programs.process(body)
    await process.start()
    pid = process.pid
    started = time.monotonic()
    await process.stop()
    assert time.monotonic() - started < 2
    assert pid is not None
    assert not is_alive(pid)
    assert process.last_exit == told
    assert (process.state, process.pid, process.restarts) == (ProcessState.STOPPED, None, 0)


async def test_process_that_ignores_sigterm_is_killed_after_the_grace(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host.process, "_TERM_GRACE_S", 0.2)
    process = programs.process(STUBBORN, name="worker-4")
    await process.start()
    pid = process.pid
    started = time.monotonic()
    await process.stop()
    assert 0.2 <= time.monotonic() - started < 3
    assert process.last_exit == "killed by SIGKILL"
    assert pid is not None
    assert not is_alive(pid)
    assert "worker-4 did not end within 0.2 s, killed" in caplog.text


async def test_stop_during_back_off_returns_at_once_and_starts_nothing(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (600.0,))
    process = programs.process(GOOD)
    await process.start()
    kill(process)
    await until(lambda: process.state is ProcessState.BACKING_OFF, "back-off")
    started = time.monotonic()
    await process.stop()
    assert time.monotonic() - started < 1
    assert process.state is ProcessState.STOPPED
    assert programs.living() == []


async def test_stop_while_the_process_is_being_spawned_is_prompt_and_leaves_nothing(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_TERM_GRACE_S", 3.0)
    process = programs.process(GOOD)
    starting = asyncio.create_task(process.start())
    await until(lambda: process._task is not None, "the start has begun")
    started = time.monotonic()
    await process.stop()
    took_s = time.monotonic() - started
    with suppress(StartError):
        await starting
    assert programs.living() == []
    assert took_s < 2, "SIGTERM was never sent, so the whole grace passed"


async def test_stop_without_start_and_a_second_stop_do_nothing(programs: Programs) -> None:
    process = programs.process(GOOD)
    await process.stop()
    await process.start()
    await process.stop()
    await process.stop()
    assert process.state is ProcessState.STOPPED


async def test_stopped_process_can_be_started_again(programs: Programs) -> None:
    process = programs.process(GOOD)
    await process.start()
    await process.stop()
    await process.start()
    assert process.state is ProcessState.READY
    assert await process.request("ping") == "ping"


async def test_process_ends_by_itself_when_its_supervisor_is_gone(programs: Programs) -> None:
    process = programs.process(GOOD)
    await process.start()
    pid = process.pid
    assert pid is not None
    assert process._channel is not None
    process._ending.set()  # as a dead supervisor, which restarts nothing
    process._channel.close()
    await until(lambda: not is_alive(pid), "the end")
