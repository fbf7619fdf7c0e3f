"""How many sessions each transceiver process of a host has, in memory that they share.

All of them accept from one HTTP socket, and the kernel wakes whichever it likes; so the process that takes an offer hands
it to the least loaded one. The numbers are hints: a lost update costs balance, never a call.
"""

import mmap
import os

_CELL_BYTES = 4
_CLOSED = 0xFFFF_FFFF


def create_board_fd(processes: int) -> int:
    """An anonymous file with a cell for each process, all closed; child processes may inherit it."""
    fd = os.memfd_create("relayctl-load", os.MFD_CLOEXEC)
    os.write(fd, _CLOSED.to_bytes(_CELL_BYTES, "little") * processes)
    return fd


class LoadBoard:
    """The cells, seen by the process ``own`` (or by the supervisor, that owns none)."""

    def __init__(self, fd: int, own: int = -1) -> None:
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._cells = memoryview(self._memory).cast("I")
        self._own = own

    def publish(self, sessions: int | None) -> None:
        """Tell our number of sessions; None while we take no more."""
        self._cells[self._own] = _CLOSED if sessions is None else sessions

    def close_cell(self, process: int) -> None:
        """Note that a process has ended."""
        self._cells[process] = _CLOSED

    def reserve_less_loaded(self) -> int | None:
        """A process with fewer sessions than ours, counted up by the one that it is about to get; None if there is none."""
        others = [process for process in range(len(self._cells)) if process != self._own]
        best = min(others, key=self._cells.__getitem__, default=None)
        if best is None or self._cells[best] >= self._cells[self._own]:
            return None
        self._cells[best] += 1
        return best

    def close(self) -> None:
        """Unmap the memory."""
        self._cells.release()
        self._memory.close()
