"""The echo backend: audio comes back, and so does every data channel message."""

import asyncio
import contextlib

from aiortc import MediaStreamTrack, RTCDataChannel
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from av.frame import Frame

from transceiver.peer import RelayedPeerConnection

# 200 ms of 20 ms frames. aiortc's own queue of a remote track is unbounded, so it must always be drained.
_MAX_FRAMES = 10
# What a client that does not read may make us hold.
_MAX_BUFFERED_BYTES = 1024 * 1024


class EchoBackend:
    """Echoes the first audio section and every data channel.

    ``transcode``: decodes to PCM16, as a backend of a model would, and encodes again; else packets go back as they came.
    """

    def __init__(self, *, transcode: bool = False) -> None:
        self._transcode = transcode
        self._tracks: _TrackEcho | None = None

    def attach(self, peer: RelayedPeerConnection) -> None:
        """See Backend."""
        peer.on("datachannel", _echo_messages)
        peer.addTransceiver("audio")
        voice = peer.voice
        if voice is None:
            self._tracks = _TrackEcho(peer)
        elif self._transcode:
            voice.receiver.on_pcm = voice.sender.send_pcm
        else:
            voice.receiver.on_rtp = voice.sender.forward

    async def close(self) -> None:
        """See Backend."""
        if self._tracks is not None:
            await self._tracks.close()


def _echo_messages(channel: RTCDataChannel) -> None:
    def echo(message: str | bytes) -> None:
        # What the client had sent before it closed the channel may come behind that.
        if channel.readyState == "open" and channel.bufferedAmount + len(message) <= _MAX_BUFFERED_BYTES:
            channel.send(message)

    channel.on("message", echo)


class _EchoTrack(MediaStreamTrack):
    """Plays the frames that are put into it; the oldest gives way."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._frames: asyncio.Queue[Frame] = asyncio.Queue(_MAX_FRAMES)

    def put(self, frame: Frame) -> None:
        """Add a frame."""
        if self._frames.full():
            self._frames.get_nowait()
        self._frames.put_nowait(frame)

    async def recv(self) -> Frame:
        """The next frame, when there is one."""
        if self.readyState != "live":
            raise MediaStreamError
        return await self._frames.get()


class _TrackEcho:
    """By aiortc's tracks, where its receiver and sender were chosen; drains every other track."""

    def __init__(self, peer: RelayedPeerConnection) -> None:
        self._echo = _EchoTrack()
        self._echoing = False
        self._pumps: list[asyncio.Task[None]] = []
        peer.addTrack(self._echo)
        peer.on("track", self._receive_track)

    async def close(self) -> None:
        """End every task."""
        self._echo.stop()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def _receive_track(self, track: MediaStreamTrack) -> None:
        echo = self._echo if track.kind == "audio" and not self._echoing else None
        self._echoing = self._echoing or echo is not None
        self._pumps.append(asyncio.create_task(self._pump(track, echo)))

    async def _pump(self, track: MediaStreamTrack, echo: _EchoTrack | None) -> None:
        taken: tuple[str, int] | None = None
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if echo is None or not isinstance(frame, AudioFrame):
                    continue
                # aiortc's sender ends when the client changes its codec, and with it the rate: what differs is not echoed.
                shape = frame.layout.name, frame.sample_rate
                taken = taken or shape
                if shape == taken:
                    echo.put(frame)
