"""The supervisor: starts its services in order, answers the admin socket, ends everything in the reverse order."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import host.process
from host.channel import STREAM_LIMIT, ChannelError
from host.errors import OperatorError, StartError
from host.registry import ProcessRegistry
from host.service_manager import ServiceManager
from host.successor import ENDING_SIGNALS
from tests.host.bench import Bench, FakeService, History
from tests.host.deadline import until
from tests.host.programs import GOOD, SILENT, Heard, Programs
from wire.admin import encode_message

# start


async def test_services_start_side_by_side_and_take_over_once_all_are_ready(
    bench: Bench, programs: Programs
) -> None:
    history: History = []
    first = FakeService("first", [programs.spec(GOOD), programs.spec(GOOD)], history)
    seen: list[str] = []

    def settings() -> dict[str, Any]:
        seen.extend(process.state.value for process in first.processes)
        return {}

    second = FakeService("second", [programs.spec(GOOD, settings=settings)], history)
    await bench.start_and_wait(first, second)
    assert "ready" not in seen, "nobody waits for the first one"
    assert history == [("take over", "first", "ready", "ready"), ("take over", "second", "ready")]
    await bench.end()


async def test_failed_start_ends_everything_and_says_which(
    bench: Bench, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.3)
    history: History = []
    services = [
        FakeService("good", [programs.spec(GOOD)], history),
        FakeService("bad", [programs.spec(GOOD), programs.spec(SILENT, name="worker-1")], history),
    ]
    ready = bench.start(*services)
    assert bench.running is not None
    with pytest.raises(StartError, match="worker-1 did not start"):
        await asyncio.wait_for(bench.running, 10)
    assert not ready.is_set()
    assert programs.living() == []
    assert [step for step in history if step[0] == "close"] == [
        ("close", "bad", "stopped", "stopped"),
        ("close", "good", "stopped"),
    ]


async def test_signal_during_a_start_that_hangs_ends_it(
    bench: Bench, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C must not have to wait for the start's own timeout."""
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 4.0)
    service = FakeService("silent", [programs.spec(SILENT)], [])
    bench.start(service)
    await until(programs.living, "the program runs")
    os.kill(os.getpid(), signal.SIGINT)
    assert bench.running is not None
    done, _ = await asyncio.wait({bench.running}, timeout=2)
    if not done:
        await asyncio.wait({bench.running}, timeout=10)
    with contextlib.suppress(StartError):
        bench.running.result()
    assert done, "not ended 2 s after SIGINT"


# the admin socket


async def test_admin_socket_is_private_and_the_umask_is_restored(bench: Bench) -> None:
    old = os.umask(0o027)
    try:
        await bench.start_and_wait()
        mode = bench.state_dir.admin_socket.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    await bench.end()


@pytest.mark.parametrize("kind", ["socket", "file"])
async def test_what_lies_where_the_admin_socket_belongs_is_replaced(bench: Bench, kind: str) -> None:
    if kind == "file":
        bench.state_dir.admin_socket.touch()
    else:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(bench.state_dir.admin_socket))
    await bench.start_and_wait()
    assert (await bench.ask("status"))["state"] == "running"
    await bench.end()


async def test_status_tells_of_the_supervisor_and_each_service(bench: Bench, programs: Programs) -> None:
    relay = FakeService("relay", [programs.spec(GOOD, name="worker-0")], [])
    transceivers = FakeService("transceivers", [programs.spec(GOOD, name="transceiver-0")], [])
    await bench.start_and_wait(relay, transceivers)
    status = await bench.ask("status")
    assert list(status) == [
        *("version", "pid", "state", "started_at", "uptime_s", "state_dir", "left_behind"),
        *("relay", "transceivers"),
    ]
    assert status["version"] == "1.2.3"
    assert status["pid"] == os.getpid()
    assert status["state"] == "running"
    assert status["state_dir"] == str(bench.state_dir.path)
    assert 0 <= status["uptime_s"] < 10
    assert [process["name"] for process in status["relay"]["processes"]] == ["worker-0"]
    assert [process["name"] for process in status["transceivers"]["processes"]] == ["transceiver-0"]
    await bench.end()


