"""Waiting for what other processes do: poll, with a deadline, never a fixed sleep."""

import asyncio
import time
from collections.abc import Callable

# For a machine that runs other tests beside this one.
TIMEOUT_S = 30.0
_POLL_S = 0.01


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Return when ``condition`` holds; AssertionError naming ``what`` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)


async def until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """The same beside a running event loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(_POLL_S)
