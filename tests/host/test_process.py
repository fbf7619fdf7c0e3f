"""One supervised child process: started, watched, restarted with back-off, ended."""

import asyncio
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

import host.process
from host.channel import Channel, ChannelError
from host.errors import StartError
from host.process import ProcessState
from tests.host.deadline import until
from tests.host.programs import (
    GOOD,
    READY,
    SILENT,
    Heard,
    Programs,
    is_alive,
    kill,
    restarted,
)
from wire.admin import Message

pytestmark = pytest.mark.usefixtures("quick")


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
            user="nobody",
        )
        await process.start()
        write.close()
        await process.stop()
        settings = {"fd": writer, "keys": "ä"}
        assert read.read() == repr({"event": "configure", "settings": settings, "core": 0, "user": "nobody"})


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


async def test_every_readiness_is_told_before_start_returns(programs: Programs) -> None:
    told: list[str] = []
    process = programs.process(
        GOOD, on_ready=lambda: told.append("ready"), on_exit=lambda: told.append("exit")
    )
    await process.start()
    assert told == ["ready"]
    kill(process)
    await restarted(process)
    assert told == ["ready", "exit", "ready"]


async def test_registry_has_the_process_while_it_lives(programs: Programs) -> None:
    """Whoever starts after a supervisor that died finds it by the file."""
    process = programs.process(GOOD, name="worker-3")
    await process.start()
    (entry,) = programs.found_in_registry()
    assert (entry.name, entry.module, entry.pid) == ("worker-3", process.spec.module, process.pid)
    kill(process)
    await restarted(process)
    assert [entry.pid for entry in programs.found_in_registry()] == [process.pid]
    assert programs.registry_file.read_text().count("worker-3") == 1, "the one that was killed is off it"
    await process.stop()
    assert not programs.registry_file.exists()


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

    async def hand_over(channel: Channel) -> None:
        channel.send_event("adopt")
        channel.send_event("serve")

    process = programs.process(
        "while len(messages) < 3: messages += line.receive()\n"
        "line.send({'event': 'order', 'events': [message['event'] for message in messages]})\n" + GOOD,
        handover=hand_over,
        on_event=heard,
    )
    await process.start()
    kill(process)
    await restarted(process)
    assert heard.values("order", "events") == [["configure", "adopt", "serve"]] * 2


async def test_what_is_sent_arrives_while_the_process_runs(programs: Programs) -> None:
    heard = Heard()
    process = programs.process(GOOD, on_event=heard)
    await process.send("adopt", flows=[0])
    await process.start()
    await process.send("adopt", flows=[1, 2])
    await until(lambda: heard.messages, "the event")
    assert heard.values("heard", "message") == [{"event": "adopt", "flows": [1, 2]}]
    await process.stop()
    await process.send("adopt", flows=[3])


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
