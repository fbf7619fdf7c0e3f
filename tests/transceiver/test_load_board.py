"""The load board: which process gets the next session, and that one which hangs, drains or has ended gets none."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.transceiver.checks import Clock
from transceiver.load_board import HUNG_AFTER_S, MAX_PROCESSES, Load, LoadBoard, create_board_fd
from transceiver.overload import Overload

OWN = 1


@dataclass
class Boards:
    """The same memory, seen by the supervisor and by each process."""

    clock: Clock
    supervisor: LoadBoard
    processes: list[LoadBoard]

    @property
    def own(self) -> LoadBoard:
        return self.processes[OWN]


@pytest.fixture
def boards() -> Iterator[Boards]:
    """Three processes of 10 sessions each, with 3, 3 and 3 of them."""
    fd, clock = create_board_fd(), Clock()
    views = [LoadBoard(fd, own, clock) for own in (-1, 0, 1, 2)]
    supervisor, *processes = views
    for index, process in enumerate(processes):
        supervisor.open(index, 8000 + index)
        supervisor.admit(index, True)
        process.publish(Load(3, 2, 10))
    yield Boards(clock, supervisor, processes)
    for view in views:
        view.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("sessions", "tried", "best"),
    [
        pytest.param((3, 3, 3), (), OWN, id="ours before its equals"),
        pytest.param((2, 3, 3), (), 0, id="the one with fewer"),
        pytest.param((2, 3, 1), (), 2, id="the one with fewest"),
        pytest.param((2, 3, 1), (2,), 0, id="the next after a refusal"),
        pytest.param((2, 3, 1), (2, 0), OWN, id="ours when the others refused"),
        pytest.param((2, 3, 1), (2, 0, 1), None, id="nobody is left"),
        pytest.param((10, 10, 9), (), 2, id="not a full one"),
        pytest.param((10, 10, 10), (), None, id="all are full"),
        pytest.param((11, 10, 10), (), None, id="more than full"),
    ],
)
def test_least_loaded_process_is_chosen(
    boards: Boards, sessions: tuple[int, ...], tried: tuple[int, ...], best: int | None
) -> None:
    for process, count in zip(boards.processes, sessions, strict=True):
        process.publish(Load(count, 0, 10))
    assert boards.own.best(tried) == best


@pytest.mark.parametrize("overload", [Overload.MEMORY, Overload.CPU])
def test_process_that_is_overloaded_is_not_chosen_and_is_no_draining_one(
    boards: Boards, overload: Overload
) -> None:
    boards.processes[2].publish(Load(0, 0, 10, overload))
    assert boards.own.best() == OWN
    for process in boards.processes:
        process.publish(Load(0, 0, 10, overload))
    assert (boards.own.best(), boards.own.takes_sessions) == (None, True)
    boards.processes[2].publish(Load(3, 3, 10))
    assert boards.own.best() == 2


@pytest.mark.parametrize(
    ("load", "full"),
    [
        (Load(9, 0, 10), None),
        (Load(10, 0, 10), "sessions"),
        (Load(11, 0, 10, Overload.CPU), "sessions"),
        (Load(9, 0, 10, Overload.MEMORY), "memory"),
        (Load(9, 0, 10, Overload.CPU), "cpu"),
        (Load(9, 0, 0), None),
    ],
)
def test_why_a_process_is_full(boards: Boards, load: Load, full: str | None) -> None:
    boards.own.publish(load)
    assert boards.supervisor.load(OWN) == load
    assert boards.supervisor.load(OWN).full == full


def test_offers_on_their_way_count(boards: Boards) -> None:
    boards.processes[0].publish(Load(2, 0, 10))
    with boards.own.passing_to(0) as port:
        assert port == 8000
        assert boards.own.best() == OWN
        with boards.processes[2].passing_to(0):
            assert boards.processes[2].best() == 2
    assert boards.own.best() == 0


def test_what_a_dead_process_was_passing_on_does_not_count(boards: Boards) -> None:
    boards.processes[0].publish(Load(2, 0, 10))
    with boards.processes[2].passing_to(0):
        boards.supervisor.close_process(2)
        assert boards.own.best() == 0
        boards.processes[2].publish(Load(0, 0, 10))  # its successor
        assert boards.own.best() == 2


@pytest.mark.parametrize("state", ["draining", "told to drain", "ended", "removed", "hung"])
def test_process_that_takes_nothing_is_not_chosen(boards: Boards, state: str) -> None:
    for process in boards.processes[:2]:
        process.publish(Load(5, 0, 10))
    assert boards.own.best() == 2
    match state:
        case "draining":
            boards.processes[2].publish(Load(3, 2, 0))
        case "told to drain":
            boards.supervisor.admit(2, False)
            assert not boards.processes[2].is_admitted
        case "ended":
            boards.supervisor.close_process(2)
        case "removed":
            boards.supervisor.open(2, 0)
        case "hung":
            boards.clock.now += HUNG_AFTER_S
            for process in boards.processes[:2]:
                process.publish(Load(5, 0, 10))
    assert boards.own.best() == OWN
    assert boards.supervisor.is_hung(2) == (state == "hung")
    assert boards.own.takes_sessions


def test_host_takes_sessions_until_the_last_process_does_not(boards: Boards) -> None:
    for index, process in enumerate(boards.processes):
        process.publish(Load(10, 0, 10))
        assert boards.own.takes_sessions, "full is not draining"
        boards.supervisor.admit(index, False)
    assert not boards.own.takes_sessions


def test_process_that_asks_does_not_hang_however_late_it_is(boards: Boards) -> None:
    boards.clock.now += HUNG_AFTER_S
    assert (boards.own.best(), boards.own.takes_sessions) == (OWN, True)
    assert boards.supervisor.best() is None


def test_crash_while_draining_changes_nothing(boards: Boards) -> None:
    boards.supervisor.admit(0, False)
    boards.supervisor.close_process(0)
    boards.processes[0].publish(Load(0, 0, 10))
    assert boards.own.best() == OWN


def test_supervisor_sees_what_processes_tell(boards: Boards) -> None:
    assert boards.supervisor.load(0) == (3, 2, 10, 0)
    boards.supervisor.close_process(0)
    assert boards.supervisor.load(0) == (0, 0, 0, 0)
    assert not boards.supervisor.is_hung(0)


def test_last_place_works_and_costs_nothing_until_it_is_used() -> None:
    fd, clock = create_board_fd(), Clock()
    try:
        last = LoadBoard(fd, MAX_PROCESSES - 1, clock)
        assert last.best() is None
        assert os.fstat(fd).st_blocks * 512 <= 4096
        last.open(MAX_PROCESSES - 1, 1)
        last.admit(MAX_PROCESSES - 1, True)
        last.publish(Load(0, 0, 1))
        assert last.best() == MAX_PROCESSES - 1
        last.close()
    finally:
        os.close(fd)
