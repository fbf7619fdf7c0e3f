"""Whether a transceiver process has memory and CPU time for one more session. The gauge is pure: ``now`` is monotonic seconds.

overload   begins when                                                   ends when
MEMORY     resident memory, with 1 MiB for the next session and for      it is under 95 % of the limit
           each that is not connected yet, is above the limit
CPU        CPU time of the last 2 s is above the limit                   it is under 90 % of the limit

Only new sessions are kept away; those that there are go on. A session gets its buffers and keys while it connects, so
until then it is counted beside what is resident: many offers at once must not all find the same room.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import psutil

MEBIBYTE = 1024 * 1024
SESSION_BYTES = MEBIBYTE
# Of a machine's or cgroup's memory, for all transceiver processes of a host together.
_DEFAULT_SHARE = 0.8
_CPU_WINDOW_S = 2.0
_MEMORY_ENDS_AT = 0.95
_CPU_ENDS_AT = 0.9


class Overload(IntEnum):
    """What there is too little of. The load board holds the numbers."""

    NONE = 0
    MEMORY = 1
    CPU = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one process. cpu: share of a core."""

    memory_bytes: float = float("inf")
    cpu: float = float("inf")


class Usage(NamedTuple):
    """Of one process. ``cpu_s`` since it began, of all its threads."""

    rss_bytes: int
    cpu_s: float


def read_usage() -> Usage:
    """Of this process, now."""
    return Usage(psutil.Process().memory_info().rss, time.process_time())


class Gauge:
    """Follows what a process uses. ``cpu`` is its share of a core in the last 2 s, 0 until it is known."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.overload = Overload.NONE
        self.cpu = 0.0
        self.rss_bytes = 0
        self.needed_bytes = 0
        self._samples: deque[tuple[float, float]] = deque()  # (when, CPU time)

    def update(self, usage: Usage, connecting: int, now: float) -> None:
        """Look again; ``connecting`` sessions are yet to take what they need."""
        self.rss_bytes = usage.rss_bytes
        self.needed_bytes = usage.rss_bytes + (connecting + 1) * SESSION_BYTES
        self._update_cpu(usage.cpu_s, now)
        memory, cpu = self.limits.memory_bytes, self.limits.cpu
        if self.overload is Overload.MEMORY:
            memory *= _MEMORY_ENDS_AT
        if self.overload is Overload.CPU:
            cpu *= _CPU_ENDS_AT
        if self.needed_bytes > memory:
            self.overload = Overload.MEMORY
        elif self.cpu > cpu:
            self.overload = Overload.CPU
        else:
            self.overload = Overload.NONE

    def __str__(self) -> str:
        """What is used, and the setting that it is held against."""
        if self.overload is Overload.CPU:
            return f"CPU {100 * self.cpu:.3g} % of a core, transceiver.max_cpu is {self.limits.cpu:g}"
        return (
            f"memory {self.rss_bytes / MEBIBYTE:.0f} MiB, {self.needed_bytes / MEBIBYTE:.0f} MiB with the next session, "
            f"transceiver.max_memory_mb is {self.limits.memory_bytes / MEBIBYTE:.0f}"
        )

    def _update_cpu(self, cpu_s: float, now: float) -> None:
        samples = self._samples
        samples.append((now, cpu_s))
        while len(samples) > 1 and samples[1][0] <= now - _CPU_WINDOW_S:
            samples.popleft()
        began_at, began_s = samples[0]
        if now - began_at >= _CPU_WINDOW_S:
            self.cpu = (cpu_s - began_s) / (now - began_at)


def default_memory_bytes(available_bytes: int, processes: int) -> int:
    """Of each process."""
    return int(available_bytes * _DEFAULT_SHARE) // processes


def find_memory_bytes(root: Path = Path("/")) -> int:
    """What this machine has, or less where our cgroup (version 1 or 2), or one above it, is limited to less."""
    meminfo = (root / "proc/meminfo").read_text()
    total_kib = next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    return min([total_kib * 1024, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
    cgroups = ""
    with contextlib.suppress(OSError):
        cgroups = (root / "proc/self/cgroup").read_text()
    for line in cgroups.splitlines():
        # https://man7.org/linux/man-pages/man7/cgroups.7.html: hierarchy:controllers:path; version 2 is 0::path
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits_upwards(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _limits_upwards(mount: Path, path: str, name: str) -> Iterator[int]:
    """Of the group and those above it, as far as they are to be seen from here."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        # ValueError: "max" is no limit
        with contextlib.suppress(OSError, ValueError):
            yield int((mount.joinpath(*parts[:depth]) / name).read_text())
