"""Which transceiver processes of a host take sessions, and how many each has, in memory that they share.

All of them accept from one HTTP socket, and the kernel wakes whichever it likes; so the process that takes an offer hands
it to the least loaded one. Each cell, of 8 bytes, has one writer:

    row                 column i                                              written by
    PORT                internal HTTP port of process i; 0: there is none     the supervisor
    ADMITTED            0: process i is to take no new sessions               the supervisor
    SESSIONS            how many process i has                                i
    CONNECTED           how many of them are connected                        i
    LIMIT               how many it takes; 0: it takes no new ones            i
    OVERLOAD            what it has too little of for one more; 0: nothing    i
    TOLD_AT             when it wrote last, monotonic ms                      i
    PASSING + j         offers that j is passing on to i                      j

A process whose supervisor has noted its end, or that has not written for a while (it hangs), takes none.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transceiver.overload import Overload

MAX_PROCESSES = 256
PUBLISH_INTERVAL_S = 0.25
# Six times in a row: a loop that is late by so much answers no offer in time either.
HUNG_AFTER_S = 1.5
_CELL_BYTES = 8
_PORT, _ADMITTED, _SESSIONS, _CONNECTED, _LIMIT, _OVERLOAD, _TOLD_AT, _PASSING = range(8)
_ROWS = _PASSING + MAX_PROCESSES


class Load(NamedTuple):
    """What a process tells of itself. ``limit``: how many sessions it takes, 0 while it takes no new ones.

    overload: why it takes no more now, though it would.
    """

    sessions: int
    connected: int
    limit: int
    overload: Overload = Overload.NONE

    @property
    def full(self) -> str | None:
        """Why one that takes sessions has no room for one more: sessions, memory or cpu; None if it has."""
        if self.sessions >= self.limit > 0:
            return "sessions"
        return self.overload.name.lower() if self.overload else None


def create_board_fd() -> int:
    """An anonymous file without any process; child processes may inherit it. Only what is written takes memory."""
    fd = os.memfd_create("relayctl-load", os.MFD_CLOEXEC)
    os.ftruncate(fd, _ROWS * MAX_PROCESSES * _CELL_BYTES)
    return fd


class LoadBoard:
    """The cells, seen by the process ``own`` (or by the supervisor, that owns none). ``clock`` is monotonic seconds."""

    def __init__(self, fd: int, own: int = -1, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._cells: npt.NDArray[np.int64] = np.frombuffer(self._memory, np.int64).reshape(_ROWS, -1)
        self._clock = clock
        self.own = own

    # by the supervisor

    def open(self, process: int, port: int) -> None:
        """Note where a process takes what is passed on to it."""
        self._cells[_PORT, process] = port

    def admit(self, process: int, admitted: bool) -> None:
        """Whether a process is to take new sessions, now and after a crash."""
        self._cells[_ADMITTED, process] = admitted

    def close_process(self, process: int) -> None:
        """Note that a process has ended, and with it what it was passing on."""
        self._cells[_SESSIONS:_PASSING, process] = 0
        self._cells[_PASSING + process] = 0

    def load(self, process: int) -> Load:
        """What a process told last; all 0 since it ended."""
        sessions, connected, limit, overload = map(int, self._cells[_SESSIONS:_TOLD_AT, process])
        return Load(sessions, connected, limit, Overload(overload))

    def is_hung(self, process: int) -> bool:
        """Whether a process that runs has not told of itself for so long that it gets no sessions."""
        told_at = int(self._cells[_TOLD_AT, process])
        return told_at > 0 and self._now_ms() - told_at >= HUNG_AFTER_S * 1000

    # by a process

    def publish(self, load: Load) -> None:
        """Tell how many sessions we have, and that we live."""
        self._cells[_SESSIONS:_PASSING, self.own] = (*load, self._now_ms())

    @property
    def is_admitted(self) -> bool:
        """Whether the supervisor lets us take new sessions."""
        return bool(self._cells[_ADMITTED, self.own])

    @property
    def takes_sessions(self) -> bool:
        """Whether any process takes sessions, or would if it were not full."""
        return bool(self._are_serving().any())

    def best(self, tried: Collection[int] = ()) -> int | None:
        """The process with the fewest sessions that has room for one more, ours before its equals; None if there is none."""
        serving = self._are_serving()
        count = len(serving)
        sessions, limits = self._cells[_SESSIONS, :count], self._cells[_LIMIT, :count]
        serving &= (sessions < limits) & (self._cells[_OVERLOAD, :count] == Overload.NONE)
        serving[list(tried)] = False
        if not serving.any():
            return None
        loads = sessions + self._cells[_PASSING : _PASSING + count, :count].sum(axis=0)
        lightest = loads == loads[serving].min()
        best = np.flatnonzero(serving & lightest)
        return self.own if self.own in best else int(best[0])

    @contextlib.contextmanager
    def passing_to(self, process: int) -> Iterator[int]:
        """Within the block an offer is being passed on; gives the port for it."""
        cell = _PASSING + self.own, process
        self._cells[cell] += 1
        try:
            yield int(self._cells[_PORT, process])
        finally:
            self._cells[cell] -= 1

    def close(self) -> None:
        """Unmap the memory."""
        del self._cells
        self._memory.close()

    def _are_serving(self) -> npt.NDArray[np.bool_]:
        """For each process up to the last one: whether it lives and takes new sessions, full or not."""
        count = int(self._cells[_PORT].nonzero()[0].max(initial=-1)) + 1
        cells = self._cells[:_PASSING, :count]
        alive: npt.NDArray[np.bool_] = self._now_ms() - cells[_TOLD_AT] < HUNG_AFTER_S * 1000
        if 0 <= self.own < count:
            alive[self.own] = True  # we ask, however late we are
        alive &= (cells[_PORT] > 0) & (cells[_ADMITTED] > 0) & (cells[_LIMIT] > 0)
        return alive

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
