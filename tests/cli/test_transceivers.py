"""``relayctl transceivers`` with real processes: verbs in every state, and that no offer goes where it must not."""

import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from cli.main import EXIT_CALL_FAILED, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_USAGE
from tests.cli.relayctl import RELAYCTL, Relayctl
from tests.cli.transceiver_host import TransceiverHost
from tests.host.deadline import wait_until
from tests.ports import free_port

pytestmark = pytest.mark.slow

NAME = "transceiver-1"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransceiverHost]:
    """Two transceivers for many tests; each brings the second one to the state that it needs."""
    directory = tmp_path_factory.mktemp("lasting")
    relayctl, config = Relayctl(directory / "state"), directory / "c.toml"
    config.write_text(f"[transceiver]\nlisten = '127.0.0.1:{free_port(socket.SOCK_DGRAM)}'")
    try:
        relayctl.start("--transceivers", "2", "--config", str(config))
        yield TransceiverHost(relayctl)
    finally:
        relayctl.clean_up()


@pytest.fixture
def host(lasting: TransceiverHost) -> Iterator[TransceiverHost]:
    """Both transceivers ready and without sessions, before and after."""
    yield lasting
    lasting.ask("transceivers_scale", count=2, drain_s=0)
    wait_until(lambda: len(lasting.rows()) == 2, "two are left")
    names = [row["name"] for row in lasting.rows()]
    lasting.ask("transceivers_drain", names=names, deadline_s=0)
    wait_until(lambda: not any(row["sessions"] for row in lasting.rows()), "no session is left")
    lasting.ask("transceivers_start", names=names)
    for name in names:
        lasting.await_state(name, "ready")


