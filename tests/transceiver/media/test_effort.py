"""How hard encoders try, by how busy the process is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media.effort import Effort


def after(effort: Effort, *busy: float) -> list[int]:
    """The complexity after each second of which that share was spent."""
    seen, cpu_s = [], 0.0
    effort.update(cpu_s, 100.0)
    for second, share in enumerate(busy, 101):
        cpu_s += share
        effort.update(cpu_s, float(second))
        seen.append(effort.complexity)
    return seen


@pytest.mark.parametrize(
    ("busy", "complexity"),
    [
        pytest.param([0.5] * 4, [5, 5, 5, 5], id="idle: the most"),
        pytest.param([0.79] * 4, [5, 5, 5, 5], id="not yet busy"),
        pytest.param([0.85] * 7, [4, 3, 2, 1, 0, 0, 0], id="busy: one less a second"),
        pytest.param([0.95, 0.95], [0, 0], id="urgent: none at once"),
        pytest.param([0.95, 0.7, 0.7], [0, 0, 0], id="between the borders: as it is"),
        pytest.param([0.95] + [0.5] * 9, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5], id="idle again: one more every 2 s"),
    ],
)
def test_complexity_follows_the_load(busy: list[float], complexity: list[int]) -> None:
    assert after(Effort(5, adaptive=True), *busy) == complexity


def test_effort_that_is_not_adaptive_stays() -> None:
    assert after(Effort(5, adaptive=False), 1.0, 1.0) == [5, 5]


def test_looks_in_quick_succession_are_one() -> None:
    effort = Effort(5, adaptive=True)
    for hundredths in range(90):
        effort.update(hundredths / 100, hundredths / 100)
    assert effort.complexity == 5


@given(st.integers(0, 10), st.floats(0.3, 1.5))
def test_load_that_follows_the_complexity_comes_to_rest(most: int, load: float) -> None:
    """A step costs 8 % of the CPU time that calls take."""
    effort, cpu_s, seen = Effort(most, adaptive=True), 0.0, []
    effort.update(0.0, 0.0)
    for second in range(1, 120):
        cpu_s += min(1.0, load * (0.6 + 0.08 * effort.complexity))
        effort.update(cpu_s, float(second))
        seen.append(effort.complexity)
    assert len(set(seen[60:])) == 1
    assert 0 <= seen[-1] <= most
