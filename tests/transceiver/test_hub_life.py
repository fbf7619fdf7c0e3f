"""Whom the hub looks after, what ends them, and what is left when it closes, whatever applications do meanwhile."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiortc import InvalidStateError, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from tests.transceiver.library import Tone, write_config
from tests.transceiver.offers import VOICE
from tests.transceiver.waiting import until
from transceiver import Hub, HubError, RelayedPeerConnection
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


# closing


class _StuckError(Exception):
    """Of a connection that does not close."""


async def _open_with(directory: Path, close: Any, opened: "asyncio.Future[Hub]") -> None:
    """A hub with a connection that closes in its own way, left by being cancelled."""
    async with Hub.open(state_dir=directory) as hub:
        peer = await answered()
        original = peer.close

        async def closing() -> None:
            await original()
            await close()

        peer.close = closing  # type: ignore[method-assign]
        opened.set_result(hub)
        await asyncio.sleep(3600)


def _is_read(hub: Hub) -> bool:
    return hub._mux._sock.fileno() >= 0


async def _stuck() -> None:
    await asyncio.sleep(3600)


async def test_hub_that_is_cancelled_while_closing_leaves_no_socket(tmp_path: Path) -> None:
    write_config(tmp_path)
    opened: asyncio.Future[Hub] = asyncio.get_running_loop().create_future()
    leaving = asyncio.Event()

    async def close() -> None:
        leaving.set()
        await _stuck()

    task = asyncio.create_task(_open_with(tmp_path, close, opened))
    hub = await opened
    task.cancel()
    await leaving.wait()
    assert _is_read(hub)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _is_read(hub)


async def test_connection_that_does_not_close_keeps_no_hub_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "_CLOSE_TIMEOUT_S", 0.05)
    write_config(tmp_path)
    opened: asyncio.Future[Hub] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_open_with(tmp_path, _stuck, opened))
    hub = await opened
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert not _is_read(hub)
    assert "did not close" in caplog.text
    assert "TimeoutError" in caplog.text


async def test_connection_that_fails_to_close_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def close() -> None:
        raise _StuckError

    write_config(tmp_path)
    opened: asyncio.Future[Hub] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_open_with(tmp_path, close, opened))
    hub = await opened
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _is_read(hub)
    assert "_StuckError" in caplog.text


# from the first description on


async def offered() -> RelayedPeerConnection:
    """A connection that offered and got no answer."""
    peer = RelayedPeerConnection()
    peer.addTrack(Tone())
    await peer.setLocalDescription(await peer.createOffer())
    return peer


async def test_connection_that_only_offered_is_closed_with_its_hub(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path) as hub:
        peer = await offered()
        assert len(hub) == 1
    assert (peer.connectionState, peer.signalingState) == ("closed", "closed")
    assert len(hub) == 0


async def test_offer_that_is_not_answered_ends_30_s_after_it_was_made(hub: Hub) -> None:
    peer = RelayedPeerConnection()
    peer.addTransceiver("audio")
    pass_time(hub, 40)  # it was made, and nothing more
    await peer.setLocalDescription(await peer.createOffer())
    looked: list[float] = []
    hub.effort.update = lambda cpu_s, now: looked.append(now)  # type: ignore[method-assign]
    pass_time(hub, 15)
    await until(lambda: len(looked) >= 3)
    assert peer.connectionState == "new"
    pass_time(hub, 16)
    await until(lambda: peer.connectionState == "closed")
    assert len(hub) == 0


async def test_answer_to_an_offer_gives_30_s_for_the_first_check(hub: Hub) -> None:
    peer = await offered()
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    await client.setRemoteDescription(peer.localDescription)
    await client.setLocalDescription(await client.createAnswer())
    pass_time(hub, 20)
    await peer.setRemoteDescription(client.localDescription)
    await client.close()
    looked: list[float] = []
    hub.effort.update = lambda cpu_s, now: looked.append(now)  # type: ignore[method-assign]
    pass_time(hub, 20)
    await until(lambda: len(looked) >= 3)
    assert peer.connectionState != "closed"
    pass_time(hub, 11)
    await until(lambda: peer.connectionState == "closed")


async def test_connection_without_a_description_is_its_applications(hub: Hub) -> None:
    kept, forgotten = RelayedPeerConnection(), RelayedPeerConnection()
    forgotten.addTransceiver("audio")
    gone = weakref.ref(forgotten)
    del forgotten
    gc.collect()
    assert gone() is None
    looked: list[float] = []
    hub.effort.update = lambda cpu_s, now: looked.append(now)  # type: ignore[method-assign]
    pass_time(hub, 100)
    await until(lambda: len(looked) >= 3)
    assert kept.connectionState == "new"
    assert len(hub) == 0
    await kept.close()


async def test_connection_whose_hub_has_closed_takes_no_description(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path) as hub:
        answers, offers, closed = (RelayedPeerConnection() for _ in range(3))
        await closed.close()
    with pytest.raises(HubError, match="has closed"):
        await answers.setRemoteDescription(RTCSessionDescription(VOICE, "offer"))
    offers.createDataChannel("events")
    with pytest.raises(HubError, match="has closed"):
        await offers.setLocalDescription(await offers.createOffer())
    with pytest.raises(InvalidStateError):
        await closed.setLocalDescription()
    assert len(hub) == len(hub.ticker) == 0
    for peer in (answers, offers):
        await peer.close()
