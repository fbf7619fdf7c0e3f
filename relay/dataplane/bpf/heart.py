"""A worker's heartbeat in the kernel's maps: without one for a second the kernel gives it no packets."""

import os
import time

from relay.dataplane.bpf.abi import MAPS, Heartbeat, WorkerC
from relay.dataplane.bpf.maps import BpfMap


class Heart:
    """Of the worker of one slot; it falls silent once another process has taken the slot."""

    def __init__(self, workers_fd: int, heartbeat_fd: int, slot: int) -> None:
        self._workers = BpfMap(workers_fd, MAPS["workers"])
        self._heartbeat = BpfMap(heartbeat_fd, MAPS["heartbeat"])
        self._slot = slot
        core = min(os.sched_getaffinity(0))
        self._worker = WorkerC(pid=os.getpid(), core=core, started_ns=time.monotonic_ns(), beat_ns=0)

    def beat(self) -> None:
        """Call at least every quarter of a second."""
        before = self._workers.get(self._slot)
        is_ours = before is not None and before.started_ns <= self._worker.started_ns
        self._worker.beat_ns = time.monotonic_ns()
        self._heartbeat.put(0, Heartbeat(self._worker.beat_ns))
        if is_ours:
            self._workers.put(self._slot, self._worker)
