"""When a worker pauses for packets to gather, and for how long."""

import pytest

from relay.dataplane import pace
from relay.dataplane.pace import Pace


class Clock:
    """``time``, as far as a Pace asks for it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds * 1e6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


@pytest.mark.parametrize(
    ("packets", "every_us", "worked_us", "gather_us", "slept_us"),
    [
        pytest.param(1, 101, 10, 500, [], id="9,900/s: each packet as it comes"),
        pytest.param(1, 99, 10, 500, [490], id="10,100/s: no longer than gather_us"),
        pytest.param(10, 10, 50, 500, [206], id="1,000,000/s: until 256 have come"),
        pytest.param(300, 300, 250, 500, [6], id="of which some have come meanwhile"),
        pytest.param(300, 300, 260, 500, [], id="enough have come meanwhile"),
        pytest.param(10, 100, 50, 0, [], id="never"),
        pytest.param(10, 100, 50, 60, [10], id="shorter"),
        pytest.param(10, 600, 600, 500, [], id="long work"),
        pytest.param(0, 100, 50, 500, [], id="no packet"),
        pytest.param(1, 0, 0, 500, [256], id="two calls at one time"),
    ],
)
def test_pause(
    clock: Clock, packets: int, every_us: int, worked_us: int, gather_us: int, slept_us: list[int]
) -> None:
    made = Pace(gather_us, busy_poll_us=0)
    clock.now += every_us / 1e6
    made.rest(packets, clock.now - worked_us / 1e6, is_busy=False)
    assert clock.slept == slept_us


def test_batches_are_alike_at_a_steady_rate(clock: Clock) -> None:
    """At 1,000,000/s, with 100 µs of work for each batch."""
    made = Pace(1000, busy_poll_us=0)
    batches: list[int] = []
    for _ in range(5):
        began = clock.now
        batches.append(round((began - 100) * 1_000_000) - sum(batches))
        clock.now += 100e-6
        made.rest(batches[-1], began, is_busy=False)
    assert batches[-2:] == [256, 256]


def test_busy_worker_that_finds_nothing_waits_as_for_the_last_batch(clock: Clock) -> None:
    made = Pace(500, busy_poll_us=0)
    clock.now += 1e-3
    made.rest(1000, clock.now - 400e-6, is_busy=True)
    made.rest(0, clock.now, is_busy=True)
    made.rest(0, clock.now, is_busy=False)
    assert clock.slept == [256]


def test_wait_is_until_the_next_tick_or_none_at_all_while_it_polls(clock: Clock) -> None:
    made = Pace(0, busy_poll_us=100)
    assert made.timeout_s(100.25) == pytest.approx(0.25)
    made.rest(1, clock.now, is_busy=False)
    assert made.timeout_s(100.25) == 0.0
    clock.now += 101e-6
    assert made.timeout_s(100.25) == pytest.approx(0.25, abs=1e-3)
    assert made.timeout_s(99.0) == 0.0