async def test_status_while_starting_says_so(bench: Bench, programs: Programs) -> None:
    ready = bench.start(FakeService("slow", [programs.spec("time.sleep(0.5)\n" + GOOD)], []))
    await until(lambda: programs.living() and bench.state_dir.admin_socket.exists(), "the start has begun")
    status = await bench.ask("status")
    assert status["state"] == "starting"
    assert status["slow"]["processes"][0]["state"] == "starting"
    await asyncio.wait_for(ready.wait(), 10)
    assert (await bench.ask("status"))["state"] == "running"
    await bench.end()


async def test_methods_of_services_are_answered(bench: Bench, programs: Programs) -> None:
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    assert await bench.ask("ask_relay") == "ping"
    await bench.end()


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        pytest.param(
            "flow",
            {},
            "no method 'flow'; this supervisor knows ask_relay, status, stop",
            id="unknown method names the known ones",
        ),
        pytest.param("status", {"verbose": True}, "verbose", id="unknown parameter"),
        pytest.param("stop", {"drain_s": "soon"}, "soon", id="parameter of the wrong kind"),
    ],
)
async def test_wrong_request_is_answered_and_harms_nothing(
    bench: Bench, programs: Programs, method: str, params: dict[str, Any], words: str
) -> None:
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    with pytest.raises(ChannelError, match=words):
        await bench.ask(method, **params)
    assert (await bench.ask("status"))["state"] == "running"
    await bench.end()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"{}\n", id="no request"),
        pytest.param(b" " * (STREAM_LIMIT + 2), id="oversized"),
    ],
)
async def test_bad_admin_client_is_disconnected_alone(bench: Bench, line: bytes) -> None:
    await bench.start_and_wait()
    good_reader, good_writer = await bench.connect()
    reader, writer = await bench.connect()
    with contextlib.suppress(ConnectionError):
        writer.write(line)
        await writer.drain()
        assert await asyncio.wait_for(reader.read(), 5) == b""
    good_writer.write(encode_message({"id": 5, "method": "nothing"}))
    assert b'"id":5' in await asyncio.wait_for(good_reader.readline(), 5)
    await bench.end()


# end


async def test_end_is_last_service_first_each_drained_before_it_stops(
    bench: Bench, programs: Programs
) -> None:
    history: History = []
    relay = FakeService("relay", [programs.spec(GOOD)], history)
    transceivers = FakeService("transceivers", [programs.spec(GOOD), programs.spec(GOOD)], history)
    seen: list[list[str]] = []

    async def look_at_the_relay(timeout_s: float) -> None:
        seen.append([process.state.value for process in relay.processes])

    transceivers._drain = look_at_the_relay
    await bench.start_and_wait(relay, transceivers)
    await bench.end()
    assert history == [
        ("take over", "relay", "ready"),
        ("take over", "transceivers", "ready", "ready"),
        ("drain", "transceivers", "ready", "ready"),
        ("close", "transceivers", "stopped", "stopped"),
        ("drain", "relay", "ready"),
        ("close", "relay", "stopped"),
    ]
    assert seen == [["ready"]], "the relay carries the good-byes"
    assert programs.living() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_signal_ends_it(bench: Bench, programs: Programs, number: signal.Signals) -> None:
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    os.kill(os.getpid(), number)
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert programs.living() == []


async def test_stop_is_answered_before_it_is_done(bench: Bench) -> None:
    await bench.start_and_wait(drain_s=3.5)
    assert await bench.ask("stop") == {"pid": os.getpid(), "drain_s": 3.5}
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)


async def test_stop_may_set_the_drain_time(bench: Bench) -> None:
    service = FakeService("relay", [], [])
    await bench.start_and_wait(service, drain_s=3.5)
    assert (await bench.ask("stop", drain_s=0.5))["drain_s"] == 0.5
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert service.drain_timeouts == [0.5]


async def endless(timeout_s: float) -> None:
    """A service whose calls go on."""
    await asyncio.Event().wait()


