"""A real redis-server of the test's own: started, killed, frozen and brought back on the same port."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.host.deadline import wait_until
from tests.ports import free_port

_SERVER, _CLI = "/usr/bin/redis-server", "/usr/bin/redis-cli"
# It ends with the thread that started it, also where that one was killed.
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_START_TIMEOUT_S = 10.0


class RedisServer:
    """One process. ``arguments`` as on redis-server's command line; it writes no data to disk.

    config_file: of a Sentinel or a Cluster node, which write to theirs. tls: with ``certificates.py``'s files, and no plain port.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        host: str = "127.0.0.1",
        port: int = 0,
        config_file: Path | None = None,
        tls: "TlsFiles | None" = None,
    ) -> None:
        self.host, self.port = host, port or free_port(socket.SOCK_STREAM, host)
        self._directory = directory
        self._arguments = [] if config_file is None else [str(config_file)]
        self._arguments += ["--bind", self.host, "--dir", str(directory)]
        self._cli_arguments: list[str] = []
        if config_file is None:
            self._arguments += ["--save", "", "--appendonly", "no"]
        if tls is None:
            self._arguments += ["--port", str(self.port)]
        else:
            self._arguments += ["--port", "0", "--tls-port", str(self.port), *tls.server_arguments]
            self._cli_arguments += tls.cli_arguments
        self._arguments += arguments
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As relayctl takes it."""
        return f"redis{'s' if self._tls else ''}://{self.host}:{self.port}/0"

    @property
    def log(self) -> str:
        """What it said."""
        return (self._directory / "redis.log").read_text()

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._directory.mkdir(exist_ok=True)
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_ENDS_WITH_US, _SERVER, *self._arguments], stdout=log, stderr=log
            )
        wait_until(self._accepts, f"an answer of redis-server on {self.host}:{self.port}", _START_TIMEOUT_S)

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
        """What redis-cli prints. Raises CalledProcessError; that Redis answers with an error is in what it prints."""
        command = [_CLI, "-h", self.host, "-p", str(self.port), "--no-auth-warning", *self._cli_arguments]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    def info(self, field: str) -> str:
        """A field of INFO."""
        lines = (line.partition(":") for line in self.cli("INFO").splitlines())
        return next(value.strip() for name, _, value in lines if name == field)

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False


class TlsFiles:
    """A certificate authority, and a certificate that it gave to a server and, where ``mutual``, to clients."""

    def __init__(self, authority: Path, certificate: Path, key: Path, *, mutual: bool = False) -> None:
        self.authority, self.certificate, self.key = authority, certificate, key
        self.mutual = mutual

    @property
    def server_arguments(self) -> list[str]:
        """For redis-server."""
        return [
            *("--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.authority)),
            *("--tls-auth-clients", "yes" if self.mutual else "no"),
        ]

    @property
    def cli_arguments(self) -> list[str]:
        """For redis-cli."""
        own = ["--cert", str(self.certificate), "--key", str(self.key)] if self.mutual else []
        return ["--tls", "--cacert", str(self.authority), *own]


@contextlib.contextmanager
def redis_server(
    directory: Path, *arguments: str, host: str = "127.0.0.1", tls: TlsFiles | None = None
) -> Iterator[RedisServer]:
    """A server for the life of the block."""
    server = RedisServer(directory, *arguments, host=host, tls=tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def all_started(servers: list[RedisServer]) -> Iterator[None]:
    """All of them for the life of the block."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        yield
