"""What a Redis holds of flows, read as anybody who may."""

from collections.abc import Callable
from typing import Any

import redis

_PATTERN = "relayctl:1:flow:*"
Entries = Callable[[], dict[str, int]]


def entries_of(client: Callable[[], Any]) -> Entries:
    """Keys of flows with their TTL in seconds; ``client`` makes a client of redis-py, anew for each reading."""

    def read() -> dict[str, int]:
        with client() as connected:
            keys = [key.decode() for key in connected.scan_iter(_PATTERN, count=1000)]
            with connected.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.ttl(key)
                return dict(zip(keys, pipeline.execute(), strict=True))

    return read


def entries_at(host: str, port: int) -> Entries:
    """Of one server."""
    return entries_of(lambda: redis.Redis(host=host, port=port, socket_timeout=2))
