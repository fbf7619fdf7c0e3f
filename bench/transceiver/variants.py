"""What is measured: our transceiver in each of its ways, and stock aiortc; and how each is started."""

import contextlib
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.process import running
from bench.peers.relayctl import RELAYCTL
from bench.transceiver.favour import favour
from cli.admin import ask
from host.state_dir import StateDir

VIP = "127.0.0.1:3478"
STOCK = "stock aiortc"
_CONFIG = """
[fleet]
vip = ["{vip}"]
[transceiver]
processes = 1
http = "{http}"
max_sessions = 100000
# what it can carry is to be found out
max_cpu = 1000.0
requests_per_s = 1000000.0
request_burst = 100000
{keys}
"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``keys``: of the ``[transceiver]`` table; None for stock aiortc. is_exact: payloads come back as they were sent.

    has_memory_row: its memory is measured, too.
    """

    name: str
    what: str
    keys: Mapping[str, str] | None = field(default_factory=dict, hash=False)
    is_exact: bool = False
    has_memory_row: bool = True


VARIANTS = (
    Variant(
        name="passthrough",
        what="ours, RTP forwarded as Opus",
        keys={"media": '"direct"', "echo": '"passthrough"'},
        is_exact=True,
    ),
    Variant(
        name="transcode",
        what="ours, decoded to PCM16 at 24 kHz and encoded again: Opus complexity 5, down to 0 where the process is busy",
        keys={"media": '"direct"', "echo": '"transcode"'},
    ),
    Variant(
        name="transcode at 5",
        what="likewise, always at complexity 5",
        keys={"media": '"direct"', "echo": '"transcode"', "opus_adaptive": "false"},
        has_memory_row=False,
    ),
    Variant(
        name="aiortc media",
        what="our socket, with stock aiortc's receiver and sender",
        keys={"media": '"aiortc"', "echo": '"transcode"'},
        has_memory_row=False,
    ),
    Variant(name=STOCK, what="aiortc alone: its own ICE agent and socket a call", keys=None),
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A variant that runs. ``transceiver``: its UDP address where it takes SPP, else empty. ``ip``: where we are to be.

    tasks: asks it how many asyncio tasks it has; the one that answers is among them.
    """

    variant: Variant
    pid: int
    core: int
    url: str
    transceiver: str
    ip: str
    tasks: Callable[[], int]


@contextlib.contextmanager
def served(variant: Variant, core: int) -> Iterator[Served]:
    """For the life of the block, all its threads on one core. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="relaybench-") as directory:
        start = _stock if variant.keys is None else _ours
        with start(variant, Path(directory), core) as made:
            favour(made.pid)
            yield made


@contextlib.contextmanager
def _ours(variant: Variant, directory: Path, core: int) -> Iterator[Served]:
    config, state_dir = directory / "relayctl.toml", directory / "state"
    port = free_port()
    keys = "\n".join(f"{name} = {value}" for name, value in (variant.keys or {}).items())
    config.write_text(_CONFIG.format(vip=VIP, http=f"127.0.0.1:{port}", keys=keys))
    state_dir.mkdir()
    command = [str(RELAYCTL), "start", "--role", "transceivers"]
    command += ["--state-dir", str(state_dir), "--config", str(config)]
    with running(
        contextlib.nullcontext(), _on(core, command), directory / "log", lambda said: "Ctrl-C stops" in said
    ):

        def described() -> dict[str, Any]:
            [process] = ask(StateDir(state_dir), "status")["transceivers"]["processes"]
            return dict(process)

        transceiver = described()
        yield Served(
            variant=variant,
            core=core,
            pid=transceiver["pid"],
            url=f"http://127.0.0.1:{port}/whip",
            transceiver=transceiver["address"],
            ip="127.0.0.1",
            tasks=lambda: int(described()["tasks"]),
        )


@contextlib.contextmanager
def _stock(variant: Variant, directory: Path, core: int) -> Iterator[Served]:
    command = [sys.executable, "-m", "bench.transceiver.stock_aiortc"]
    log = directory / "log"
    with running(contextlib.nullcontext(), _on(core, command), log, lambda said: "\n" in said) as process:
        url = log.read_text().split()[-1]
        yield Served(
            variant=variant,
            core=core,
            pid=process.pid,
            url=f"{url}/whip",
            transceiver="",
            ip="127.0.0.1",
            tasks=lambda: int(urllib.request.urlopen(f"{url}/tasks", timeout=10).read()),
        )


def _on(core: int, command: list[str]) -> list[str]:
    return ["setsid", "taskset", "--cpu-list", str(core), *command]  # all from util-linux


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of loopback that nobody has now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
