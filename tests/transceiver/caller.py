"""A stock aiortc client that calls through a miniature relay: two real UDP sockets that add and strip SPP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
from aiortc import (
    AudioStreamTrack,
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from av.frame import Frame

from host.sockets import bind_udp, bound_address, sockaddr
from tests.transceiver.processes import LOOPBACK, Process
from tests.transceiver.waiting import until
from transceiver.session import Session
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.spp import HEADER_BYTES, decode_header_untrusted, encode_header
from wire.stun import parse_stun_untrusted

_LOUD = 500
# 400 Hz square wave at the 8 kHz of aiortc's AudioStreamTrack
_WAVE = np.repeat(np.array([4000, -4000], dtype=np.int16), 10).tobytes()


class SkewedClock:
    """The real clock, moved ahead by a test that does not want to wait."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class RelayShim:
    """Plays the relay of one transceiver.

    ``uplink`` may change what a client sends: it gets each datagram with its source and returns what arrives instead.
    ``up`` and ``down`` are what came by, with the client's address.
    """

    def __init__(self) -> None:
        self._public, self._fleet = bind_udp("vip", LOOPBACK), bind_udp("relay", LOOPBACK)
        self.vip = bound_address(self._public)
        self.transceiver = LOOPBACK
        self.delivering = True
        self.uplink: Callable[[bytes, Address], list[tuple[bytes, Address]]] = lambda d, client: [(d, client)]
        self.up: list[tuple[bytes, Address]] = []
        self.down: list[tuple[bytes, Address]] = []

    def start(self) -> None:
        """Relay in the running event loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._public, self._relay_up)
        loop.add_reader(self._fleet, self._relay_down)

    def stop(self) -> None:
        """Close both sockets."""
        for sock in (self._public, self._fleet):
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def inject(self, datagram: bytes, client: Address) -> None:
        """Deliver a datagram as if ``client`` had sent it."""
        self._fleet.sendto(encode_header(client, self.vip) + datagram, sockaddr(self.transceiver))

    def checks(self) -> list[bytes]:
        """Every Binding request that a client sent."""
        return [
            datagram
            for datagram, _ in self.up
            if classify(datagram) is PacketClass.STUN and parse_stun_untrusted(datagram).is_binding_request
        ]

    def sent_to(self, client: Address, *, since: int = 0) -> list[PacketClass]:
        """What the transceiver sent to a client."""
        return [classify(datagram) for datagram, to in self.down[since:] if to == client]

    def _relay_up(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, source = self._public.recvfrom(4096)
                client = Address.from_host(*source)
                self.up.append((datagram, client))
                if self.delivering:
                    for changed in self.uplink(datagram, client):
                        self.inject(*changed)

    def _relay_down(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self._fleet.recv(4096)
                client = decode_header_untrusted(datagram).client
                self.down.append((datagram[HEADER_BYTES:], client))
                if self.delivering:
                    with contextlib.suppress(OSError):  # an attacker's address, which is not of this machine
                        self._public.sendto(datagram[HEADER_BYTES:], sockaddr(client))


class _Tone(AudioStreamTrack):
    async def recv(self) -> Frame:
        frame = await super().recv()
        assert isinstance(frame, AudioFrame)
        for plane in frame.planes:
            plane.update((_WAVE * (plane.buffer_size // len(_WAVE) + 1))[: plane.buffer_size])
        return frame


class Caller:
    """One call with a data channel; ``kinds`` are its media sections in order; ``talks``: it sends its audio."""

    def __init__(self, kinds: tuple[str, ...] = ("audio",), *, talks: bool = True) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.location = ""
        self.loud_frames = 0
        self.echoes: list[str | bytes] = []
        for kind in kinds:
            if kind == "audio" and talks:
                self.peer.addTransceiver(_Tone(), direction="sendrecv")
            else:
                self.peer.addTransceiver(kind, direction="recvonly")
        self.channel = self.peer.createDataChannel("events")
        self.channel.on("message", self.echoes.append)
        self._listening: list[asyncio.Task[None]] = []
        self.peer.on("track", lambda track: self._listening.append(asyncio.create_task(self._listen(track))))

    async def dial(self, process: Process, tamper: Callable[[str], str] = lambda sdp: sdp) -> None:
        """POST the offer, take the answer."""
        await self.peer.setLocalDescription(await self.peer.createOffer())
        sdp = tamper(self.peer.localDescription.sdp)
        response = await process.public.post(
            "/whip", data=sdp.encode(), headers={"Content-Type": "application/sdp"}
        )
        assert response.status == 201, await response.text()
        self.location = response.headers["Location"]
        await self.peer.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))

    async def connect(self, process: Process) -> Session:
        """Dial and wait until both sides are connected and the data channel is open."""
        await self.dial(process)
        [session] = process.sessions._sessions.values()
        await until(lambda: self.peer.connectionState == "connected" and session.is_connected)
        await until(lambda: self.channel.readyState == "open")
        return session

    async def say(self, message: str) -> None:
        """Send over the data channel and wait for the echo."""
        self.channel.send(message)
        await until(lambda: message in self.echoes)

    async def close(self) -> None:
        """End everything of the client."""
        await self.peer.close()
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    async def _listen(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                if isinstance(frame, AudioFrame) and np.abs(frame.to_ndarray()).max() > _LOUD:
                    self.loud_frames += 1


@asynccontextmanager
async def calling(kinds: tuple[str, ...] = ("audio",), *, talks: bool = True) -> AsyncIterator[Caller]:
    """A caller that is closed at the end of the block."""
    caller = Caller(kinds, talks=talks)
    try:
        yield caller
    finally:
        await caller.close()
