"""The supervisor becomes another version of itself: when that is refused, what it does to signals, how the successor begins."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.channel import ChannelError
from host.registry import ProcessRegistry
from host.successor import ENDING_SIGNALS
from tests.host.bench import Bench, FakeService, History
from tests.host.deadline import until
from tests.host.programs import GOOD, SILENT, Heard, Programs
from wire.admin import encode_message


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
