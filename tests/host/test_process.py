"""One supervised child process: started, watched, restarted with back-off, ended."""

import asyncio
import gc
import itertools
import json
import logging
import os
import signal
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import host.process
from host.channel import Channel, ChannelError
from host.errors import StartError
from host.process import Process, ProcessState
from tests.host.deadline import until
from tests.host.programs import GOOD, HUNG, POLITE, READY, SILENT, STUBBORN, Heard, Programs
from wire.admin import Message


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals for tests; a test sets shorter ones where it waits for them."""
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (0.0, 0.02))
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 10.0)
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 60.0)
    monkeypatch.setattr(host.process, "_TERM_GRACE_S", 5.0)


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(process: Process, number: int = signal.SIGKILL) -> int:
    """Send a signal from outside; returns the pid."""
    assert process.pid is not None
    os.kill(process.pid, number)
    return process.pid


def count_sockets() -> int:
    """Sockets that this process has open."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(fd))
    return sum(link.startswith("socket:") for link in links)


async def restarted(process: Process, times: int = 1) -> None:
    """Wait until the process has come back."""
    await until(
        lambda: process.restarts >= times and process.state is ProcessState.READY,
        f"{times} restarts",
        5,
    )


# start


async def test_start_returns_when_the_process_is_ready(programs: Programs) -> None:
    process = programs.process(GOOD, name="worker-0", core=None)
    assert process.describe()["state"] == "stopped"
    await process.start()
    described = process.describe()
    assert process.pid is not None
    assert is_alive(process.pid)
    assert described["rss_bytes"] > 0
    assert {key: described[key] for key in ("name", "pid", "state", "restarts", "last_exit", "core")} == {
        "name": "worker-0",
        "pid": process.pid,
        "state": "ready",
        "restarts": 0,
        "last_exit": None,
        "core": None,
    }
    assert 0 <= described["uptime_s"] < 10
    json.dumps(described, allow_nan=False)


async def test_process_gets_settings_core_and_descriptors(programs: Programs) -> None:
    reader, writer = os.pipe()
    with closing(os.fdopen(reader)) as read, closing(os.fdopen(writer, "w")) as write:
        process = programs.process(
            "os.write(settings['fd'], repr(messages[0]).encode())\n" + GOOD,
            fds=(writer,),
            settings=lambda: {"fd": writer, "keys": "ä"},
            core=0,
        )
        await process.start()
        write.close()
        await process.stop()
        assert read.read() == repr({"event": "configure", "settings": {"fd": writer, "keys": "ä"}, "core": 0})


async def test_process_inherits_no_other_descriptor(programs: Programs) -> None:
    heard = Heard()
    body = "line.send({'event': 'open', 'fds': os.listdir('/proc/self/fd')})\n" + GOOD
    reader, writer = os.pipe()
    with closing(os.fdopen(reader)), closing(os.fdopen(writer)):
        os.set_inheritable(writer, True)
        process = programs.process(body, on_event=heard)
        await process.start()
        (fds,) = heard.values("open", "fds")
        # standard three, the channel, and listdir's own
        assert len(fds) == 5


async def test_modules_of_the_working_directory_are_not_imported(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for module in ("host", "socket"):
        (trap / f"{module}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(trap)
    process = programs.process(GOOD)
    await process.start()
    assert process.restarts == 0


async def test_process_is_not_in_the_group_that_ctrl_c_reaches(programs: Programs) -> None:
    process = programs.process(GOOD)
    await process.start()
    assert process.pid is not None
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


async def test_process_that_never_says_ready_is_a_start_error_and_ends_with_stop(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.3)
    process = programs.process(SILENT, name="worker-3")
    with pytest.raises(StartError, match="worker-3 did not start"):
        await process.start()
    await process.stop()
    assert programs.living() == []
    assert process.state is ProcessState.STOPPED


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param("sys.exit(7)", "exit code 7", id="exit code"),
        pytest.param("raise SystemExit", "exit code 0", id="ends without a word"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV", id="crash"),
    ],
)
async def test_process_that_ends_before_it_is_ready_is_a_start_error_telling_how(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, body: str, told: str
) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.5)
    process = programs.process(body)
    with pytest.raises(StartError, match=rf"did not start \({told}\)"):
        await process.start()
    await process.stop()
    assert programs.living() == []


async def test_missing_module_is_a_start_error(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", "")
    process = programs.process(GOOD)
    with pytest.raises(StartError, match="exit code 1"):
        await process.start()
    await process.stop()


# requests and events


async def test_requests_and_events_cross_the_channel(programs: Programs) -> None:
    heard = Heard()
    process = programs.process(GOOD, on_event=heard)
    await process.start()
    assert await process.request("flows") == "flows"
    await until(lambda: heard.messages, "the event")
    assert heard.messages == [{"event": "asked", "method": "flows"}]


async def test_handover_follows_the_settings_and_comes_before_anything_else(programs: Programs) -> None:
    """What a worker left must be in its successor's hands before the first packet."""
    heard = Heard()
    process = programs.process(
        "while len(messages) < 3: messages += line.receive()\n"
        "line.send({'event': 'order', 'events': [message['event'] for message in messages]})\n" + GOOD,
        handover=lambda channel: [channel.send_event(event) for event in ("adopt", "serve")],
        on_event=heard,
    )
    await process.start()
    kill(process)
    await restarted(process)
    assert heard.values("order", "events") == [["configure", "adopt", "serve"]] * 2


async def test_nobody_to_ask_before_start_and_after_stop(programs: Programs) -> None:
    process = programs.process(GOOD, name="worker-1")
    with pytest.raises(ChannelError, match="worker-1 is not running"):
        await process.request("ping")
    await process.start()
    await process.stop()
    with pytest.raises(ChannelError, match="worker-1 is not running"):
        await process.request("ping")


async def test_request_fails_when_the_process_dies_over_it(programs: Programs) -> None:
    process = programs.process(READY + "line.receive()\nos.kill(os.getpid(), signal.SIGKILL)")
    await process.start()
    with pytest.raises(ChannelError, match="gone"):
        await asyncio.wait_for(process.request("flows", timeout_s=60), 5)


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


async def test_event_that_makes_no_sense_does_not_end_the_supervision(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def stumble(message: Message) -> None:
        heard.append(message["event"])
        raise KeyError("flow")

    process = programs.process('line.send({"event": "flow_assured"})\n' + GOOD, on_event=stumble)
    await process.start()
    await until(lambda: heard, "the event")
    kill(process)
    await until(lambda: process.restarts == 1 and process.state is ProcessState.READY, "the process is back")
    assert "makes no sense" in caplog.text


async def test_large_handover_arrives_whole(programs: Programs) -> None:
    """More than what a peer may leave unread: the sender waits for the reader."""
    total, line = 400, "x" * 65_536
    heard: list[int] = []

    async def hand_over(channel: Channel) -> None:
        for number in range(total):
            channel.send_event("adopt", number=number, line=line)
            await channel.drain()

    body = READY + (
        "while (messages := line.receive()) is not None:\n"
        "    for message in messages:\n"
        '        if message.get("event") == "adopt":\n'
        '            line.send({"event": "heard", "number": message["number"]})\n'
        '        elif "method" in message:\n'
        '            line.send({"id": message["id"], "result": "pong"})\n'
    )
    process = programs.process(
        body, handover=hand_over, on_event=lambda message: heard.append(message["number"])
    )
    await process.start()
    await until(lambda: len(heard) == total, "the whole handover", 20)
    assert heard == list(range(total))
    assert process.restarts == 0
