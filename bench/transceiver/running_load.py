"""The process of calls (``load.py``), started and told what to do."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.transceiver.favour import favour
from bench.transceiver.load import LoadJob
from bench.transceiver.variants import VIP, Served
from bench.transceiver.vitals import socket_drops, waited_ns


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a turn of some calls came to. Delays, lags in ms; ``cpu_s`` of the process under test in ``measured_s``.

    others_s: what its core did besides, or had taken away. waited_s: its threads for the core, because of others or of one
    another, from before the turn to after it. dropped: by its sockets. own_drops: by ours. lag: how late the generator itself sent.
    """

    calls: int
    sent: int
    received: int
    lost: int
    late: int
    doubled: int
    damaged: int
    delay_p50_ms: float | None
    delay_p99_ms: float | None
    measured_s: float
    cpu_s: float
    others_s: float
    waited_s: float
    lag_p99_ms: float
    lag_max_ms: float
    dropped: int
    own_drops: int

    @property
    def cpu_ms_per_call(self) -> float:
        """Milliseconds a second of each call."""
        return 1000 * self.cpu_s / self.measured_s / self.calls

    @property
    def cpu_share(self) -> float:
        """Of the core."""
        return self.cpu_s / self.measured_s

    @property
    def disturbed(self) -> float:
        """The part of the time, at most, that it had to wait for others on its core."""
        return min(self.waited_s, self.others_s) / self.measured_s

    @property
    def is_whole(self) -> bool:
        """Whether everything came back once and in time."""
        return self.received > 0 and not (
            self.lost or self.late or self.doubled or self.damaged or self.dropped
        )


class RunningLoad:
    """Calls of one variant."""

    def __init__(self, target: Served, process: subprocess.Popen[str]) -> None:
        self.target, self._process = target, process
        self.calls = 0

    def set_calls(self, count: int) -> dict[str, Any]:
        """So many calls from now on; how long making them took. Raises BenchError."""
        made = self._say({"calls": count})
        self.calls = count
        return made

    def run(self, seconds: float, warm_s: float, *, first: int = 0, count: int | None = None) -> Run:
        """Have them speak, all or ``count`` from ``first`` on. Raises BenchError."""
        pid = self.target.pid
        waited, drops = waited_ns(pid), socket_drops(pid)
        answer = self._say({"run": {"seconds": seconds, "warm_s": warm_s, "first": first, "count": count}})
        waited_s = max(0, waited_ns(pid) - waited) / 1e9
        return Run(**answer, waited_s=waited_s, dropped=max(0, socket_drops(pid) - drops))

    def _say(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"error": "their process ended"}
        if "error" in message:
            raise BenchError(f"calls of {self.target.variant.name}: {message['error']}")
        return message


@contextlib.contextmanager
def running_load(target: Served, core: int) -> Iterator[RunningLoad]:
    """Nobody calls yet. Raises BenchError."""
    job = LoadJob(
        url=target.url,
        pid=target.pid,
        ip=target.ip,
        transceiver=target.transceiver,
        vip=VIP,
        is_exact=target.variant.is_exact,
        core=core,
        served_core=target.core,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.transceiver.load"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            favour(process.pid)
            assert process.stdin is not None
            load = RunningLoad(target, process)
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            load._read()
            yield load
        finally:
            process.kill()