async def test_status_says_draining_and_a_second_signal_ends_at_once(
    bench: Bench, programs: Programs
) -> None:
    history: History = []
    service = FakeService("relay", [programs.spec(GOOD)], history, endless)
    await bench.start_and_wait(service, drain_s=600)
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: len(history) == 2, "the drain has begun")
    assert (await bench.ask("status"))["state"] == "draining"
    started = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert time.monotonic() - started < 3
    assert programs.living() == []


async def test_second_stop_with_a_shorter_drain_is_heeded(bench: Bench, programs: Programs) -> None:
    """`relayctl stop --drain 600`, then second thoughts: `relayctl stop --drain 0`."""
    history: History = []

    async def drain(timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], history, drain))
    await bench.ask("stop", drain_s=600)
    await until(lambda: len(history) == 2, "the drain has begun")
    await bench.ask("stop", drain_s=0)
    assert bench.running is not None
    done, _ = await asyncio.wait({bench.running}, timeout=2)
    if not done:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({bench.running}, timeout=10)
    assert done, "still draining 2 s after `stop` with drain_s = 0"


@pytest.mark.parametrize(
    "error", [ChannelError("gone"), OperatorError("no"), RuntimeError("bug")], ids=lambda e: type(e).__name__
)
async def test_drain_that_fails_does_not_spare_the_rest(
    bench: Bench, programs: Programs, error: Exception
) -> None:
    history: History = []

    async def fail(timeout_s: float) -> None:
        raise error

    relay = FakeService("relay", [programs.spec(GOOD)], history)
    transceivers = FakeService("transceivers", [programs.spec(GOOD)], history, fail)
    await bench.start_and_wait(relay, transceivers)
    await bench.ask("stop")
    assert bench.running is not None
    await asyncio.wait({bench.running}, timeout=10)
    assert [step[:2] for step in history[2:]] == [
        ("drain", "transceivers"),
        ("close", "transceivers"),
        ("drain", "relay"),
        ("close", "relay"),
    ]
    assert programs.living() == []


async def test_admin_client_that_stays_connected_does_not_delay_the_end(bench: Bench) -> None:
    await bench.start_and_wait()
    await bench.connect()
    await bench.ask("stop")
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 5)


# what started us


class Told(ServiceManager):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, str | int]] = []

    def tell(self, **variables: str | int) -> None:
        self.said.append(variables)


async def test_service_manager_hears_of_start_readiness_and_end(bench: Bench, programs: Programs) -> None:
    told = Told()
    service = FakeService("relay", [programs.spec(GOOD)], [])
    ready = bench.start(service, drain_s=600.0, manager=told)
    await asyncio.wait_for(ready.wait(), 10)
    assert told.said == [
        {"STATUS": "relayctl 1.2.3 starts"},
        {"READY": 1, "STATUS": "relayctl 1.2.3 runs"},
    ]
    await bench.end()
    # More than the drain: systemd kills at the end of it.
    assert told.said[2:] == [
        {"STOPPING": 1, "STATUS": "ending; calls may go on for 600 s"},
        {"EXTEND_TIMEOUT_USEC": 630_000_000},
    ]


async def test_start_that_fails_is_never_ready(
    bench: Bench, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 0.3)
    told = Told()
    bench.start(FakeService("relay", [programs.spec(SILENT)], []), manager=told)
    assert bench.running is not None
    with pytest.raises(StartError):
        await asyncio.wait_for(bench.running, 10)
    assert not any("READY" in variables for variables in told.said)


# upgrade


async def test_upgrade_is_refused_where_calls_would_end(bench: Bench, programs: Programs) -> None:
    service = FakeService("relay", [programs.spec(GOOD)], [])
    service.ends_with_supervisor = "its workers do"
    await bench.start_and_wait(service)
    with pytest.raises(ChannelError, match=r"its workers do; use `relayctl restart`"):
        await bench.ask("upgrade", command=["/bin/true"])
    service.ends_with_supervisor = ""
    with pytest.raises(ChannelError, match="cannot run /nonexistent"):
        await bench.ask("upgrade", command=["/nonexistent"])
    with pytest.raises(ChannelError, match="does not take"):
        await bench.ask("upgrade", program="/bin/true")
    assert [process.state.value for process in service.processes] == ["ready"]
    await bench.end()


