"""Counters: each its own cell, shared by two processes, kept over a restart."""

import ctypes
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from relay.core.verdict import EVENT_MEANINGS, MEANINGS, FlowEvent, Verdict
from relay.dataplane.bpf.abi import COUNTER_CELLS, WorkerCountersC
from relay.dataplane.counters import WorkerCounters, create_counters_fd

GAUGES = ("bytes_up", "bytes_down", "flows", "assured_flows")


@pytest.fixture
def fd() -> Iterator[int]:
    number = create_counters_fd()
    yield number
    os.close(number)


@pytest.fixture
def counters(fd: int) -> Iterator[WorkerCounters]:
    opened = WorkerCounters(fd)
    yield opened
    opened.close()


def test_all_start_at_zero_under_their_labels(counters: WorkerCounters) -> None:
    assert counters.verdicts() == {verdict.name.lower(): 0 for verdict in Verdict}
    assert counters.events() == {event.name.lower(): 0 for event in FlowEvent}
    assert counters.gauges() == dict.fromkeys(GAUGES, 0)


def count(counters: WorkerCounters, verdict: Verdict, length: int = 0) -> None:
    """One packet."""
    verdicts = np.bincount([verdict], minlength=len(Verdict))
    counters.count_batch(verdicts, length, is_up=verdict is not Verdict.FORWARD_CLIENT)


def test_each_has_its_own_cell(counters: WorkerCounters) -> None:
    for verdict in Verdict:
        for _ in range(verdict + 1):
            count(counters, verdict)
    counters.add_events([100 + event for event in FlowEvent])
    counters.set_flows(7, 5)
    assert counters.verdicts() == {verdict.label: verdict + 1 for verdict in Verdict}
    assert counters.events() == {event.label: 100 + event for event in FlowEvent}
    assert counters.gauges() == {"bytes_up": 0, "bytes_down": 0, "flows": 7, "assured_flows": 5}


@pytest.mark.parametrize(
    ("verdict", "gauge"),
    [
        (Verdict.FORWARD_STUN, "bytes_up"),
        (Verdict.FORWARD_FLOW, "bytes_up"),
        (Verdict.FORWARD_CLIENT, "bytes_down"),
    ],
)
def test_bytes_have_a_direction(counters: WorkerCounters, verdict: Verdict, gauge: str) -> None:
    count(counters, verdict, 100)
    count(counters, verdict, 5_000_000_000)  # more than 32 bits
    assert counters.verdicts()[verdict.label] == 2
    assert counters.gauges() == dict.fromkeys(GAUGES, 0) | {gauge: 5_000_000_100}


def test_events_add_up_and_leave_the_core_at_zero(counters: WorkerCounters) -> None:
    events = list(range(len(FlowEvent)))
    counters.add_events(events)
    assert events == [0] * len(FlowEvent)
    events[FlowEvent.FLOW_MOVED] = 10
    counters.add_events(events)
    assert counters.events()["flow_moved"] == FlowEvent.FLOW_MOVED + 10
    assert counters.events()["flow_adopted"] == FlowEvent.FLOW_ADOPTED


def test_flows_are_set_and_not_added(counters: WorkerCounters) -> None:
    counters.set_flows(7, 5)
    counters.set_flows(3, 2)
    assert counters.gauges() == {"bytes_up": 0, "bytes_down": 0, "flows": 3, "assured_flows": 2}


def test_supervisor_sees_what_a_worker_counts_and_its_successor_goes_on(
    fd: int, counters: WorkerCounters
) -> None:
    for _ in range(2):
        worker = WorkerCounters(fd)
        count(worker, Verdict.DROP_MARTIAN)
        assert worker.verdicts() == counters.verdicts()
        worker.close()
    assert counters.verdicts()["drop_martian"] == 2


def test_each_worker_has_a_page_of_one_memory() -> None:
    """As in the kernel's map, of which each worker's part is one page."""
    fd = os.memfd_create("counters")
    os.ftruncate(fd, 3 * mmap.PAGESIZE)
    pages = [WorkerCounters(fd, page) for page in range(3)]
    for page, counters in enumerate(pages):
        for _ in range(page + 1):
            count(counters, Verdict.DROP_MARTIAN)
        counters.set_flows(10 + page, page)
    assert [counters.verdicts()["drop_martian"] for counters in pages] == [1, 2, 3]
    assert [counters.gauges()["flows"] for counters in pages] == [10, 11, 12]
    for counters in pages:
        counters.close()
    os.close(fd)


def test_every_counter_has_room_in_the_kernel_s_cells() -> None:
    assert len(Verdict) + len(FlowEvent) + len(GAUGES) <= COUNTER_CELLS
    assert ctypes.sizeof(WorkerCountersC) == mmap.PAGESIZE


def test_every_outcome_has_a_meaning_for_operators() -> None:
    assert list(MEANINGS) == list(Verdict)
    assert list(EVENT_MEANINGS) == list(FlowEvent)
    texts = [*MEANINGS.values(), *EVENT_MEANINGS.values()]
    assert len(set(texts)) == len(texts)


def test_drops_are_named_so() -> None:
    assert all(verdict.is_drop == verdict.label.startswith("drop_") for verdict in Verdict)
