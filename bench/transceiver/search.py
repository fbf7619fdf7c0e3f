"""The highest number of calls that holds, by few tries."""

from collections.abc import Callable

_FURTHER, _TOLERANCE, _TRIES = 1.5, 0.05, 10


def highest(holds: Callable[[int], bool], start: int, limit: int) -> int:
    """From ``start`` up or down by a half until the other side is found, then halves; 0 if not even one call holds.

    Exact to 5 %, or to what ten tries give.
    """
    good, bad = 0, limit + 1
    tried = max(1, min(start, limit))
    for _ in range(_TRIES):
        if holds(tried):
            good = tried
        else:
            bad = tried
        if good >= limit or bad - good <= max(1, good * _TOLERANCE):
            break
        if bad > limit:
            tried = min(limit, max(good + 1, round(good * _FURTHER)))
        elif good == 0:
            tried = min(bad - 1, round(bad / _FURTHER))
        else:
            tried = (good + bad) // 2
    return good
