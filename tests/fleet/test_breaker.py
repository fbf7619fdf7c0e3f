"""When Redis is asked and when not: rows of what happens, and what holds whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.breaker import Breaker, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
# (when, what): ok, fail, refuse, probe; "0.3>" is a time-out of what was sent at 0.3
Step = tuple[float, str]


def play(breaker: Breaker, steps: list[Step]) -> None:
    for now, what in steps:
        match what:
            case "ok":
                breaker.succeed()
            case "fail":
                breaker.fail(now, "gone")
            case "refuse":
                breaker.trip(now, "full")
            case "probe":
                breaker.begin_probe(now)
            case _:
                breaker.fail(now, "slow", timed_out_since=float(what.rstrip(">")))


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        pytest.param([], CLOSED, id="it begins closed"),
        pytest.param([(0, "fail"), (0, "fail")], CLOSED, id="two failures"),
        pytest.param([(0, "fail"), (0, "fail"), (0, "fail")], OPEN, id="three failures"),
        pytest.param([(0, "fail"), (0, "fail"), (0, "ok"), (0, "fail")], CLOSED, id="not in a row"),
        pytest.param([(0.25, "0>")], CLOSED, id="one time-out"),
        pytest.param([(0.25, "0>"), (0.5, "0.25>")], OPEN, id="half a second without an answer"),
        pytest.param([(1, "0>")], OPEN, id="one long time-out"),
        pytest.param([(0.25, "0>"), (0.3, "ok"), (0.6, "0.35>")], CLOSED, id="an answer between time-outs"),
        pytest.param([(0, "refuse")], OPEN, id="one refusal"),
        pytest.param([(0, "refuse"), (0.04, "probe")], OPEN, id="too early to probe"),
        pytest.param([(0, "refuse"), (0.1, "probe")], HALF_OPEN, id="probe is due"),
        pytest.param([(0, "refuse"), (0.1, "probe"), (0.1, "ok")], CLOSED, id="probe was answered"),
        pytest.param([(0, "refuse"), (0.1, "probe"), (0.1, "fail")], OPEN, id="probe failed"),
        pytest.param([(0, "refuse"), (0.1, "probe"), (0.1, "refuse")], OPEN, id="probe was refused"),
    ],
)
def test_table(steps: list[Step], state: BreakerState) -> None:
    breaker = Breaker(jitter=lambda: 1.0)
    play(breaker, steps)
    assert breaker.state is state
    assert bool(breaker.error) >= (state is not CLOSED)


def test_probes_become_rare_and_stay_so() -> None:
    breaker = Breaker(jitter=lambda: 1.0)
    breaker.trip(0, "full")
    now, pauses = 0.0, []
    for _ in range(7):
        pauses.append(round(breaker.probe_at - now, 3))
        now = breaker.probe_at
        assert breaker.begin_probe(now)
        breaker.fail(now, "full")
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    breaker.succeed()
    breaker.trip(now, "full")
    assert breaker.probe_at - now == pytest.approx(0.1)


def test_hosts_do_not_probe_together() -> None:
    times = set()
    for jitter in (0.0, 0.25, 0.5, 1.0):
        breaker = Breaker(jitter=lambda jitter=jitter: jitter)  # type: ignore[misc]
        breaker.trip(0, "gone")
        times.add(round(breaker.probe_at, 6))
    assert times == {0.05, 0.0625, 0.075, 0.1}


def test_a_change_brings_the_next_probe_forward() -> None:
    breaker = Breaker()
    for now in range(10):
        breaker.trip(now, "wrong password")
    breaker.hurry(9.0)
    assert breaker.begin_probe(9.0)


_STEPS = st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["ok", "fail", "refuse", "probe", "0>"])))


@given(_STEPS)
def test_whatever_happens(pauses: list[Step]) -> None:
    """Time only goes forward. Work goes on with success; who is open probes within two seconds; one probe at a time."""
    breaker, now = Breaker(), 0.0
    for pause, what in pauses:
        now += pause
        play(breaker, [(now, what)])
        if what == "ok":
            assert breaker.is_closed
            assert not breaker.error
        if what == "refuse":
            assert breaker.state is OPEN
        if breaker.state is OPEN:
            assert breaker.probe_at - now <= 2
        if breaker.state is HALF_OPEN:
            assert not breaker.begin_probe(now + 10)
