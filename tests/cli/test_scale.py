"""``relayctl scale`` without XDP: the clients of real processes get another worker, and no packet is lost."""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from host.keystore import load_keys
from tests.cli.relayctl import RELAYCTL, Relayctl
from tests.e2e.crowd import Crowd
from tests.host.deadline import wait_until
from tests.host.unprivileged import run_unprivileged

pytestmark = pytest.mark.slow

CLIENTS = 60
INTERVAL_S = 0.05


@contextmanager
def crowd_of(relayctl: Relayctl) -> Iterator[Crowd]:
    """Clients that send one check each, then media alone: only shared flows keep them connected."""
    keys = load_keys(relayctl.state_dir / "keys.json")
    crowd = Crowd(nullcontext(), "127.0.0.1", nullcontext(), relayctl.listen, keys, CLIENTS, INTERVAL_S)
    crowd.start()
    try:
        crowd.wait_until_flowing(20)
        yield crowd
    finally:
        crowd.stop()


def assert_nothing_lost(crowd: Crowd) -> None:
    """But for media that was sent right behind the first check: it waits in another queue, and may be read before."""
    report = crowd.report()
    assert set(crowd.numbers_lost_up()) <= {0}, report
    assert (report["lost down"], report["doubled"]) == (0, 0), report


def packets_of_workers(relayctl: Relayctl) -> list[int]:
    return [worker["packets"] for worker in relayctl.status()["relay"]["workers"]]


def heard_of(crowd: Crowd) -> list[int]:
    """The next number of each client at the transceiver."""
    return [client.up.next_number for client in crowd.clients]


def wait_for_progress(count: Callable[[], list[int]], things: int, what: str) -> None:
    """Each of so many things counts on."""
    before = count()
    assert len(before) == things
    wait_until(lambda: all(now > then for now, then in zip(count(), before, strict=True)), what)


def scale(relayctl: Relayctl, workers: int) -> None:
    done = relayctl.run("scale", "--workers", str(workers))
    assert done.returncode == 0, done.stderr


def test_no_packet_is_lost_while_workers_come_and_go(relayctl: Relayctl) -> None:
    relayctl.start("--role", "relay", "--workers", "2")
    with crowd_of(relayctl) as crowd:
        for workers in (3, 5, 2, 1, 3):
            scale(relayctl, workers)
            wait_for_progress(lambda: packets_of_workers(relayctl), workers, "packets of every worker")
    assert_nothing_lost(crowd)
    assert all(worker["restarts"] == 0 for worker in relayctl.status()["relay"]["workers"])


@pytest.mark.parametrize(("first", "then"), [(1, 3), (4, 2)])
def test_worker_that_is_killed_goes_on_with_the_flows_that_came_to_it(
    relayctl: Relayctl, first: int, then: int
) -> None:
    relayctl.start("--role", "relay", "--workers", str(first))
    with crowd_of(relayctl) as crowd:
        scale(relayctl, then)
        pids = [worker["pid"] for worker in relayctl.status()["relay"]["workers"]]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

        def are_back() -> bool:
            workers = relayctl.status()["relay"]["workers"]
            return all(w["state"] == "ready" and w["pid"] not in pids for w in workers)

        wait_until(are_back, "the workers are back")
        wait_for_progress(lambda: heard_of(crowd), CLIENTS, "packets of every client")


def test_media_and_checks_have_queues_of_their_own(relayctl: Relayctl) -> None:
    """A worker that stands still, and a flood of checks: no media is lost, whatever else is."""
    relayctl.start("--role", "relay")
    with crowd_of(relayctl) as crowd:
        pid = relayctl.status()["relay"]["workers"][0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            check = crowd.clients[0].check
            with flooder(relayctl.listen) as send:
                for _ in range(60_000):
                    send(check[:-1])
        finally:
            os.kill(pid, signal.SIGCONT)
        crowd.wait_for_more(10 * CLIENTS, 10)
    assert_nothing_lost(crowd)


@contextmanager
def flooder(listen: str) -> Iterator[Callable[[bytes], int]]:
    """Sends to the relay from an address of its own."""
    host, port = listen.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        yield sock.send


# Ends setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF) with EPERM, as a container's seccomp filter may.
_REFUSING = """#!{python}
import ctypes, os, struct, sys
instructions = (
    (0x20, 0, 0, 0),  # A = number of the system call
    (0x15, 0, 3, {setsockopt}),
    (0x20, 0, 0, 32),  # A = third argument
    (0x15, 0, 1, 51),
    (0x06, 0, 0, 0x50001),
    (0x06, 0, 0, 0x7FFF0000),
)
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *i) for i in instructions))
program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv({relayctl!r}, sys.argv)
"""


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses classic programs for groups of sockets."""
    setsockopt = {"x86_64": 54, "aarch64": 208}.get(os.uname().machine)
    if setsockopt is None:
        pytest.skip("the number of setsockopt is not known here")
    script = tmp_path / "relayctl"
    script.write_text(_REFUSING.format(python=sys.executable, setsockopt=setsockopt, relayctl=str(RELAYCTL)))
    script.chmod(0o755)
    monkeypatch.setattr("tests.cli.relayctl.RELAYCTL", script)


@pytest.mark.usefixtures("refusing")
def test_without_the_program_everything_is_served_all_the_same(relayctl: Relayctl) -> None:
    relayctl.start("--role", "relay", "--workers", "2")
    with crowd_of(relayctl) as crowd:
        for workers in (3, 2):
            scale(relayctl, workers)
            wait_for_progress(lambda: heard_of(crowd), CLIENTS, "packets of every client")
    log = relayctl.log()
    assert (
        log.count("the kernel refuses the program that sorts packets to sockets (Operation not permitted)")
        == 1
    )


def test_split_is_on(relayctl: Relayctl) -> None:
    """Nothing else here would tell, but the test of the flood."""
    relayctl.start("--role", "relay")
    assert "refuses" not in relayctl.log()


def test_unprivileged_user_may_start_and_scale() -> None:
    """As nobody, if the tests run as root."""
    state_dir = Path(tempfile.mkdtemp(prefix="relayctl-test-"))
    try:
        if os.geteuid() == 0:
            os.chown(state_dir, 65534, 65534)
        port = Relayctl(state_dir).listen

        def run(*arguments: str) -> str:
            done = run_unprivileged(
                "from cli.main import main\nmain()", *arguments, "--state-dir", str(state_dir)
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("start", "--daemon", "--role", "relay", "--workers", "2", "--listen", port)
        try:
            run("scale", "--workers", "3")
            assert "worker-2" in run("status")
            assert "refuses" not in (state_dir / "relayctl.log").read_text()
        finally:
            run("stop")
    finally:
        shutil.rmtree(state_dir)
