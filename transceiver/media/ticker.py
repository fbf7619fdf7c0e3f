"""One timer for all sessions of a process: who has something to do at times is asked 50 times a second."""

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.02

Tick = Callable[[float], None]


class Ticker:
    """Calls each ``Tick`` with the time, monotonic seconds, for as long as there are any."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ticks: dict[Tick, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._ticks)

    def add(self, tick: Tick) -> None:
        """Call it from now on. Needs a running event loop."""
        self._ticks[tick] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._run)

    def discard(self, tick: Tick) -> None:
        """Call it no more."""
        self._ticks.pop(tick, None)
        if not self._ticks and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._run)
        now = self._clock()
        for tick in list(self._ticks):
            try:
                tick(now)
            except Exception:  # one call's trouble must not end the others' audio
                logger.exception("a call's timer failed, and is stopped")
                self.discard(tick)