def bring(host: TransceiverHost, state: str) -> None:
    """Bring the second transceiver to a state."""
    match state:
        case "ready":
            pass
        case "drained":
            host.ask("transceivers_drain", names=[NAME])
        case "stopped":
            host.ask("transceivers_stop", names=[NAME], drain_s=0)
        case "draining":
            host.occupy(NAME)
            host.ask("transceivers_drain", names=[NAME])
        case "draining, then crashed":
            bring(host, "draining")
            pid = host.row(NAME)["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: host.row(NAME)["pid"] not in (pid, None), "it is started anew")
            state = "drained"
        case "stopping":
            host.occupy(NAME)
            host.ask("transceivers_stop", names=[NAME], drain_s=60)
            state = "draining"
    host.await_state(NAME, state)


@pytest.mark.parametrize(
    ("state", "verb", "after", "serves"),
    [
        ("ready", "start", "ready", True),
        ("ready", "drain", "drained", False),
        ("ready", "stop", "stopped", False),
        ("draining", "start", "ready", True),
        ("draining", "drain --no-wait", "draining", False),
        ("draining", "drain --deadline 0.2", "drained", False),
        ("draining", "stop --no-wait", "draining", False),
        ("draining", "stop --drain 0.2", "stopped", False),
        ("drained", "start", "ready", True),
        ("drained", "drain", "drained", False),
        ("drained", "stop", "stopped", False),
        ("stopped", "start", "ready", True),
        ("stopped", "drain", "stopped", False),
        ("stopped", "stop", "stopped", False),
        ("stopping", "start", "ready", True),
        ("stopping", "drain --no-wait", "draining", False),
        ("stopping", "stop --drain 0", "stopped", False),
        ("draining, then crashed", "start", "ready", True),
        ("draining, then crashed", "drain", "drained", False),
        ("draining, then crashed", "stop", "stopped", False),
    ],
)
def test_verbs_in_every_state(host: TransceiverHost, state: str, verb: str, after: str, serves: bool) -> None:
    bring(host, state)
    name, *options = verb.split()
    done = host.relayctl.run("transceivers", name, NAME, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert host.states() == {"transceiver-0": "ready", NAME: after}
    if "--no-wait" not in options:
        assert f"{NAME} {after}\n" in done.stdout
    before = host.row(NAME)["sessions"]
    assert [host.offer()[0] for _ in range(3)] == [201, 201, 201]
    assert (host.row(NAME)["sessions"] > before) == serves


def test_list_and_status_tell_the_same(host: TransceiverHost) -> None:
    host.occupy(NAME)
    assert host.relayctl.run("transceivers", "drain", NAME, "--deadline", "600", "--no-wait").stdout == ""
    [first, second] = host.relayctl.json("transceivers", "list")
    assert (first["state"], second["state"]) == ("ready", "draining")
    assert (second["sessions"], second["connected"], second["max_sessions"]) == (1, 0, 200)
    assert 590 < second["deadline_s"] <= 600
    processes = host.relayctl.status()["transceivers"]["processes"]
    for process, row in zip(processes, (first, second), strict=True):
        assert {key: process[key] for key in row} | {"deadline_s": 0} == row | {"deadline_s": 0}
    text = host.relayctl.run("transceivers", "list").stdout
    for words in ("2 transceivers", "calls end in", first["address"], str(second["pid"]), "draining"):
        assert words in text
    assert "draining" in host.relayctl.run("status").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("drain", NAME, "nobody"), EXIT_FAILED, "no transceiver 'nobody' here; there are transceiver-0, "),
        (("stop", "worker-0"), EXIT_FAILED, "no transceiver 'worker-0' here"),
        (("start", ""), EXIT_FAILED, "no transceiver '' here"),
        (("drain",), EXIT_USAGE, "Missing argument"),
        (("drain", NAME, "--deadline", "-1"), EXIT_USAGE, "--deadline"),
        (("stop", NAME, "--drain", "nan"), EXIT_USAGE, "--drain"),
        (("scale", "0"), EXIT_USAGE, "1<=x<=256"),
        (("scale", "257"), EXIT_USAGE, "1<=x<=256"),
    ],
)
def test_wrong_usage_is_explained_and_changes_nothing(
    host: TransceiverHost, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = host.relayctl.run("transceivers", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert set(host.states().values()) == {"ready"}


def test_progress_is_told_in_lines_and_ctrl_c_leaves_it_draining(host: TransceiverHost) -> None:
    locations = [host.occupy(NAME) for _ in range(2)]
    waiting = host.relayctl.spawn("transceivers", "drain", NAME, "--deadline", "100")
    output = host.relayctl.state_dir.parent / f"{host.relayctl.state_dir.name}.out"
    wait_until(lambda: "2 sessions left, ended in 1m" in output.read_text(), "progress")
    assert host.hang_up(locations[0]) == 200
    wait_until(lambda: "\n1 session left" in output.read_text(), "progress")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(10) == EXIT_INTERRUPTED
    assert "still draining: 1 session left, ended in 1m" in output.read_text()
    assert host.states()[NAME] == "draining"
    again = host.relayctl.spawn("transceivers", "drain", NAME)
    wait_until(lambda: "1 session left, ended in 1m" in output.read_text(), "the deadline is kept")
    assert host.hang_up(locations[1]) == 200
    assert again.wait(10) == 0
    assert output.read_text().endswith(f"{NAME} drained\n")


def test_wait_ends_when_calls_are_taken_again(host: TransceiverHost) -> None:
    host.occupy(NAME)
    waiting = host.relayctl.spawn("transceivers", "drain", NAME)
    host.await_state(NAME, "draining")
    assert host.relayctl.run("transceivers", "start", NAME).stdout == f"{NAME} ready\n"
    assert waiting.wait(10) == EXIT_FAILED


def test_progress_on_a_terminal_is_a_bar(host: TransceiverHost) -> None:
    host.occupy(NAME)
    ours, theirs = pty.openpty()
    command = [str(RELAYCTL), "transceivers", "drain", NAME, "--deadline", "1"]
    place = ["--state-dir", str(host.relayctl.state_dir)]
    with subprocess.Popen([*command, *place], stdout=theirs, env={**os.environ, "TERM": "xterm"}) as waiting:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
        assert waiting.wait(10) == 0
    os.close(ours)
    assert b"1 session left, ended in" in said
    assert "━".encode() in said
    assert f"{NAME} drained".encode() in said


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_scale_up_and_down(host: TransceiverHost) -> None:
    sessions = [host.occupy(name) for name in ("transceiver-0", NAME)]
    up = host.relayctl.run("transceivers", "scale", "4")
    assert (up.returncode, up.stdout) == (0, "4 transceivers (before: 2)\n")
    assert [host.offer()[0] for _ in range(6)] == [201] * 6
    assert [row["sessions"] for row in host.rows()] == [2, 2, 2, 2]
    assert len({row["address"] for row in host.rows()}) == 4

    down = host.relayctl.run("transceivers", "scale", "1", "--drain", "60", "--no-wait")
    assert (down.returncode, down.stdout) == (0, "1 transceiver (before: 4)\n")
    assert list(host.states().values()) == ["ready", "draining", "draining", "draining"]
    assert host.offer()[0] == 201
    assert [row["sessions"] for row in host.rows()] == [3, 2, 2, 2]
    back = host.relayctl.run("transceivers", "scale", "2", "--no-wait")
    assert back.stdout == "2 transceivers (before: 1)\n"
    assert list(host.states().values()) == ["ready", "ready", "draining", "draining"]
    assert host.hang_up(sessions[1]) == 200
    hurried = host.relayctl.run("transceivers", "scale", "1", "--drain", "0")
    assert hurried.returncode == 0
    assert hurried.stdout.endswith("1 transceiver (before: 2)\n")
    assert {f"transceiver-{index} removed" for index in (1, 2, 3)} <= set(hurried.stdout.splitlines())
    assert list(host.states()) == ["transceiver-0"]
    assert host.row("transceiver-0")["sessions"] == 3
    assert host.hang_up(sessions[0]) == 200


def test_host_without_a_single_process_refuses_at_once(host: TransceiverHost) -> None:
    host.relayctl.run("transceivers", "drain", "transceiver-0", NAME)
    assert (host.offer()[0], host.health()) == (503, 503)
    host.relayctl.run("transceivers", "stop", "transceiver-0", NAME)
    with pytest.raises(OSError, match="refused"):
        host.offer()
    host.relayctl.run("transceivers", "start", NAME)
    assert (host.offer()[0], host.health()) == (201, 200)


def test_only_a_relay_has_no_transceivers(relayctl: Relayctl) -> None:
    relayctl.start("--role", "relay")
    done = relayctl.run("transceivers", "list")
    assert (done.returncode, done.stdout) == (EXIT_NOT_RUNNING, "")
    assert "no transceivers run here" in done.stderr


# dead, hung, draining


def test_offers_go_where_they_are_taken(host: TransceiverHost) -> None:
    """One is drained, one killed, one stands still; and the same when nobody else is left."""
    host.ask("transceivers_scale", count=4)
    drained, killed, still, healthy = host.rows()
    assert host.relayctl.run("transceivers", "drain", drained["name"]).returncode == 0
    os.kill(still["pid"], signal.SIGSTOP)
    os.kill(killed["pid"], signal.SIGKILL)
    began = time.monotonic()
    try:
        answers = [host.offer() for _ in range(30)]
        took_s = time.monotonic() - began
        assert {status for status, _, _ in answers} == {201}
        assert max(seconds for _, _, seconds in answers) < 3
        assert took_s < 6
        wait_until(lambda: host.states()[still["name"]] == "hung", "it is seen to hang")
        sessions = {row["name"]: row["sessions"] for row in host.rows()}
        assert (sessions[drained["name"]], sessions[still["name"]]) == (0, 0)
        host.relayctl.run("transceivers", "drain", healthy["name"], "--no-wait")
        host.relayctl.run("transceivers", "drain", killed["name"], "--no-wait")
        alone = [host.offer() for _ in range(5)]
        assert {status for status, _, _ in alone} == {503}
        assert max(seconds for _, _, seconds in alone) < 1
        assert host.health() == 503
    finally:
        os.kill(still["pid"], signal.SIGCONT)


# live calls


def probe(relayctl: Relayctl, seconds: float) -> "subprocess.Popen[str]":
    """A call in the background; its report is JSON."""
    return relayctl.spawn("probe", relayctl.url, "--duration", str(seconds), "--json")


def report_of(relayctl: Relayctl) -> dict[str, object]:
    text = Path(relayctl.state_dir.parent / f"{relayctl.state_dir.name}.out").read_text()
    report: dict[str, object] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    return report


def await_call(host: TransceiverHost) -> str:
    """The name of the transceiver that has a connected call."""
    wait_until(lambda: sum(row["connected"] for row in host.rows()) == 1, "the call")
    return next(str(row["name"]) for row in host.rows() if row["connected"])


def test_call_goes_on_while_its_transceiver_drains_until_the_deadline_ends_it(host: TransceiverHost) -> None:
    call = probe(host.relayctl, 30)
    name = await_call(host)
    began = time.monotonic()
    host.ask("transceivers_drain", names=["transceiver-0", NAME])
    done = host.relayctl.run("transceivers", "drain", name, "--deadline", "2", "--no-wait")
    assert done.returncode == 0
    assert host.offer()[0] == 503
    assert call.wait(10) == EXIT_CALL_FAILED, "a probe whose call ended by itself says so"
    assert time.monotonic() - began > 2
    report = report_of(host.relayctl)
    assert (report["state"], report["heard"], report["packets_lost"]) == ("closed", True, 0)
    assert set(host.states().values()) == {"drained"}
    processes = {process["name"]: process for process in host.relayctl.status()["transceivers"]["processes"]}
    assert processes[name]["ended"]["drained"] >= 1


def test_call_goes_on_while_transceivers_come_and_go(host: TransceiverHost) -> None:
    host.ask("transceivers_drain", names=[NAME])
    call = probe(host.relayctl, 3)
    assert await_call(host) == "transceiver-0"
    for count in (3, 1, 2, 1):
        assert host.relayctl.run("transceivers", "scale", str(count)).returncode == 0
    assert call.wait(20) == 0, report_of(host.relayctl)
    assert report_of(host.relayctl)["packets_lost"] == 0


def has_only(host: TransceiverHost, names: list[str]) -> bool:
    return list(host.states()) == names


def test_addresses_of_new_ones_follow_the_base_port(host: TransceiverHost) -> None:
    base = int(host.row("transceiver-0")["address"].rpartition(":")[2])
    for count in (3, 2, 3):
        host.ask("transceivers_scale", count=count, drain_s=0)
        names = [f"transceiver-{index}" for index in range(count)]
        wait_until(partial(has_only, host, names), "scaled")
    assert [row["address"] for row in host.rows()] == [f"127.0.0.1:{base + index}" for index in range(3)]
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as taken:
        taken.bind(("127.0.0.1", base + 3))
        done = host.relayctl.run("transceivers", "scale", "5")
        assert done.returncode == EXIT_FAILED
        assert f"127.0.0.1:{base + 3} is taken" in done.stderr
    assert host.states() == {f"transceiver-{index}": "ready" for index in range(3)}
