"""How hard encoders try: a busy process gives some fidelity of its voices away, before it gives delay or calls away. Pure.

    share of a core in the last second    complexity of the Opus encoders
    above 90 %                            0 at once: what is late is worse than what is plain
    above 80 %                            one less
    under 65 %                            one more, every 2 s, up to the most
    else                                  as it is

At speech's bit rates a step of complexity costs about 8 % of the CPU time of a call that is decoded and encoded: less than
from one border to the other, so it does not swing. What counts is the thread of the loop, where encoders work: plainer
voices would give nothing to an application's other threads.
"""

_WINDOW_S = 1.0
_URGENT, _BUSY, _IDLE = 0.9, 0.8, 0.65
_MORE_EVERY_S = 2.0


class Effort:
    """Of all encoders of a process. ``complexity`` is what they should use now, ``most`` at best; it stays if not adaptive."""

    def __init__(self, most: int, *, adaptive: bool) -> None:
        self.most = self.complexity = most
        self._adaptive = adaptive
        self._looked: tuple[float, float] | None = None  # when, and the CPU time until then
        self._raised_at = float("-inf")

    def update(self, cpu_s: float, now: float) -> None:
        """Look how busy we are: CPU seconds of the thread of the loop since it began, and monotonic seconds."""
        if self._looked is None:
            self._looked = now, cpu_s
        elapsed_s = now - self._looked[0]
        if elapsed_s < _WINDOW_S or not self._adaptive:
            return
        busy = (cpu_s - self._looked[1]) / elapsed_s
        self._looked = now, cpu_s
        if busy > _URGENT:
            self.complexity = 0
        elif busy > _BUSY:
            self.complexity = max(0, self.complexity - 1)
        elif busy < _IDLE and now - self._raised_at >= _MORE_EVERY_S:
            self._raised_at = now
            self.complexity = min(self.most, self.complexity + 1)
