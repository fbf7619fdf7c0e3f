"""What the kernel knows of a process: CPU time, memory, threads, open files, datagrams that its sockets had no room for."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

# <linux/posix-timers.h>: a process's clock is named by its pid, inverted, and the kind of clock (2: the scheduler's)
_CPUCLOCK_SCHED = 2


def cpu_ns(pid: int) -> int:
    """Of all threads, those that have ended too: what the scheduler gave them (``schedstat`` has the same, a thread)."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def waited_ns(pid: int) -> int:
    """How long its living threads had something to do and no core, because of others or of one another."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[1])
    return total


def core_ns(core: int) -> tuple[int, int]:
    """What a core did so far, and what it was not there for: busy, taken by the hypervisor. In ticks of 10 ms."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _, _, interrupts, softirq, steal, *_ = map(int, line.split()[1:])
            tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
            return (user + nice + system + interrupts + softirq) * tick, steal * tick
    raise BenchError(f"there is no core {core}")


def socket_drops(pid: int) -> int:
    """Datagrams that found no room in the UDP sockets of a process."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = link.readlink().name
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    total = 0
    for table in ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                cells = line.split()
                total += int(cells[-1]) if cells[9] in inodes else 0
    return total


@dataclass(frozen=True)
class Vitals:
    """At one moment; bytes."""

    pss: int
    rss: int
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> "Vitals":
        """Now."""
        rollup = {
            line.split()[0]: int(line.split()[1]) * 1024
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        }
        return cls(
            rollup["Pss:"],
            rollup["Rss:"],
            len(list(Path(f"/proc/{pid}/task").iterdir())),
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
        )
