"""Hypothesis without deadline, since a busy CI machine is not a slow transceiver; processes; who leaves tasks behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import settings

from tests.transceiver.processes import Process, serving

settings.register_profile("relayctl", deadline=None)
settings.load_profile("relayctl")


@pytest_asyncio.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Everything that a test starts has ended after its other fixtures were closed."""
    before = asyncio.all_tasks()
    yield
    for _ in range(50):  # aioice and aiohttp end some of theirs a moment after close
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            break
        await asyncio.sleep(0.01)
    assert not left, f"tasks left behind: {left}"


@pytest_asyncio.fixture
async def process() -> AsyncIterator[Process]:
    async with serving() as process:
        yield process


@pytest_asyncio.fixture
async def other() -> AsyncIterator[Process]:
    async with serving() as process:
        yield process
