"""Hypothesis without deadline, since a busy CI machine is not a slow transceiver; processes; who leaves tasks behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.transceiver.library import Application, application
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


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gathers the loopback address, which aioice leaves out, and no other."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    async with application(tmp_path) as app:
        yield app
