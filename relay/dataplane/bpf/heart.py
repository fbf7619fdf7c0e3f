"""A worker's heartbeat in the kernel's maps: without one for a second the kernel gives it no packets."""

import os
import time

from relay.dataplane.bpf.abi import MAPS, Heartbeat, WorkerC
from relay.dataplane.bpf.maps import BpfMap

# Two beats missed: the worker that had the slot is gone, or gives it up. The kernel waits for twice as long.
_ABANDONED_NS = 500_000_000


class Heart:
    """Of the worker of one slot. While another process beats for the slot, this one only says that a worker lives."""

    def __init__(self, workers_fd: int, heartbeat_fd: int, slot: int) -> None:
        self._workers = BpfMap(workers_fd, MAPS["workers"])
        self._heartbeat = BpfMap(heartbeat_fd, MAPS["heartbeat"])
        self._slot = slot
        core = min(os.sched_getaffinity(0))
        self._worker = WorkerC(pid=os.getpid(), core=core, started_ns=time.monotonic_ns(), beat_ns=0)

    def beat(self) -> None:
        """Call at least every quarter of a second. Raises OSError."""
        now = time.monotonic_ns()
        self._heartbeat.put(0, Heartbeat(now))
        before = self._workers.get(self._slot)
        if before is None or before.pid == self._worker.pid or now - before.beat_ns > _ABANDONED_NS:
            self._worker.beat_ns = now
            self._workers.put(self._slot, self._worker)
