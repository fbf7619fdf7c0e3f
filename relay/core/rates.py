"""Token buckets by name: what one source, or one ufrag, may ask for."""

from collections import OrderedDict
from collections.abc import Hashable


class TokenBuckets:
    """``burst`` tokens each at first, ``per_s`` more a second; with ``capacity`` names, the least recently used is forgotten."""

    def __init__(self, per_s: float, burst: float, capacity: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._capacity = capacity
        # tokens, and when they were counted
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def has(self, name: Hashable, now: float) -> bool:
        """Whether there is a token to take."""
        return self._tokens(name, now) >= 1

    def take(self, name: Hashable, now: float) -> bool:
        """Take a token; False if there is none."""
        tokens = self._tokens(name, now)
        if tokens < 1:
            return False
        if name not in self._buckets and len(self._buckets) >= self._capacity:
            self._buckets.popitem(last=False)
        self._buckets[name] = tokens - 1, now
        self._buckets.move_to_end(name)
        return True

    def _tokens(self, name: Hashable, now: float) -> float:
        tokens, counted_at = self._buckets.get(name, (self._burst, now))
        return min(self._burst, tokens + (now - counted_at) * self._per_s)
