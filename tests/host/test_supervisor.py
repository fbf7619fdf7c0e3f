"""The supervisor: starts its services in order, answers the admin socket, ends everything in the reverse order."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import time
from typing import Any

import pytest

import host.process
from host.channel import STREAM_LIMIT, ChannelError
from host.errors import OperatorError, StartError
from host.service_manager import ServiceManager
from tests.host.bench import Bench, FakeService, History
from tests.host.deadline import until
from tests.host.programs import GOOD, SILENT, Programs
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
