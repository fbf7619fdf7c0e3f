"""Whom the hub looks after, what ends them, and what is left when it closes, whatever applications do meanwhile."""

import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiortc import RTCSessionDescription

from tests.transceiver.library import write_config
from tests.transceiver.offers import VOICE
from tests.transceiver.waiting import until
from transceiver import Hub, RelayedPeerConnection
from transceiver import hub as hub_module

pytestmark = pytest.mark.usefixtures("no_task_left")


@pytest_asyncio.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """One that looks every 10 ms."""
    monkeypatch.setattr(hub_module, "_SWEEP_INTERVAL_S", 0.01)
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path) as hub:
        yield hub


def pass_time(hub: Hub, seconds: float) -> None:
    """Set the hub's clock forward."""
    before = hub.clock
    hub.clock = lambda: before() + seconds


async def answered() -> RelayedPeerConnection:
    """A connection that answered an offer."""
    peer = RelayedPeerConnection()
    await peer.setRemoteDescription(RTCSessionDescription(VOICE, "offer"))
    await peer.setLocalDescription(await peer.createAnswer())
    return peer


# sweeps


async def test_connection_that_cannot_be_ended_keeps_no_other_from_ending(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(reason: str) -> None:
        raise KeyError(reason)

    first, second, third = [await answered() for _ in range(3)]
    second.on_over = fail
    pass_time(hub, 31)
    await until(lambda: first.connectionState == third.connectionState == "closed")
    assert "could not be looked after" in caplog.text
    assert "KeyError: 'consent expired'" in caplog.text


async def test_encoders_do_not_give_way_to_other_threads_of_the_application(hub: Hub) -> None:
    ended = threading.Event()

    def compute() -> None:
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    seen: list[float] = []
    hub.effort.update = lambda cpu_s, now: seen.append(cpu_s)  # type: ignore[method-assign]
    of_process, of_thread = time.process_time(), time.thread_time()
    thread.start()
    try:
        await until(lambda: time.process_time() - of_process > 0.5)
        count = len(seen)
        await until(lambda: len(seen) > count)
    finally:
        ended.set()
        thread.join()
    assert of_thread <= seen[-1] <= time.thread_time()
