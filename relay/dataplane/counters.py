"""A worker's counters in memory that others can read, so that a crash loses none.

The memory is an anonymous file that the supervisor has too, or the worker's page of the kernel's map ``counters``.
"""

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from relay.core.verdict import FlowEvent, Verdict

_GAUGES = ("bytes_up", "bytes_down", "flows", "assured_flows")
_EVENTS_AT = len(Verdict)
_GAUGES_AT = _EVENTS_AT + len(FlowEvent)
# What is mapped begins and ends with a page.
_SIZE_BYTES = mmap.PAGESIZE


def create_counters_fd() -> int:
    """An anonymous file of zeros for one worker's counters; child processes may inherit it."""
    fd = os.memfd_create("relayctl-counters", os.MFD_CLOEXEC)
    os.ftruncate(fd, _SIZE_BYTES)
    return fd


def label_cells(cells: Sequence[int]) -> dict[str, int]:
    """Names for all cells: verdicts, flow events, gauges."""
    names = [*(v.label for v in Verdict), *(e.label for e in FlowEvent), *_GAUGES]
    return dict(zip(names, cells, strict=False))


class WorkerCounters:
    """64-bit cells: one a verdict, one a flow event, then ``bytes_up``, ``bytes_down``, ``flows``, ``assured_flows``.

    Only the worker writes. Over a restart the counts go on; the two flow gauges are set anew. ``page`` is which page of
    the file, or of the kernel's map, is the worker's.
    """

    def __init__(self, fd: int, page: int = 0) -> None:
        self._memory = mmap.mmap(fd, _SIZE_BYTES, offset=page * _SIZE_BYTES)
        self._cells = memoryview(self._memory).cast("Q")
        self._verdicts: npt.NDArray[np.uint64] = np.frombuffer(self._memory, np.uint64, len(Verdict))

    def count_batch(self, verdicts: npt.NDArray[np.intp], forwarded_bytes: int, *, is_up: bool) -> None:
        """Packets by Verdict, and the payload bytes of those that were forwarded."""
        self._verdicts += verdicts.astype(np.uint64)
        self._cells[_GAUGES_AT + (not is_up)] += forwarded_bytes

    def add_events(self, events: list[int]) -> None:
        """Add counts by FlowEvent and set them back to zero."""
        for event, count in enumerate(events):
            self._cells[_EVENTS_AT + event] += count
            events[event] = 0

    def set_flows(self, flows: int, assured: int) -> None:
        """Sizes of the flow table."""
        self._cells[_GAUGES_AT + 2] = flows
        self._cells[_GAUGES_AT + 3] = assured

    def verdicts(self) -> dict[str, int]:
        """Counts by verdict label."""
        return {verdict.label: self._cells[verdict] for verdict in Verdict}

    def events(self) -> dict[str, int]:
        """Counts by flow event label."""
        return {event.label: self._cells[_EVENTS_AT + event] for event in FlowEvent}

    def gauges(self) -> dict[str, int]:
        """``bytes_up``, ``bytes_down``, ``flows`` and ``assured_flows``."""
        return {name: self._cells[_GAUGES_AT + index] for index, name in enumerate(_GAUGES)}

    def close(self) -> None:
        """Unmap the memory."""
        self._verdicts = np.zeros(0, np.uint64)
        self._cells.release()
        self._memory.close()
