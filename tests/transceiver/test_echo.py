"""The echo backend: what comes back, what is drained, and what is bounded."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from av.frame import Frame
from pyee.asyncio import AsyncIOEventEmitter

from tests.transceiver.waiting import until
from transceiver.backend.echo import EchoBackend

if TYPE_CHECKING:
    from transceiver.peer import RelayedPeerConnection

pytestmark = pytest.mark.usefixtures("no_task_left")


class FakePeer(AsyncIOEventEmitter):
    """Of aiortc's own media path: keeps the tracks that are sent, and emits the client's."""

    def __init__(self) -> None:
        super().__init__()
        self.voice = None
        self.sends: list[MediaStreamTrack] = []

    def addTransceiver(self, kind: str) -> None:  # noqa: N802  # aiortc's name
        assert kind == "audio"

    def addTrack(self, track: MediaStreamTrack) -> None:  # noqa: N802  # aiortc's name
        self.sends.append(track)


class ClientTrack(MediaStreamTrack):
    """As aiortc's RemoteStreamTrack: an unbounded queue that somebody must empty."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.queue: asyncio.Queue[Frame] = asyncio.Queue()

    async def recv(self) -> Frame:
        if self.readyState != "live":
            raise MediaStreamError
        return await self.queue.get()


class FakeChannel(AsyncIOEventEmitter):
    """A data channel whose client does not read: everything stays buffered."""

    def __init__(self) -> None:
        super().__init__()
        self.bufferedAmount = 0
        self.readyState = "open"
        self.sent: list[str | bytes] = []

    def send(self, message: str | bytes) -> None:
        self.bufferedAmount += len(message)
        self.sent.append(message)


def frame(number: int) -> AudioFrame:
    made = AudioFrame(format="s16", layout="mono", samples=160)
    made.pts = number
    return made


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


class Echo:
    """A backend attached to a fake peer."""

    def __init__(self) -> None:
        self.peer = FakePeer()
        self.backend = EchoBackend()
        self.backend.attach(cast("RelayedPeerConnection", self.peer))
        [self.answer] = self.peer.sends

    def arrive(self, kind: str) -> ClientTrack:
        track = ClientTrack(kind)
        self.peer.emit("track", track)
        return track

    async def next_pts(self) -> int | None:
        return (await asyncio.wait_for(self.answer.recv(), 1)).pts


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    yield echo
    await echo.backend.close()


async def test_audio_comes_back_in_order(echo: Echo) -> None:
    track = echo.arrive("audio")
    for number in range(5):
        track.queue.put_nowait(frame(number))
    await settle()
    assert [await echo.next_pts() for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kinds", [("audio", "video"), ("video", "audio")], ids="-".join)
async def test_audio_comes_back_wherever_video_stands(echo: Echo, kinds: tuple[str, ...]) -> None:
    tracks = {kind: echo.arrive(kind) for kind in kinds}
    tracks["video"].queue.put_nowait(frame(1))
    tracks["audio"].queue.put_nowait(frame(2))
    await settle()
    assert await echo.next_pts() == 2


async def test_second_audio_is_not_mixed_in(echo: Echo) -> None:
    first, second = echo.arrive("audio"), echo.arrive("audio")
    second.queue.put_nowait(frame(2))
    await settle()
    first.queue.put_nowait(frame(1))
    await settle()
    assert await echo.next_pts() == 1


async def test_every_track_is_drained(echo: Echo) -> None:
    tracks = [echo.arrive(kind) for kind in ("audio", "video", "audio")]
    for track in tracks:
        for number in range(1000):
            track.queue.put_nowait(frame(number))
    await until(lambda: not any(track.queue.qsize() for track in tracks))


async def test_echo_that_nobody_plays_keeps_the_newest_200_ms(echo: Echo) -> None:
    track = echo.arrive("audio")
    for number in range(1000):
        track.queue.put_nowait(frame(number))
    await until(track.queue.empty)
    await settle()
    assert [await echo.next_pts() for _ in range(10)] == list(range(990, 1000))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(echo.answer.recv(), 0.01)


async def test_track_that_ends_ends_its_task_only(echo: Echo) -> None:
    video, audio = echo.arrive("video"), echo.arrive("audio")
    await settle()
    video.stop()
    video.queue.put_nowait(frame(0))
    audio.queue.put_nowait(frame(7))
    await settle()
    assert video.queue.empty()
    assert audio.queue.empty()


async def test_close_ends_every_task_and_the_answer(echo: Echo) -> None:
    for _ in range(3):
        echo.arrive("audio")
    await settle()
    await echo.backend.close()
    assert echo.answer.readyState == "ended"
    with pytest.raises(MediaStreamError):
        await echo.answer.recv()


async def test_messages_come_back_as_they_are(echo: Echo) -> None:
    channel = FakeChannel()
    echo.peer.emit("datachannel", channel)
    for message in ("text", b"bytes", ""):
        channel.emit("message", message)
    assert channel.sent == ["text", b"bytes", ""]


async def test_client_that_does_not_read_makes_us_hold_a_bounded_amount(echo: Echo) -> None:
    channel = FakeChannel()
    echo.peer.emit("datachannel", channel)
    for _ in range(1000):
        channel.emit("message", bytes(64 * 1024))
    assert channel.bufferedAmount <= 1024 * 1024 + 64 * 1024
    channel.bufferedAmount = 0
    channel.emit("message", "again")
    assert channel.sent[-1] == "again"


async def test_message_behind_the_end_of_its_channel_is_not_echoed(echo: Echo) -> None:
    channel = FakeChannel()
    echo.peer.emit("datachannel", channel)
    channel.readyState = "closed"
    channel.emit("message", "late")
    assert channel.sent == []