async def test_upgrade_is_refused_while_something_else_goes_on(bench: Bench, programs: Programs) -> None:
    ended = asyncio.Event()

    async def drain(timeout_s: float) -> None:
        await ended.wait()

    silent = programs.spec(SILENT)
    service = FakeService("relay", [silent], [], drain)
    bench.start(service)
    await until(lambda: len(programs.living()) == 1, "the program runs")
    with pytest.raises(ChannelError, match="is starting"):
        await bench.ask("upgrade", command=["/bin/true"])
    await bench.ask("stop")
    await until(lambda: service.drain_timeouts, "the drain")
    with pytest.raises(ChannelError, match="is draining"):
        await bench.ask("upgrade", command=["/bin/true"])
    ended.set()
    await bench.end()


async def converse(
    bench: Bench, *requests: tuple[str, dict[str, Any]], has_outcome: bool = True
) -> list[dict[str, Any]]:
    """What is said on one connection after requests that arrive together: their answers, the outcome, and the end."""
    reader, writer = await bench.connect()
    lines = [{"id": i, "method": method, "params": params} for i, (method, params) in enumerate(requests)]
    writer.write(b"".join(map(encode_message, lines)))
    async with asyncio.timeout(5):
        said = [await reader.readline() for _ in range(len(lines) + has_outcome)]
        if has_outcome:
            assert await reader.read() == b""
    return [json.loads(line) for line in said]


@pytest.fixture
def no_program(tmp_path: Path) -> str:
    """What may be run, and cannot."""
    program = tmp_path / "program"
    program.write_text("not a program")
    program.chmod(0o755)
    return str(program)


async def test_upgrade_that_cannot_be_run_is_told_and_leaves_everything_as_it_is(
    bench: Bench, programs: Programs, no_program: str
) -> None:
    service = FakeService("relay", [programs.spec(GOOD)], [])
    await bench.start_and_wait(service)
    (pid,) = programs.living()
    answer, outcome = await converse(bench, ("upgrade", {"command": [no_program]}))
    assert answer["result"] == {"pid": os.getpid(), "version": "1.2.3"}
    assert outcome == {
        "error": f"cannot run {no_program} (Exec format error); the supervisor of version 1.2.3 goes on",
        "begun": False,
    }
    assert (await bench.ask("status"))["state"] == "running"
    assert await bench.ask("ask_relay") == "ping"
    assert programs.living() == [pid]
    await bench.end()


async def has_ended(bench: Bench, programs: Programs) -> None:
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert programs.living() == []


async def test_upgrade_right_behind_a_stop_is_refused(
    bench: Bench, programs: Programs, no_program: str
) -> None:
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    stopped, refused = await converse(
        bench, ("stop", {}), ("upgrade", {"command": [no_program]}), has_outcome=False
    )
    assert stopped["result"]["pid"] == os.getpid()
    assert refused.get("error") == "the supervisor was told to end; nothing is upgraded"
    await has_ended(bench, programs)


