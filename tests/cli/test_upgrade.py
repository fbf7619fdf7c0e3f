"""``relayctl upgrade``: the process stays, what runs in it is new; or everything stays as it is."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cli.main import EXIT_FAILED, EXIT_NOT_RUNNING, EXIT_TAKEN, EXIT_USAGE
from tests.cli.relayctl import RELAYCTL, START_TIMEOUT_S, Relayctl, free_tcp
from tests.cli.transceiver_host import TransceiverHost
from tests.host.deadline import wait_until
from tests.measured import note_measured

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path, relayctl: Relayctl) -> Path:
    """A configuration of transceivers alone, which outlive their supervisor without XDP."""
    path = tmp_path / "relayctl.toml"
    path.write_text(f"[fleet]\nvip = ['{relayctl.listen}']\n[transceiver]\nprocesses = 1\n")
    return path


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """What came to NOTIFY_SOCKET since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)

        def take() -> list[str]:
            datagrams = []
            while True:
                try:
                    datagrams.append(sock.recv(4096).decode())
                except BlockingIOError:
                    return datagrams

        yield take


def transceivers(relayctl: Relayctl, config: Path) -> tuple[str, ...]:
    return "--role", "transceivers", "--config", str(config), "--http", relayctl.http


def start(relayctl: Relayctl, config: Path) -> int:
    done = relayctl.run("start", "--daemon", *transceivers(relayctl, config))
    assert done.returncode == 0, done.stderr
    return relayctl.pid()


@contextlib.contextmanager
def killed_on_failure(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens, nobody waits for it for ever."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def words(pid: int) -> list[str]:
    return psutil.Process(pid).cmdline()


def start_time(pid: int) -> float:
    return psutil.Process(pid).create_time()


def children(pid: int) -> dict[int, str]:
    """State by pid, zombies included."""
    found: dict[int, str] = {}
    for child in psutil.Process(pid).children():
        try:
            found[child.pid] = child.status()
        except psutil.NoSuchProcess:
            continue
    return found


def hears_signals(pid: int, thread: int) -> bool:
    """Whether SIGTERM may be delivered to this thread."""
    status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    (blocked,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))
    return not blocked & 1 << (signal.SIGTERM - 1)


def no_zombie(pid: int, processes: int) -> Callable[[], bool]:
    return lambda: len(children(pid)) == processes and psutil.STATUS_ZOMBIE not in children(pid).values()


def test_same_process_twice_with_new_transceivers_and_no_zombie(relayctl: Relayctl, config: Path) -> None:
    pid = start(relayctl, config)
    host = TransceiverHost(relayctl)
    version = relayctl.status()["version"]
    for _ in range(2):
        before = relayctl.status()
        done = relayctl.run("upgrade")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"upgraded: {version} -> {version} (pid {pid})\n"
        after = relayctl.status()
        assert (after["pid"], after["state"]) == (pid, "running")
        old, new = (s["transceivers"]["processes"][0]["pid"] for s in (before, after))
        assert old != new
        wait_until(no_zombie(pid, 1), "the old transceiver is reaped")
        assert list(children(pid)) == [new]
    assert host.offer()[0] == 201
    assert len(relayctl.json("sessions")) == 1
    stopped = relayctl.run("stop", "--drain", "0")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped (pid {pid})\n")
    relayctl.await_end()


def test_transceiver_with_a_session_goes_on_and_is_reaped_after_it(relayctl: Relayctl, config: Path) -> None:
    pid = start(relayctl, config)
    assert TransceiverHost(relayctl).offer()[0] == 201
    (old,) = (process["pid"] for process in relayctl.status()["transceivers"]["processes"])
    assert relayctl.run("upgrade").returncode == 0
    assert [entry["pid"] for entry in relayctl.status()["left_behind"]] == [old]
    assert children(pid)[old] != psutil.STATUS_ZOMBIE
    os.kill(old, 15)
    wait_until(no_zombie(pid, 1), "the old transceiver is reaped")
    assert relayctl.status()["left_behind"] == []


