"""A stock aiortc client, of no relay and in no relayed process, that talks, listens, and uses a data channel."""

import asyncio
import contextlib
import fractions
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from tests.examples.voice import RATE_HZ, Heard, Samples, listen_for, phrase

_FRAME_SAMPLES = RATE_HZ // 50
_TIMEOUT_S = 60.0
_SILENCE_S = 2.0


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait; fails naming ``what``."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {_TIMEOUT_S:g} s"
        await asyncio.sleep(0.05)


class _VoiceTrack(MediaStreamTrack):
    """Says the same phrase again and again, in time."""

    kind = "audio"

    def __init__(self, pitch_hz: float) -> None:
        super().__init__()
        self.muted = False
        self._phrase = phrase(pitch_hz)
        self._sent = 0
        self._started = 0.0

    async def recv(self) -> AudioFrame:
        self._started = self._started or time.monotonic()
        due = self._started + self._sent * _FRAME_SAMPLES / RATE_HZ
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        start = self._sent * _FRAME_SAMPLES % len(self._phrase)
        frame = AudioFrame.from_ndarray(
            self._phrase[None, start : start + _FRAME_SAMPLES], format="s16", layout="mono"
        )
        frame.sample_rate = RATE_HZ
        frame.pts = self._sent * _FRAME_SAMPLES
        frame.time_base = fractions.Fraction(1, RATE_HZ)
        if self.muted:
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        self._sent += 1
        return frame


class Caller:
    """One call. ``url`` takes an offer as aiortc's own examples do.

    ``video_sections`` are offered behind audio, and left without a track.
    """

    def __init__(self, url: str, pitch_hz: float, video_sections: int) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel = self.peer.createDataChannel("events")
        self.messages: list[str | bytes] = []
        self.answer: dict[str, Any] = {}
        self._url = url
        self._pitch_hz = pitch_hz
        self._recording: list[Samples] = []
        self._listening: list[asyncio.Task[None]] = []
        self._voice = _VoiceTrack(pitch_hz)
        self.peer.addTrack(self._voice)
        for _ in range(video_sections):
            self.peer.addTransceiver("video")
        self.channel.on("message", self.messages.append)
        self.peer.on("track", lambda track: self._listening.append(asyncio.create_task(self._listen(track))))

    async def connect(self, **parameters: Any) -> None:
        """Call, with what else the offer's JSON should say, until media and data channel are there."""
        await self.negotiate(**parameters)
        await until(lambda: self.peer.connectionState == "connected", "connection")
        await until(lambda: self.channel.readyState == "open", "data channel")

    async def negotiate(self, **parameters: Any) -> None:
        """Offer, and take the answer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = {"sdp": self.peer.localDescription.sdp, "type": "offer", "webrtc_id": uuid.uuid4().hex}
        async with (
            aiohttp.ClientSession() as http,
            http.post(self._url, json={**offer, **parameters}) as response,
        ):
            assert response.status == 200, await response.text()
            self.answer = await response.json()
        await self.peer.setRemoteDescription(RTCSessionDescription(self.answer["sdp"], self.answer["type"]))

    @property
    def candidates(self) -> set[str]:
        """Address, port and type of every candidate in the answer, whose sections repeat them."""
        lines = [line.split() for line in self.answer["sdp"].splitlines() if line.startswith("a=candidate:")]
        return {f"{words[4]}:{words[5]} {words[7]}" for words in lines}

    def heard(self) -> Heard:
        """How much of what came back is our own voice."""
        return self._since(float("inf"))

    async def wait_for_own_voice(self, seconds: float) -> None:
        """Until so much of it came back."""
        await until(lambda: self.heard().in_pitch_s >= seconds, f"{seconds:g} s of our own voice")

    async def fall_silent(self) -> None:
        """Say no more, and wait until nothing has come back for some time."""
        self._voice.muted = True
        said = self._recorded_s()
        await until(
            lambda: self._recorded_s() > said + _SILENCE_S and not self._since(_SILENCE_S).loud_s, "silence"
        )

    async def wait_for_end(self) -> None:
        """Until the far end has said that the call is over."""
        await until(lambda: self.peer.connectionState == "closed", "end of the call")

    async def ask(self, message: str, is_answer: Callable[[str], bool]) -> None:
        """Send over the data channel, and wait for what answers it."""
        self.channel.send(message)
        await until(lambda: any(is_answer(str(got)) for got in self.messages), f"answer to {message}")

    def forget(self) -> None:
        """From now on we have heard nothing."""
        self._recording.clear()

    async def vanish(self) -> None:
        """As a client whose battery is empty: its sockets are closed, and nothing is said."""
        for transport in self.peer._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]  # private
            await transport._connection.close()

    async def close(self) -> None:
        """Hang up."""
        await self.peer.close()
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    def _recorded_s(self) -> float:
        return sum(map(len, self._recording)) / RATE_HZ

    def _since(self, seconds: float) -> Heard:
        recording = np.concatenate([np.zeros(1, np.int16), *self._recording])
        return listen_for(self._pitch_hz, recording[-int(min(seconds * RATE_HZ, len(recording))) :])

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = AudioResampler("s16", "mono", RATE_HZ)
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                self._recording += [part.to_ndarray()[0] for part in resampler.resample(frame)]


@contextlib.asynccontextmanager
async def calling(
    url: str, pitch_hz: float, video_sections: int = 0, **parameters: Any
) -> AsyncIterator[Caller]:
    """A call, connected; hung up at the end of the block."""
    caller = Caller(url, pitch_hz, video_sections)
    try:
        await caller.connect(**parameters)
        yield caller
    finally:
        await caller.close()