async def test_stop_right_behind_an_upgrade_calls_it_off(
    bench: Bench, programs: Programs, no_program: str
) -> None:
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    begun, stopped, outcome = await converse(bench, ("upgrade", {"command": [no_program]}), ("stop", {}))
    assert "result" in begun
    assert "result" in stopped
    assert outcome == {"error": "the supervisor was told to end; nothing is upgraded", "begun": False}
    await has_ended(bench, programs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_signal_right_before_an_upgrade_calls_it_off(
    bench: Bench, programs: Programs, no_program: str, number: signal.Signals
) -> None:
    """It is in the loop's wake-up pipe, which no successor would read."""

    class Signalled(FakeService):
        def listeners(self) -> dict[str, int]:
            signal.raise_signal(number)
            return {}

    await bench.start_and_wait(Signalled("relay", [programs.spec(GOOD)], []))
    begun, outcome = await converse(bench, ("upgrade", {"command": [no_program]}))
    assert "result" in begun
    assert outcome["error"] == "the supervisor was told to end; nothing is upgraded"
    await has_ended(bench, programs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_signal_that_comes_with_the_upgrade_waits_for_whoever_goes_on(
    bench: Bench,
    programs: Programs,
    no_program: str,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    pending: list[set[int]] = []

    def execve(*arguments: Any) -> None:
        signal.raise_signal(number)
        pending.append(set(signal.sigpending()))
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(os, "execve", execve)
    await bench.start_and_wait(FakeService("relay", [programs.spec(GOOD)], []))
    await converse(bench, ("upgrade", {"command": [no_program]}))
    assert pending == [{number}], "a successor finds it"
    await has_ended(bench, programs)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


# a successor


@pytest.fixture
def blocked() -> Iterator[None]:
    """As a predecessor leaves the signals that end a supervisor."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    yield
    while signal.sigpending():
        signal.sigwait(signal.sigpending())
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


@pytest.mark.usefixtures("blocked")
async def test_signal_that_waited_for_the_successor_ends_it(bench: Bench, programs: Programs) -> None:
    signal.raise_signal(signal.SIGTERM)
    bench.start(FakeService("relay", [programs.spec(SILENT)], []))
    await has_ended(bench, programs)


@pytest.mark.usefixtures("blocked")
async def test_processes_of_a_successor_have_no_signal_blocked(bench: Bench, programs: Programs) -> None:
    heard = Heard()
    body = (
        "line.send({'event': 'mask', 'blocked': [*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))]})\n"
    )
    await bench.start_and_wait(FakeService("relay", [programs.spec(body + GOOD, on_event=heard)], []))
    assert heard.values("mask", "blocked") == [[]]
    await bench.end()


async def test_threads_leave_signals_to_the_loop(bench: Bench) -> None:
    """What came to them while the process becomes another one would be lost."""
    masks: list[set[int]] = []

    class Threaded(FakeService):
        async def take_over(self) -> None:
            masks.append(set(await asyncio.to_thread(signal.pthread_sigmask, signal.SIG_BLOCK, ())))

    await bench.start_and_wait(Threaded("relay", [], []))
    assert masks == [set(ENDING_SIGNALS)]
    await bench.end()


async def left_behind(bench: Bench, programs: Programs) -> int:
    """Pid of a process that is a predecessor's, and a child of ours."""
    process = programs.process(GOOD, name="worker-0")
    await process.start()
    assert process.pid is not None
    ProcessRegistry(bench.state_dir.processes_file).add("worker-0", process.spec.module, process.pid)
    process._ending.set()  # nobody starts it again
    return process.pid


@pytest.mark.parametrize(
    ("is_successor", "drain"),
    [
        pytest.param(True, {}, id="successor"),
        pytest.param(True, {"drain_s": 0}, id="successor at once"),
        pytest.param(False, {}, id="start after a crash"),
    ],
)
async def test_who_is_told_to_end_while_it_takes_over(
    bench: Bench, programs: Programs, is_successor: bool, drain: dict[str, Any]
) -> None:
    """A successor is the service that is to end; before it has taken over nobody ends what is left behind."""
    pid = await left_behind(bench, programs)
    (module,) = (entry.module for entry in ProcessRegistry(bench.state_dir.processes_file).left_behind)
    history: History = []
    service = FakeService("relay", [programs.spec("time.sleep(0.5)\n" + GOOD)], history)
    bench.start(service, modules=[module], drain_s=0.1, inherited=[pid] if is_successor else ())
    await until(lambda: len(programs.living()) == 2, "the start has begun")
    await bench.ask("stop", **drain)
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert (("take over", "relay", "ready") in history) is is_successor
    assert programs.living() == ([] if is_successor else [pid])


async def test_second_signal_ends_a_successor_that_does_not_come_up(bench: Bench, programs: Programs) -> None:
    pid = await left_behind(bench, programs)
    bench.start(FakeService("relay", [programs.spec(SILENT)], []), inherited=[pid])
    await until(lambda: len(programs.living()) == 2, "the start has begun")
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert bench.running is not None
    await asyncio.wait_for(bench.running, 10)
    assert programs.living() == [pid], "it serves calls"
