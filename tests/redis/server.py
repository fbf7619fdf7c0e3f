"""A real redis-server of the test's own: started, killed, frozen and brought back on the same port."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.ports import free_port

_SERVER, _CLI = "/usr/bin/redis-server", "/usr/bin/redis-cli"
_START_TIMEOUT_S = 10.0


class RedisServer:
    """One process. ``arguments`` as on redis-server's command line; nothing is written to disk."""

    def __init__(self, directory: Path, *arguments: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host, self.port = host, port or free_port(socket.SOCK_STREAM, host)
        self._directory = directory
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As relayctl takes it."""
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._directory.mkdir(exist_ok=True)
        command = [_SERVER, "--bind", self.host, "--port", str(self.port), "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "no", *self._arguments]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._accepts():
            assert self._process.poll() is None, (self._directory / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def cli(self, *arguments: str) -> str:
        """What redis-cli prints. Raises CalledProcessError."""
        command = [_CLI, "-h", self.host, "-p", str(self.port), "--no-auth-warning", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False


@contextlib.contextmanager
def redis_server(directory: Path, *arguments: str, host: str = "127.0.0.1") -> Iterator[RedisServer]:
    """A server for the life of the block."""
    server = RedisServer(directory, *arguments, host=host)
    server.start()
    try:
        yield server
    finally:
        server.kill()
