"""Waiting for what a network or another task brings."""

import asyncio
from collections.abc import Callable

PATIENCE_S = 5.0


async def until(condition: Callable[[], object]) -> None:
    """Return when ``condition`` holds; TimeoutError if it never does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # sockets and aiortc's tasks set no event
            await asyncio.sleep(0.002)
