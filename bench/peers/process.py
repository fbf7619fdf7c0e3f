"""A peer that is a program: started in the relay's namespace, ended by its own pid."""

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench.errors import BenchError, PeerUnavailableError
from bench.topology import FLEET, PUBLIC, Host, Topology

_START_S = 20.0
_STOP_S = 20.0
_FILES = 65_536


def need(program: str, package: str) -> str:
    """The path of a program. Raises PeerUnavailableError."""
    found = shutil.which(program)
    if found is None:
        raise PeerUnavailableError(f"{program} is missing (apt-get install {package})")
    return found


def take_redirected(topology: Topology) -> None:
    """Have the relay's interfaces take the generator's frames without an XDP program."""
    for interface in (PUBLIC, FLEET):
        topology.relay.set_gro(interface, on=True)


@contextlib.contextmanager
def running(
    host: AbstractContextManager[object],
    command: Sequence[str],
    log: Path,
    is_ready: Callable[[str], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a host's namespace (or here, with a null context), ready as its output tells; SIGTERM at the end of the block."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    with host, log.open("wb") as output:
        process = subprocess.Popen(
            # from util-linux: a harness that is killed leaves nothing behind
            ["setpriv", "--pdeathsig", "TERM", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        deadline = time.monotonic() + _START_S
        while not is_ready(log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()
                raise BenchError(
                    f"{Path(command[0]).name} did not become ready: {said[-1] if said else 'silent'}"
                )
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_bound(host: Host, port: int) -> bool:
    """Whether a UDP socket of the namespace has that port."""
    with host:
        table = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    return any(int(line.split()[1].rpartition(":")[2], 16) == port for line in table)
