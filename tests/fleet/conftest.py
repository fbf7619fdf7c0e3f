"""A Redis of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis.server import RedisServer, redis_server


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server
