"""How often one source may ask: a token bucket a source prefix. Pure: ``now`` is monotonic seconds."""

from collections import OrderedDict
from ipaddress import ip_address

_MAX_SOURCES = 16_384


class RateLimit:
    """``burst`` requests at once, ``per_s`` in the long run, for each IPv4 address or IPv6 /64."""

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, host: str, now: float) -> float:
        """0.0 if the request may pass, else seconds until one may."""
        source = ip_address(host).packed
        prefix = source if len(source) == 4 else source[:8]
        tokens, since = self._buckets.pop(prefix, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._per_s)
        if len(self._buckets) >= _MAX_SOURCES:
            self._buckets.popitem(last=False)
        if tokens >= 1:
            self._buckets[prefix] = tokens - 1, now
            return 0.0
        self._buckets[prefix] = tokens, now
        return (1 - tokens) / self._per_s
