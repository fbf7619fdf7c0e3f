"""How many sessions each transceiver process of a host has, in memory that they share.

All of them accept from one HTTP socket, and the kernel wakes whichever it likes; so the process that takes an offer hands
it to the least loaded one. Each cell has one writer:

    sessions of process i                      at i                written by i
    offers that j is passing on to i           at n + j * n + i    written by j
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from math import isqrt

_CELL_BYTES = 4
_CLOSED = 0xFFFF_FFFF


def create_board_fd(processes: int) -> int:
    """An anonymous file for that many processes, all closed; child processes may inherit it."""
    fd = os.memfd_create("relayctl-load", os.MFD_CLOEXEC)
    os.ftruncate(fd, processes * (processes + 1) * _CELL_BYTES)
    os.pwrite(fd, _CLOSED.to_bytes(_CELL_BYTES, "little") * processes, 0)
    return fd


class LoadBoard:
    """The cells, seen by the process ``own`` (or by the supervisor, that owns none)."""

    def __init__(self, fd: int, own: int = -1) -> None:
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._cells = memoryview(self._memory).cast("I")
        self._own = own
        self._processes = isqrt(len(self._cells))  # n * (n + 1) cells

    def publish(self, sessions: int | None) -> None:
        """Tell our number of sessions; None while we take no more."""
        self._cells[self._own] = _CLOSED if sessions is None else sessions

    def close_process(self, process: int) -> None:
        """Note that a process has ended, and with it what it was passing on."""
        self._cells[process] = _CLOSED
        for other in range(self._processes):
            self._cells[self._passing(process, other)] = 0

    @contextlib.contextmanager
    def less_loaded(self) -> Iterator[int | None]:
        """A process with fewer sessions than ours, to pass one on to within the block; None if there is none."""
        others = [process for process in range(self._processes) if process != self._own]
        best = min(others, key=self._load, default=None)
        if best is None or self._load(best) >= self._load(self._own):
            yield None
            return
        passing = self._passing(self._own, best)
        self._cells[passing] += 1
        try:
            yield best
        finally:
            self._cells[passing] -= 1

    def close(self) -> None:
        """Unmap the memory."""
        self._cells.release()
        self._memory.close()

    def _load(self, process: int) -> int:
        coming = sum(self._cells[self._passing(other, process)] for other in range(self._processes))
        return self._cells[process] + coming

    def _passing(self, sender: int, receiver: int) -> int:
        return self._processes * (1 + sender) + receiver
