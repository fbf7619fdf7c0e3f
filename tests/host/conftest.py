"""Fixtures of the host tests: every process that they start is ended, even when the test fails."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.host.programs import Programs
from tests.host.unprivileged import foreign_dir as foreign_dir
from wire.address import Address

HoldAddress = Callable[..., int]

_HOLDER = """
import socket, sys
host, port, kind, reuseport = sys.argv[1:]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, getattr(socket, kind))
if reuseport == "True":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind((host, int(port)))
if kind == "SOCK_STREAM":
    sock.listen()
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold_address() -> Iterator[HoldAddress]:
    """Have another process bind an address; returns its pid."""
    holders: list[subprocess.Popen[str]] = []

    def hold(address: Address, kind: str, *, reuseport: bool = False) -> int:
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(address.ip), str(address.port), kind, str(reuseport)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        return holder.pid

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.fixture
async def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Programs]:
    """Child programs that a supervisor can run by module name."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))
    made = Programs(directory)
    yield made
    await made.end()
