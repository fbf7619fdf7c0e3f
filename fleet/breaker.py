"""When Redis is asked, and when not: a circuit breaker. Pure: ``now`` (monotonic seconds) goes in, decisions come out.

state       what is done
closed      everything is sent
open        nothing is sent; a probe is due at ``probe_at``
half_open   a probe is under way, nothing else is sent

    closed -> open          three failures in a row, time-outs for half a second, or one clear refusal
    open -> half_open       the probe is due
    half_open -> closed     it was answered
    half_open -> open       it was not; the next one is due after twice the time, up to two seconds
"""

import random
from collections.abc import Callable
from enum import StrEnum

_MAX_FAILURES = 3
_MAX_TIMEOUT_STREAK_S = 0.5
_FIRST_BACK_OFF_S, _MAX_BACK_OFF_S = 0.1, 2.0


class BreakerState(StrEnum):
    """See the table at the top of this file."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """One way to one server. ``jitter`` gives 0 to 1: hosts that lost Redis together do not come back together."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.state = BreakerState.CLOSED
        self.error = ""
        self.probe_at = 0.0
        self.failures = 0
        self._jitter = jitter
        self._back_off_s = _FIRST_BACK_OFF_S
        # When the first of the time-outs in a row had been sent.
        self._timeouts_since: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether anything but a probe may be sent."""
        return self.state is BreakerState.CLOSED

    def succeed(self) -> bool:
        """It was answered; whether that closed the breaker."""
        closes = not self.is_closed
        self.state = BreakerState.CLOSED
        self.error = ""
        self.failures = 0
        self._timeouts_since = None
        self._back_off_s = _FIRST_BACK_OFF_S
        return closes

    def fail(self, now: float, error: str, *, timed_out_since: float | None = None) -> bool:
        """It failed, or was not answered ``since``; whether that opened the breaker."""
        self.failures += 1
        self.error = error
        if timed_out_since is not None and self._timeouts_since is None:
            self._timeouts_since = timed_out_since
        has_timed_out = self._timeouts_since is not None and (
            now - self._timeouts_since >= _MAX_TIMEOUT_STREAK_S
        )
        if self.is_closed and self.failures < _MAX_FAILURES and not has_timed_out:
            return False
        return self.trip(now, error)

    def trip(self, now: float, error: str) -> bool:
        """Open at once; whether it was closed before."""
        was_closed = self.is_closed
        self.state = BreakerState.OPEN
        self.error = error
        self.probe_at = now + self._back_off_s * (0.5 + 0.5 * self._jitter())
        self._back_off_s = min(2 * self._back_off_s, _MAX_BACK_OFF_S)
        return was_closed

    def begin_probe(self, now: float) -> bool:
        """Whether a probe may be sent now; the breaker is half open then."""
        if self.state is not BreakerState.OPEN or now < self.probe_at:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def hurry(self, now: float) -> None:
        """Something has changed that may help: have the next probe now."""
        self.probe_at = min(self.probe_at, now)
        self._back_off_s = _FIRST_BACK_OFF_S
