"""Generator, sink and cores: what every measurement uses. One path is measured at a time."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from bench.errors import BenchError
from bench.frames import Leg
from bench.generator import Job, Report
from bench.live_frames import BATCH
from bench.sink import Mode, Sink
from bench.topology import ETH, FLEET, PUBLIC, Topology

_WARM_UP_S = 0.1
_SETTLE_S = 0.05
# What else runs on the core must not take it; a relay process goes before the generator, by the whole range of 'nice'.
_GENERATOR_NICENESS, _GENERATOR_BEHIND_NICENESS, _RELAY_NICENESS = -15, -1, -20
_PRIME_RATE = 50_000
_LIMIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Way:
    """One direction through a relay: what is sent, and what must arrive. ``is_up``: from the client's host."""

    is_up: bool
    sends: Leg
    arrives: Leg


@dataclass(frozen=True)
class Sample:
    """One measurement: packets that arrived, and seconds, in the window; all that were offered and did not arrive.

    core_share: how much of the core generator and relay had; the rest was taken by what else this machine does.
    relay_cpu_s: what the relay's processes alone had in the window.
    """

    delivered: int
    seconds: float
    offered: int
    lost: int
    wrong: int
    core_share: float
    relay_cpu_s: float

    @property
    def pps(self) -> float:
        """Packets delivered a second."""
        return self.delivered / self.seconds

    @property
    def cpu_us_per_packet(self) -> float:
        """The relay's, of those packets that were delivered."""
        return self.relay_cpu_s * 1e6 / self.delivered


@dataclass(frozen=True, kw_only=True)
class Load:
    """How a path is loaded. ``pids``: the relay's processes, which go before the generator on their core;
    ``gives_way``: at once for each packet, which costs it more of them than waiting for a slice of the scheduler to end.
    """

    payloads: tuple[int, ...]
    flows: int
    seconds: float
    rate: int = 0
    max_packets: int = 0
    in_random_order: bool = True
    mode: Mode = Mode.COUNT
    batch: int = BATCH
    pids: tuple[int, ...] = ()
    gives_way: bool = False


class Rig:
    """``core`` is the one that everything measured shares; this process keeps to another one."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.core, self.harness_core = cores[-1], cores[0]
        os.sched_setaffinity(0, {self.harness_core})
        self.sink = Sink()
        self._generator = subprocess.Popen(
            [sys.executable, "-m", "bench.generator"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def attach_sinks(self, topology: Topology) -> None:
        """On both ends."""
        for host in (topology.client, topology.transceiver):
            self.sink.attach(host, ETH)

    def run(self, topology: Topology, path: Way, load: Load) -> Sample:
        """Load a path, and count what arrives. Raises BenchError."""
        self.sink.expect(path.arrives, load.mode)
        before = self.sink.count()
        self._start(_job(topology, path, load, self.core))
        time.sleep(_WARM_UP_S)
        first, first_at, first_cpu_s = self.sink.count(), time.monotonic(), self._cpu_s(load)
        time.sleep(load.seconds)
        last, last_at, last_cpu_s = self.sink.count(), time.monotonic(), self._cpu_s(load)
        report = self._finish()
        time.sleep(_SETTLE_S)
        after = self.sink.count()
        return Sample(
            delivered=last.delivered - first.delivered,
            seconds=last_at - first_at,
            offered=report.offered,
            lost=max(0, report.offered - (after.delivered - before.delivered)),
            wrong=after.wrong - before.wrong,
            core_share=(sum(last_cpu_s) - sum(first_cpu_s)) / (last_at - first_at),
            relay_cpu_s=last_cpu_s[1] - first_cpu_s[1],
        )

    def prime(
        self, topology: Topology, path: Way, load: Load, mode: Mode = Mode.COUNT, times: int = 2
    ) -> Sample:
        """So many packets of each flow, in order: whoever learns from packets has then seen them all."""
        packets = times * load.flows
        rate = load.rate or (_PRIME_RATE if load.pids else 1_000_000)
        sweep = replace(
            load,
            rate=rate,
            max_packets=packets,
            seconds=packets / rate * 1.5 + 0.05,
            in_random_order=False,
            mode=mode,
            batch=BATCH,
        )
        return self.run(topology, path, sweep)

    def latency(
        self, topology: Topology, path: Way, load: Load, rate: int
    ) -> tuple[Sample, npt.NDArray[np.int64]]:
        """Load a path at that rate, and the time that packets took, by bucket."""
        before = self.sink.histogram()
        sample = self.run(topology, path, replace(load, rate=rate, mode=Mode.LATENCY))
        return sample, self.sink.histogram() - before

    def place(self, pids: Iterable[int], *cores: int) -> None:
        """Have all threads of these processes on these cores, before everybody else."""
        for pid in pids:
            for thread in list(Path(f"/proc/{pid}/task").iterdir()):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)
                    os.setpriority(os.PRIO_PROCESS, int(thread.name), _RELAY_NICENESS)

    def _cpu_s(self, load: Load) -> tuple[float, float]:
        """Of the generator, and of the relay."""
        return _cpu_s([self._generator.pid]), _cpu_s(load.pids)

    def _start(self, job: Job) -> None:
        assert self._generator.stdin is not None
        self._generator.stdin.write(json.dumps(job.to_message()) + "\n")
        self._generator.stdin.flush()
        self._hear()

    def _finish(self) -> Report:
        return Report(**self._hear())

    def _hear(self) -> dict[str, Any]:
        assert self._generator.stdout is not None
        line = self._generator.stdout.readline()
        if not line:
            raise BenchError("the generator ended")
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise BenchError(f"the generator: {message['error']}")
        return message

    def close(self) -> None:
        """End the generator, let go of the sink."""
        assert self._generator.stdin is not None
        self._generator.stdin.close()
        try:
            self._generator.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._generator.kill()
            self._generator.wait()
        self.sink.close()


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """A rig for the life of the block."""
    made = Rig()
    try:
        yield made
    finally:
        made.close()


def _cpu_s(pids: Iterable[int]) -> float:
    """What all threads of these processes have had; softirqs on their back included."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(thread.read_text().split()[0])
    return total / 1e9


def processes(pid: int) -> list[int]:
    """A process and all that it started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _job(topology: Topology, path: Way, load: Load, core: int) -> Job:
    host = topology.client if path.is_up else topology.transceiver
    return Job(
        namespace=host.name,
        interface=host.index(ETH),
        leg=path.sends,
        to_mac=topology.relay.mac(PUBLIC if path.is_up else FLEET),
        from_mac=host.mac(ETH),
        payloads=load.payloads,
        flows=load.flows,
        # a little more than the window, which is in its middle
        seconds=load.seconds + 2 * _WARM_UP_S,
        rate=load.rate,
        max_packets=load.max_packets,
        in_random_order=load.in_random_order,
        is_stamped=load.mode is Mode.LATENCY,
        batch=load.batch,
        core=core,
        niceness=_GENERATOR_BEHIND_NICENESS if load.pids else _GENERATOR_NICENESS,
        gives_way=bool(load.pids) and load.gives_way,
    )
