"""One timer for all: who fails is dropped, and nothing runs when nobody is there."""

import logging
import time

import pytest

from tests.transceiver.waiting import until
from transceiver.media.ticker import Ticker

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_everybody_is_asked_with_the_time() -> None:
    ticker = Ticker(time.monotonic)
    asked: list[tuple[str, float]] = []
    ticks = [lambda now, name=name: asked.append((name, now)) for name in "ab"]
    for tick in (*ticks, *ticks):
        ticker.add(tick)
    assert len(ticker) == 2
    await until(lambda: len(asked) >= 6)
    assert "".join(name for name, _ in asked[:6]) == "ababab"
    assert asked[0][1] == asked[1][1] < asked[2][1]
    for tick in ticks:
        ticker.discard(tick)


async def test_one_that_fails_is_logged_and_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    ticker = Ticker(time.monotonic)
    failed: list[float] = []
    asked: list[float] = []

    def fail(now: float) -> None:
        failed.append(now)
        raise RuntimeError("of one call")

    ticker.add(fail)
    ticker.add(asked.append)
    await until(lambda: len(asked) >= 3)
    assert (len(failed), len(ticker)) == (1, 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    ticker.discard(asked.append)


async def test_no_timer_is_left_when_nobody_is() -> None:
    ticker = Ticker(time.monotonic)

    def fail(now: float) -> None:
        raise RuntimeError("the only one")

    ticker.add(fail)
    await until(lambda: len(ticker) == 0)
    assert ticker._timer is None
    asked: list[float] = []

    def once(now: float) -> None:
        asked.append(now)
        ticker.discard(once)

    ticker.add(once)
    await until(lambda: asked)
    assert ticker._timer is None
    ticker.discard(once)
    assert ticker._timer is None


async def test_who_is_discarded_by_another_in_the_same_round_may_be_asked_once_more_and_never_again() -> None:
    ticker = Ticker(time.monotonic)
    asked: list[float] = []

    def end_the_other(now: float) -> None:
        ticker.discard(asked.append)

    ticker.add(end_the_other)
    ticker.add(asked.append)
    rounds: list[float] = []
    ticker.add(rounds.append)
    await until(lambda: len(rounds) >= 3)
    assert len(asked) <= 1
    ticker.discard(end_the_other)
    ticker.discard(rounds.append)
