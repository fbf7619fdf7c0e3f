"""The installed ``relayctl`` as a user runs it, with a state directory and free ports of the test's own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil

from tests.host.deadline import wait_until
from tests.ports import free_port

RELAYCTL = Path(sys.executable).parent / "relayctl"
START_TIMEOUT_S = 90.0
# Every process that a test starts, and all that these start, carry this in their environment.
_MARK = "RELAYCTL_TEST_MARK"


def free_udp() -> str:
    """A free UDP address on loopback."""
    return f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"


def free_tcp() -> str:
    """A free TCP address on loopback."""
    return f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class Relayctl:
    """Commands against one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.listen = free_udp()
        self.http = free_tcp()
        self._mark = uuid.uuid4().hex
        self._foreground: list[subprocess.Popen[str]] = []

    # commands

    def run(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself; it must never show a traceback."""
        done = subprocess.run(
            [str(RELAYCTL), *arguments, *self._place(arguments)],
            cwd=cwd,
            env=self._environment(environment),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S + 30,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *arguments: str, small: bool = True) -> int:
        """``start --daemon`` on free ports (one worker, one transceiver if ``small``); returns the pid."""
        done = self.run("start", "--daemon", *self.ports(), *(self.small() if small else ()), *arguments)
        assert done.returncode == 0, done.stderr + self.log()
        return self.pid()

    def start_foreground(self, *arguments: str) -> "subprocess.Popen[str]":
        """``start`` in the foreground; returns when it has said where it is."""
        process = self.spawn("start", *self.ports(), *self.small(), *arguments)
        output = self.state_dir.parent / f"{self.state_dir.name}.out"

        def is_up() -> bool:
            assert process.poll() is None, output.read_text()
            return "Ctrl-C stops" in output.read_text()

        wait_until(is_up, "relayctl start is up", START_TIMEOUT_S)
        return process

    def spawn(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command in the background; its output goes to a file beside the state directory."""
        output = self.state_dir.parent / f"{self.state_dir.name}.out"
        with output.open("w") as file:
            process = subprocess.Popen(
                [str(RELAYCTL), *arguments, *self._place(arguments)],
                env=self._environment({}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._foreground.append(process)
        return process

    def ports(self) -> tuple[str, ...]:
        """Flags for ports of our own."""
        return "--listen", self.listen, "--http", self.http

    @staticmethod
    def small() -> tuple[str, ...]:
        """Flags for as few processes as there can be."""
        return "--workers", "1", "--transceivers", "1"

    def _place(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return () if arguments[0] in ("probe", "init") else ("--state-dir", str(self.state_dir))

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RELAYCTL_")}
        return {**inherited, _MARK: self._mark, **more}

    # what is there

    @property
    def url(self) -> str:
        """Where signaling is."""
        return f"http://{self.http}/"

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> Any:
        """``status --json``."""
        return self.json("status")

    def pid(self) -> int:
        """The supervisor's pid, from its pid file."""
        return int((self.state_dir / "pid").read_text())

    def log(self) -> str:
        """The daemon's log."""
        log = self.state_dir / "relayctl.log"
        return log.read_text() if log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Everything that this object started and that still runs, found by its mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark and is_alive(process.pid):
                    found.append(process)
        return found

    def await_end(self) -> None:
        """Wait until nothing of it runs any more; AssertionError naming what is left."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.processes(), "the end of every process")
        assert [(process.pid, process.cmdline()) for process in self.processes()] == []

    def clean_up(self) -> None:
        """Kill whatever is left."""
        for _ in range(100):
            left = self.processes()
            if not left:
                break
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(left, timeout=0.1)
        for child in self._foreground:
            child.wait(10)
