"""How long a worker lets packets gather before it takes them: for one packet a wake-up, the wake-up is the cost."""

import time

# At a slower rate a pause would gather nothing.
_MIN_PER_S = 10_000
# What a batch is best at; more gains little.
_WANTED = 256


class Pace:
    """Of one worker's loop.

    gather_us: the longest pause, which adds to a packet's way; 0 for none. busy_poll_us: for so long after a packet the
    worker asks for the next one without sleeping, at the cost of its core.
    """

    def __init__(self, gather_us: int, busy_poll_us: int) -> None:
        self._most_s = gather_us / 1e6
        self._busy_s = busy_poll_us / 1e6
        self._since = time.monotonic()
        self._awake_until = self._since
        self._rate = 1.0

    def timeout_s(self, next_tick: float) -> float:
        """How long to wait for a packet."""
        now = time.monotonic()
        return 0.0 if now < self._awake_until else max(0.0, next_tick - now)

    def rest(self, packets: int, began: float, *, is_busy: bool) -> None:
        """Pause until a batch has gathered since ``began``, when these packets were taken, at the rate since the last call.

        From one batch to the next it is ``gather_us`` at most: who works for longer pauses no more.

        is_busy: packets are expected though none may have come now.
        """
        now = time.monotonic()
        if packets:
            self._rate = packets / max(now - self._since, 1e-6)
            self._since = now
            self._awake_until = now + self._busy_s
        elif not is_busy:
            return
        pause = min(self._most_s, _WANTED / self._rate) - (now - began)
        if pause > 0 and self._rate >= _MIN_PER_S:
            time.sleep(pause)
