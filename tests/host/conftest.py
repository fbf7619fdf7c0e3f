"""Fixtures of the host tests: every process that they start is ended, even when the test fails."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

import host.process
from tests.host.bench import Bench
from tests.host.programs import Programs
from tests.host.unprivileged import foreign_dir as foreign_dir
from wire.address import Address

HoldAddress = Callable[..., int]

_HOLDER = """
import socket, sys
host, port, kind, reuseport = sys.argv[1:5]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, getattr(socket, kind))
if reuseport == "True":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind((host, int(port)))
if kind == "SOCK_STREAM":
    sock.listen()
print("bound", flush=True)
sys.stdin.read()
"""

_PARENT = "import subprocess, sys\nsubprocess.run(sys.argv[2:])"


@pytest.fixture
def hold_address() -> Iterator[HoldAddress]:
    """Have another process bind an address; returns its pid."""
    holders: list[subprocess.Popen[str]] = []

    def hold(
        address: Address, kind: str, *, reuseport: bool = False, module: str = "", parent: str = ""
    ) -> int:
        """``module``: what the holder looks like running. ``parent``: the word in its parent's command."""
        words = [str(address.ip), str(address.port), kind, str(reuseport), module]
        command = [sys.executable, "-c", _HOLDER, *words]
        holder = subprocess.Popen(
            [sys.executable, "-c", _PARENT, parent, *command] if parent else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        return holder.pid  # of the parent, if there is one

    yield hold
    for holder in holders:
        holder.communicate()  # it ends with its standard input


@pytest.fixture
async def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Programs]:
    """Child programs that a supervisor can run by module name."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))
    made = Programs(directory)
    yield made
    await made.end()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of a supervised process for tests; a test sets shorter ones where it waits for them."""
    monkeypatch.setattr(host.process, "_BACK_OFF_S", (0.0, 0.02))
    monkeypatch.setattr(host.process, "_READY_TIMEOUT_S", 10.0)
    monkeypatch.setattr(host.process, "_PING_INTERVAL_S", 60.0)
    monkeypatch.setattr(host.process, "_TERM_GRACE_S", 5.0)


@pytest.fixture
async def bench(tmp_path: Path, programs: Programs) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "state")
    bench.state_dir.acquire()
    yield bench
    await bench.clean_up()
    bench.state_dir.release()
