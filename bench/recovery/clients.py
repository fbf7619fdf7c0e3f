"""Processes of calls in the namespaces of their hosts, started and asked."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.recovery.hosts import BROWSER, CALLERS, SIGNALING, Sites
from wire.address import Address

_REPOSITORY = Path(__file__).parents[2]
_HANG_UP_S = 15.0


@dataclass(frozen=True)
class ClientKind:
    """A WebRTC stack, the module that runs its calls, and the address that tells its packets from others'."""

    name: str
    module: str
    address: Address


AIORTC = ClientKind("aiortc", "bench.recovery.aiortc_calls", CALLERS)
CHROMIUM = ClientKind("Chromium", "bench.recovery.chromium_calls", BROWSER)
KINDS = (AIORTC, CHROMIUM)


class Clients:
    """Calls of one kind that are up."""

    def __init__(self, kind: ClientKind, process: subprocess.Popen[str]) -> None:
        self.kind, self._process = kind, process

    def read(self) -> list[dict[str, Any]]:
        """What it says of its calls. Raises BenchError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message = json.loads(line) if line else {"error": "they ended"}
        if "error" in message:
            raise BenchError(f"{self.kind.name} calls: {message['error']}")
        return list(message["calls"])

    def states(self) -> list[dict[str, Any]]:
        """How each call is now. Raises BenchError."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def running_clients(
    sites: Sites, kind: ClientKind, token_file: Path, count: int, log: Path
) -> Iterator[Clients]:
    """That many calls for the life of the block, all of them up. Raises BenchError."""
    host = sites.callers if kind is AIORTC else sites.browser
    command = [sys.executable, "-m", kind.module, f"http://{SIGNALING}/", str(token_file), str(count)]
    with host, log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process:
        try:
            clients = Clients(kind, process)
            clients.read()
            yield clients
        finally:
            assert process.stdin is not None
            # they hang up; a browser's own processes are nobody's but its
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_HANG_UP_S)
            process.kill()
