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
    ("packets", "took_us", "gather_us", "slept_us"),
    [
        pytest.param(1, 101, 500, [], id="9,900/s: each packet as it comes"),
        pytest.param(1, 99, 500, [500], id="10,100/s: no longer than gather_us"),
        pytest.param(10, 100, 500, [480], id="100,000/s: until 48 have come"),
        pytest.param(47, 100, 500, [102], id="470,000/s"),
        pytest.param(48, 100, 500, [], id="enough have gathered by themselves"),
        pytest.param(10, 100, 0, [], id="never"),
        pytest.param(10, 100, 50, [50], id="shorter"),
        pytest.param(0, 100, 500, [], id="no packet"),
        pytest.param(5, 0, 500, [10], id="two calls at one time"),
    ],
)
def test_pause(clock: Clock, packets: int, took_us: int, gather_us: int, slept_us: list[int]) -> None:
    made = Pace(gather_us, busy_poll_us=0)
    clock.now += took_us / 1e6
    made.rest(packets)
    assert clock.slept == slept_us


def test_packets_of_a_pause_came_in_its_time(clock: Clock) -> None:
    """At 100,000/s, with 100 µs of work for each batch."""
    made = Pace(1000, busy_poll_us=0)
    arrived = 0
    for _ in range(4):
        clock.now += 100e-6
        came = round((clock.now - 100) * 100_000)
        made.rest(came - arrived)
        arrived = came
    assert clock.slept == [480]
    assert arrived == 10 + 58 + 10 + 10


def test_waiting_without_packets_is_no_slow_rate_for_ever(clock: Clock) -> None:
    made = Pace(500, busy_poll_us=0)
    clock.now += 10
    made.rest(0)
    clock.now += 10
    made.rest(1)
    clock.now += 50e-6
    made.rest(1)
    assert clock.slept == [500]


def test_wait_is_until_the_next_tick_or_none_at_all_while_it_polls(clock: Clock) -> None:
    made = Pace(0, busy_poll_us=100)
    assert made.timeout_s(100.25) == pytest.approx(0.25)
    made.rest(1)
    assert made.timeout_s(100.25) == 0.0
    clock.now += 101e-6
    assert made.timeout_s(100.25) == pytest.approx(0.25, abs=1e-3)
    assert made.timeout_s(99.0) == 0.0