def test_nobody_who_calls_meanwhile_is_refused(relayctl: Relayctl, config: Path) -> None:
    config.write_text(config.read_text() + "requests_per_s = 1000.0\nrequest_burst = 1000\n")
    start(relayctl, config)
    host = TransceiverHost(relayctl)
    upgraded = threading.Event()
    answers: list[tuple[int, float]] = []

    def call() -> None:
        while not upgraded.wait(0.05):
            status, _, seconds = host.offer()
            answers.append((status, seconds))

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call)
        try:
            done = relayctl.run("upgrade")
        finally:
            upgraded.set()
        # A connection that is refused, or cut, is an error here
        calling.result(START_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert {status for status, _ in answers} == {201}
    assert max(seconds for _, seconds in answers) > 0.3, "nobody called while nobody was there"
    note_measured(f"upgrade: of {len(answers)} offers the longest took {max(s for _, s in answers):.1f} s")


def test_commands_wait_meanwhile_and_no_other_start_comes_between(relayctl: Relayctl, config: Path) -> None:
    pid = start(relayctl, config)
    command = (pid, start_time(pid), words(pid))
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(relayctl.run, "upgrade")
        wait_until(lambda: words(pid) != command[2], "the successor")
        another = relayctl.run("start", *transceivers(relayctl, config))
        status = relayctl.run("status")
        done = upgrading.result(START_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert another.returncode == EXIT_TAKEN
    assert f"already running with pid {pid}" in another.stderr
    assert (status.returncode, status.stderr) == (0, "")
    assert (pid, start_time(pid)) == command[:2]


def test_userspace_data_path_is_refused_and_goes_on(relayctl: Relayctl) -> None:
    pid = relayctl.start()
    before = children(pid)
    refused = relayctl.run("upgrade")
    assert refused.returncode == EXIT_FAILED
    assert "userspace data path" in refused.stderr
    assert "`relayctl restart`" in refused.stderr
    assert children(pid).keys() == before.keys()
    assert relayctl.status()["state"] == "running"


def test_nothing_to_upgrade(relayctl: Relayctl, config: Path) -> None:
    never = relayctl.run("upgrade")
    assert never.returncode == EXIT_NOT_RUNNING
    assert "nothing was ever started" in never.stderr
    start(relayctl, config)
    assert relayctl.run("stop").returncode == 0
    ended = relayctl.run("upgrade")
    assert ended.returncode == EXIT_NOT_RUNNING
    assert "nothing runs" in ended.stderr


def test_bad_configuration_begins_nothing(relayctl: Relayctl, config: Path) -> None:
    pid = start(relayctl, config)
    before = children(pid)
    config.write_text("[transceiver]\nprocesse = 1\n")
    refused = relayctl.run("upgrade")
    assert refused.returncode == EXIT_USAGE
    assert "transceiver.processe" in refused.stderr
    assert children(pid).keys() == before.keys()


def test_start_that_fails_is_told_and_the_next_takes_over(relayctl: Relayctl, config: Path) -> None:
    """What no check sees: another address, which somebody else has."""
    arguments = ("--role", "transceivers", "--config", str(config))
    taken = free_tcp()
    text = config.read_text()
    config.write_text(f"{text}http = '{relayctl.http}'\n")
    process = relayctl.spawn("start", *arguments)
    wait_until(lambda: relayctl.run("status").returncode == 0, "the start")
    wait_until(lambda: relayctl.status()["state"] == "running", "the start")
    assert TransceiverHost(relayctl).offer()[0] == 201
    (old,) = (process["pid"] for process in relayctl.status()["transceivers"]["processes"])
    config.write_text(f"{text}http = '{taken}'\n")
    host, port = taken.rsplit(":", 1)
    with socket.create_server((host, int(port))):
        failed = relayctl.run("upgrade")
    assert failed.returncode == EXIT_FAILED
    assert f"transceiver.http: {taken} is taken by" in failed.stderr
    assert "`relayctl start` takes them over" in failed.stderr
    # So that a service manager starts it again
    assert process.wait(10) == EXIT_TAKEN
    assert psutil.pid_exists(old)
    started = relayctl.run("start", "--daemon", *arguments)
    assert started.returncode == 0, started.stderr
    assert [entry["pid"] for entry in relayctl.status()["left_behind"]] == [old]


def test_service_manager_hears_of_both_and_no_process_of_ours_could_tell_it(
    relayctl: Relayctl, config: Path, tmp_path: Path, notified: Callable[[], list[str]]
) -> None:
    command = [
        str(RELAYCTL),
        "start",
        *transceivers(relayctl, config),
        "--state-dir",
        str(relayctl.state_dir),
    ]
    environment = {**relayctl._environment({}), "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process,
        killed_on_failure(process),
    ):
        said: list[str] = []
        for _ in range(2):

            def is_ready() -> bool:
                said.extend(notified())
                return any(datagram.startswith("READY=1\nSTATUS=relayctl ") for datagram in said)

            wait_until(is_ready, "READY=1")
            for child in psutil.Process(process.pid).children():
                assert "NOTIFY_SOCKET" not in child.environ()
            said.clear()
            upgraded = relayctl.run("upgrade")
            assert upgraded.returncode == 0, upgraded.stderr
        said = notified()
        assert any(datagram.startswith("READY=1") for datagram in said)
        assert relayctl.run("stop").returncode == 0
        ended = notified()
        assert ended[0].startswith("STOPPING=1\n")
        assert ended[1].startswith("EXTEND_TIMEOUT_USEC=")
    assert process.returncode == 0


def test_upgrade_that_is_not_begun_after_all_ends_nothing(relayctl: Relayctl, config: Path) -> None:
    """As a supervisor tells it that cannot run what it was given."""
    relayctl.state_dir.mkdir(mode=0o700)
    (relayctl.state_dir / "launch.json").write_text(json.dumps(transceivers(relayctl, config)))
    why = "cannot run /x (Exec format error); the supervisor of version 1.2.3 goes on"

    def supervise(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            request = json.loads(lines.readline())
            answer = {"id": request["id"], "result": {"pid": 1, "version": "1.2.3"}}
            for message in (answer, {"error": why, "begun": False}):
                print(json.dumps(message), file=lines, flush=True)

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(relayctl.state_dir / "admin.sock"))
        listener.listen()
        listener.settimeout(START_TIMEOUT_S)
        supervising = pool.submit(supervise, listener)
        failed = relayctl.run("upgrade")
        supervising.result()
    assert (failed.returncode, failed.stderr) == (EXIT_FAILED, f"relayctl: {why}\n")


def test_signals_come_to_the_one_thread_that_can_keep_them_for_a_successor(
    relayctl: Relayctl, config: Path
) -> None:
    pid = start(relayctl, config)
    for _ in range(2):
        threads = [thread.id for thread in psutil.Process(pid).threads()]
        assert [thread for thread in threads if hears_signals(pid, thread)] == [pid]
        assert relayctl.run("upgrade").returncode == 0


def test_sigterm_in_the_middle_of_it_ends_everything(relayctl: Relayctl, config: Path) -> None:
    """It comes when no Python runs that could hear it; the transceiver with a session is the predecessor's."""
    config.write_text(config.read_text() + "[host]\ndrain_s = 0.5\n")
    process = relayctl.spawn("start", *transceivers(relayctl, config))
    wait_until(lambda: relayctl.run("status").returncode == 0, "the start")
    wait_until(lambda: relayctl.status()["state"] == "running", "the start")
    assert TransceiverHost(relayctl).offer()[0] == 201
    command = words(process.pid)
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(relayctl.run, "upgrade")
        wait_until(lambda: words(process.pid) != command, "the successor")
        process.terminate()
        upgrading.result(START_TIMEOUT_S)
    assert process.wait(START_TIMEOUT_S) == 0
    relayctl.await_end()
