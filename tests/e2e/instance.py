"""A relayctl of the test's own: started as a user would, ended whatever happens."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cli.admin import ask
from host.state_dir import StateDir
from tests.measured import note_measured
from tests.ports import free_port as free_port

RELAYCTL = Path(sys.executable).parent / "relayctl"
# Compiling, and several Pythons that start at once, on a machine that runs other tests beside.
_START_TIMEOUT_S = 90.0


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first truthy value of ``condition``; fails naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
    return value


@dataclass(frozen=True)
class Starter:
    """As whom relayctl runs: a command that gives up rights and runs what follows it, and more arguments for ``start``.

    user: who owns the state directory, None for us. check: called with each instance that has come up.
    """

    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    user: int | None = None
    check: Callable[["Instance"], None] = lambda instance: None


_starter = Starter()


@contextlib.contextmanager
def started_by(starter: Starter) -> Iterator[None]:
    """Every ``running`` and every command of an instance within the block is this one's."""
    global _starter
    before, _starter = _starter, starter
    try:
        yield
    finally:
        _starter = before


class Instance:
    """One supervisor with what it runs."""

    def __init__(self, process: subprocess.Popen[bytes], state_dir: Path, url: str) -> None:
        self.process = process
        self.state_dir = StateDir(state_dir)
        self.url = url

    def ask(self, method: str, **params: Any) -> Any:
        """An admin method."""
        return ask(self.state_dir, method, **params)

    def status(self) -> Any:
        """As ``relayctl status --json``."""
        return self.ask("status")

    def sessions(self) -> list[dict[str, Any]]:
        """As ``relayctl sessions --json``."""
        return list(self.ask("sessions"))

    def verdicts(self) -> dict[str, int]:
        """Counts by verdict."""
        return dict(self.status()["relay"]["verdicts"])

    @property
    def token(self) -> str:
        """What signaling asks for beyond loopback."""
        return (self.state_dir.path / "bearer_token").read_text().strip()

    def pids(self) -> list[int]:
        """The supervisor and all its processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *(child.pid for child in children)]

    def kill_supervisor(self) -> None:
        """As a crash: its processes are left behind."""
        self.process.kill()
        self.process.wait()

    def end_left_behind(self, network: int) -> None:
        """End what a killed supervisor left, from its network namespace; nothing, if another took it over."""
        enter = [] if os.geteuid() else ["nsenter", f"--net=/proc/{os.getpid()}/fd/{network}"]
        command = [*enter, *_starter.command, str(RELAYCTL), "stop"]
        command += ["--state-dir", str(self.state_dir.path)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        os.close(network)
        assert ended.returncode in (0, 3), ended.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A relayctl command against this instance."""
        command = [*_starter.command, str(RELAYCTL), *arguments, "--state-dir", str(self.state_dir.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def running(state_dir: Path, *arguments: str, http: str | None = None) -> Iterator[Instance]:
    """``relayctl start`` with these arguments, ready; ended by SIGTERM at the end of the block."""
    http = http or f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    state_dir.mkdir(exist_ok=True)
    if _starter.user is not None:
        os.chown(state_dir, _starter.user, _starter.user)
    log = state_dir / "test.log"
    command = [*_starter.command, str(RELAYCTL), "start", "--state-dir", str(state_dir), "--http", http]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments, *_starter.arguments], stdout=output, stderr=subprocess.STDOUT
        )
    instance = Instance(process, state_dir, f"http://{http}/")
    network = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def is_ready() -> bool:
        assert process.poll() is None, f"relayctl start ended:\n{log.read_text()}"
        return "Ctrl-C stops" in log.read_text()

    try:
        wait_until(is_ready, _START_TIMEOUT_S, "relayctl start")
        _starter.check(instance)
        yield instance
    finally:
        if process.poll() is None:
            pids = instance.pids()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with contextlib.suppress(psutil.Error):
                        psutil.Process(pid).kill()
                process.wait()
                raise
        instance.end_left_behind(network)
    assert "Traceback" not in log.read_text(), log.read_text()


def udp_socket_inodes(pid: int) -> set[int]:
    """Inodes of the UDP sockets that a process holds, read from /proc."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = link.readlink().name
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    udp = set()
    for table in ("udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            udp.add(int(line.split()[9]))
    return inodes & udp


def pids_here() -> list[int]:
    """Every process of this network namespace: in others the same ports are other ones."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    pids = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == here:
                pids.append(pid)
    return pids


def bound_ports(pids: Iterable[int]) -> set[int]:
    """Local ports of every socket that the processes hold."""
    ports = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            ports |= {getattr(c.laddr, "port", 0) for c in psutil.Process(pid).net_connections()}
    return ports - {0}


def print_report(name: str, report: dict[str, Any]) -> None:
    """One line for people: pytest shows it at the end of the run."""
    note_measured(f"{name}: {json.dumps(report)}")
