"""An application's hub, and stock aiortc clients that call it through a miniature relay: offering or answering."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiortc import (
    AudioStreamTrack,
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame

from tests.transceiver.caller import RelayShim
from tests.transceiver.processes import KEYS
from tests.transceiver.waiting import until
from transceiver.hub import Hub
from transceiver.peer import RelayedPeerConnection

_LOUD = 500


class Tone(AudioStreamTrack):
    """A square wave, in real time; of another pitch for each ``samples``."""

    def __init__(self, samples: int = 10) -> None:
        super().__init__()
        self._wave = np.repeat(np.array([4000, -4000], dtype=np.int16), samples).tobytes()

    async def recv(self) -> Any:
        frame = await super().recv()
        assert isinstance(frame, AudioFrame)
        for plane in frame.planes:
            plane.update((self._wave * (plane.buffer_size // len(self._wave) + 1))[: plane.buffer_size])
        return frame


class Listener:
    """Reads every track of a connection; counts loud audio frames and video frames, by track."""

    def __init__(self, peer: RTCPeerConnection) -> None:
        self.tracks: list[MediaStreamTrack] = []
        self.loud: list[int] = []
        self.pictures = 0
        self._tasks: list[asyncio.Task[None]] = []
        peer.on("track", self._add)

    def _add(self, track: MediaStreamTrack) -> None:
        self.tracks.append(track)
        self.loud.append(0)
        self._tasks.append(asyncio.create_task(self._listen(track, len(self.loud) - 1)))

    async def _listen(self, track: MediaStreamTrack, index: int) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, VideoFrame):
                    self.pictures += 1
                elif isinstance(frame, AudioFrame) and np.abs(frame.to_ndarray()).max() > _LOUD:
                    self.loud[index] += 1

    async def close(self) -> None:
        """Read no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Application:
    """A hub and the relay before it; makes connections that are closed in the end."""

    def __init__(self, hub: Hub, shim: RelayShim, stack: AsyncExitStack) -> None:
        self.hub = hub
        self.shim = shim
        self._stack = stack

    async def make(self, *kinds: str) -> RelayedPeerConnection:
        """A connection of ours with these tones and sections."""
        peer = RelayedPeerConnection(RTCConfiguration(iceServers=[]))
        self._stack.push_async_callback(peer.close)
        _fill(peer, kinds)
        return peer

    async def make_client(self, *kinds: str) -> RTCPeerConnection:
        """A stock one."""
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._stack.push_async_callback(peer.close)
        _fill(peer, kinds)
        return peer

    def listen(self, peer: RTCPeerConnection) -> Listener:
        """Read what a connection receives."""
        listener = Listener(peer)
        self._stack.push_async_callback(listener.close)
        return listener


def _fill(peer: RTCPeerConnection, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        if kind == "data":
            peer.createDataChannel("events")
        elif kind == "tone":
            peer.addTrack(Tone())
        else:
            peer.addTransceiver(kind)


@asynccontextmanager
async def application(directory: Path, **options: Any) -> AsyncIterator[Application]:
    """A hub with the keys of tests, behind a relay."""
    shim = RelayShim()
    async with AsyncExitStack() as stack:
        shim.start()
        stack.callback(shim.stop)
        config = write_config(directory, fleet=f'vip = ["{shim.vip}"]')
        hub = await stack.enter_async_context(Hub.open(config, state_dir=directory, **options))
        shim.transceiver = hub.settings.address
        async with AsyncExitStack() as peers:
            yield Application(hub, shim, peers)
        await until(lambda: len(hub) == 0)
        assert len(hub.ticker) == 0


def write_config(directory: Path, *, fleet: str = "", transceiver: str = "") -> Path:
    """relayctl.toml, and keys.json next to it."""
    keys = directory / "keys.json"
    keys.write_text(json.dumps(KEYS.to_json()))
    keys.chmod(0o600)
    config = directory / "relayctl.toml"
    config.write_text(f"[fleet]\n{fleet}\n[transceiver]\n{transceiver}\n")
    return config


async def negotiate(offerer: RTCPeerConnection, answerer: RTCPeerConnection) -> None:
    """One offer and its answer."""
    await offerer.setLocalDescription(await offerer.createOffer())
    offer = offerer.localDescription
    await answerer.setRemoteDescription(RTCSessionDescription(offer.sdp, offer.type))
    await answerer.setLocalDescription(await answerer.createAnswer())
    answer = answerer.localDescription
    await offerer.setRemoteDescription(RTCSessionDescription(answer.sdp, answer.type))


async def connected(*peers: RTCPeerConnection) -> None:
    """Wait for all of them."""
    await until(lambda: all(peer.connectionState == "connected" for peer in peers))
