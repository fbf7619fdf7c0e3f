"""One real call as a stock aiortc client: WHIP, a tone, a data channel with pings, and what came back."""

import asyncio
import contextlib
import fractions
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import SessionDescription
from aiortc.stats import (
    RTCInboundRtpStreamStats,
    RTCOutboundRtpStreamStats,
    RTCRemoteInboundRtpStreamStats,
)
from av import AudioFrame

from host.errors import ConfigError, OperatorError
from wire.address import Address

_SAMPLE_RATE = 48_000
_FRAME_SAMPLES = 960  # 20 ms
_PING_INTERVAL_S = 0.1
_HTTP_TIMEOUT_S = 10.0
# A ping that is older than this is lost to a conversation, even if the data channel delivers it at last.
OVERDUE_S = 1.0
_GIVE_UP_S = 5.0
# aiortc sends RTCP every 0.5 to 1.5 s.
_RTCP_TIMEOUT_S = 2.0


class CallError(OperatorError):
    """The call could not be set up; the message says at which step, and what to look at."""


class _ToneTrack(MediaStreamTrack):
    """A quiet 440 Hz tone in 20 ms frames, paced by the clock."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0
        self._started: float | None = None
        turns = np.arange(_SAMPLE_RATE // 10) * 440 / _SAMPLE_RATE
        self._samples = (3000 * np.sin(2 * np.pi * turns)).astype(np.int16)

    async def recv(self) -> AudioFrame:
        if self._started is None:
            self._started = time.monotonic()
        due = self._started + self._sent * _FRAME_SAMPLES / _SAMPLE_RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        start = self._sent * _FRAME_SAMPLES % len(self._samples)
        frame = AudioFrame.from_ndarray(
            self._samples[None, start : start + _FRAME_SAMPLES], format="s16", layout="mono"
        )
        frame.sample_rate = _SAMPLE_RATE
        frame.pts = self._sent * _FRAME_SAMPLES
        frame.time_base = fractions.Fraction(1, _SAMPLE_RATE)
        self._sent += 1
        return frame


@dataclass
class CallReport:
    """What one call saw. Times in ms: phases since the POST was sent, round trips of data channel pings.

    ``uplink`` is loss as the transceiver reports it by RTCP, ``downlink`` as the client counts it. ``heard`` says that
    the echo carried the tone, ``silent_s`` how long ago the last of it came. ``state`` is the connection's at the end.
    """

    session_url: str
    vips: list[str]
    phases_ms: dict[str, float] = field(default_factory=dict)
    round_trips_ms: list[float] = field(default_factory=list)
    pings_sent: int = 0
    pings_overdue: int = 0
    uplink: dict[str, int] = field(default_factory=dict)
    downlink: dict[str, int] = field(default_factory=dict)
    heard: bool = False
    silent_s: float = 0.0
    state: str = "new"

    @property
    def packets_lost(self) -> int:
        """Lost in both directions."""
        return self.uplink.get("lost", 0) + self.downlink.get("lost", 0)

    def round_trip_ms(self, quantile: float) -> float | None:
        """A quantile of the round trips, or None without any."""
        return round(float(np.quantile(self.round_trips_ms, quantile)), 2) if self.round_trips_ms else None

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "session_url": self.session_url,
            "vips": self.vips,
            "phases_ms": self.phases_ms,
            "round_trip_ms": {"p50": self.round_trip_ms(0.5), "p99": self.round_trip_ms(0.99)},
            "pings": {
                "sent": self.pings_sent,
                "answered": len(self.round_trips_ms),
                "overdue": self.pings_overdue,
            },
            "uplink": self.uplink,
            "downlink": self.downlink,
            "heard": self.heard,
            "silent_s": self.silent_s,
            "state": self.state,
            "packets_lost": self.packets_lost,
        }


class EchoCall:
    """A call to an echo backend. ``async with EchoCall(url) as call: …; report = await call.report()``."""

    def __init__(
        self, url: str, *, bearer_token: str = "", verify_tls: bool = True, setup_timeout_s: float = 15.0
    ) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.answer = ""
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.path not in ("", "/", "/whip")
        ):
            raise ConfigError("URL", f"{url!r} is no signaling URL; write it as http://127.0.0.1:8080/")
        self._whip = urljoin(url, "/whip")
        self._headers = {"Authorization": f"Bearer {bearer_token}"} if bearer_token else {}
        self._verify_tls = verify_tls
        self._setup_timeout_s = setup_timeout_s
        self._report = CallReport("", [])
        self._posted_at = 0.0
        self._tone_at = time.monotonic()
        self._unanswered: set[float] = set()
        self._audio_arrived = asyncio.Event()
        self._channel_open = asyncio.Event()
        self._connected = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "EchoCall":
        try:
            await self._set_up()
        except BaseException:
            await self.hang_up()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """DELETE the session and end everything of the call."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                if self._report.session_url:
                    async with self._http.delete(self._report.session_url, ssl=self._verify_tls):
                        pass
            await self._http.close()
        await self.peer.close()

    @property
    def is_over(self) -> bool:
        """Whether the call ended by itself, or nothing of the echo came for 5 s."""
        return self.peer.connectionState != "connected" or time.monotonic() - self._tone_at > _GIVE_UP_S

    @property
    def posted_at(self) -> float:
        """Monotonic seconds when the offer was sent, which phases count from."""
        return self._posted_at

    async def report(self) -> CallReport:
        """Everything up to now; waits a moment where the transceiver has not yet reported what it received."""
        now = time.monotonic()
        self._report.state = self.peer.connectionState
        self._report.silent_s = round(now - self._tone_at, 2)
        self._report.pings_overdue = sum(now - sent_at > OVERDUE_S for sent_at in self._unanswered)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RTCP_TIMEOUT_S):
                await self._read_stats()
                while "lost" not in self._report.uplink:
                    await asyncio.sleep(0.1)
                    await self._read_stats()
        return self._report

    async def _read_stats(self) -> None:
        for stats in (await self.peer.getStats()).values():
            if isinstance(stats, RTCOutboundRtpStreamStats):
                self._report.uplink["sent"] = stats.packetsSent
            elif isinstance(stats, RTCRemoteInboundRtpStreamStats):
                self._report.uplink["lost"] = stats.packetsLost
            elif isinstance(stats, RTCInboundRtpStreamStats):
                self._report.downlink.update(received=stats.packetsReceived, lost=stats.packetsLost)

    async def _set_up(self) -> None:
        self.peer.addTrack(_ToneTrack())
        self.peer.on("track", lambda track: self._tasks.append(asyncio.create_task(self._listen(track))))
        self.peer.on("connectionstatechange", self._note_state)
        self.peer.on("iceconnectionstatechange", self._note_ice)
        self._start_pings(self.peer.createDataChannel("events"))
        await self.peer.setLocalDescription(await self.peer.createOffer())
        try:
            await self.peer.setRemoteDescription(RTCSessionDescription(await self._post(), "answer"))
        except CallError:
            raise
        except Exception as error:  # noqa: BLE001  # aiortc raises whatever a strange answer makes it trip over
            raise CallError(
                f"{self._whip} answered what is no usable SDP ({type(error).__name__}: {error})"
            ) from None
        steps = {
            "DTLS": self._connected,
            "first echoed audio": self._audio_arrived,
            "data channel": self._channel_open,
        }
        deadline = time.monotonic() + self._setup_timeout_s
        for step, event in steps.items():
            try:
                await asyncio.wait_for(event.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise CallError(self._explain(step)) from None

    def _explain(self, step: str) -> str:
        vips = ", ".join(self._report.vips) or "no candidate"
        return (
            f"call not up within {self._setup_timeout_s:g} s: waiting for {step} (ICE {self.peer.iceConnectionState}, "
            f"connection {self.peer.connectionState}); is {vips} reachable by UDP? `relayctl status` of the relay "
            "counts what arrived; drop_ufrag_forged there means that the two have different keys.json"
        )

    async def _post(self) -> str:
        self._http = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=_HTTP_TIMEOUT_S)
        )
        offer = self.peer.localDescription.sdp
        self._posted_at = time.monotonic()
        try:
            async with self._http.post(
                self._whip, data=offer, headers={"Content-Type": "application/sdp"}, ssl=self._verify_tls
            ) as response:
                body = await response.text()
                if response.status != 201:
                    raise CallError(
                        f"{self._whip} answered {response.status}: {body.strip() or response.reason}"
                    )
                if "Location" not in response.headers:
                    raise CallError(f"{self._whip} answered 201 without a Location: it is no WHIP server")
                self._report.session_url = urljoin(self._whip, response.headers["Location"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CallError(
                f"{self._whip} cannot be reached ({str(error) or type(error).__name__})"
            ) from None
        self._note_phase("answered")
        self.answer = body
        self._report.vips = sorted(
            str(Address.from_host(candidate.ip, candidate.port))
            for candidate in SessionDescription.parse(body).media[0].ice_candidates
        )
        return body

    def _note_phase(self, phase: str) -> None:
        self._report.phases_ms.setdefault(phase, round((time.monotonic() - self._posted_at) * 1000, 1))

    def _note_ice(self) -> None:
        if self.peer.iceConnectionState == "completed":
            self._note_phase("ice")

    def _note_state(self) -> None:
        if self.peer.connectionState == "connected":
            self._note_phase("dtls")
            self._connected.set()

    async def _listen(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self._note_phase("audio")
                self._audio_arrived.set()
                if isinstance(frame, AudioFrame) and int(np.abs(frame.to_ndarray()).max()) > 500:
                    self._report.heard = True
                    self._tone_at = time.monotonic()

    def _start_pings(self, channel: RTCDataChannel) -> None:
        def opened() -> None:
            self._note_phase("data_channel")
            self._channel_open.set()
            self._tasks.append(asyncio.create_task(self._ping(channel)))

        def echoed(message: str | bytes) -> None:
            sent_at = json.loads(message)["t"]
            self._unanswered.discard(sent_at)
            self._report.round_trips_ms.append((time.monotonic() - sent_at) * 1000)

        channel.on("open", opened)
        channel.on("message", echoed)

    async def _ping(self, channel: RTCDataChannel) -> None:
        while True:
            sent_at = time.monotonic()
            self._report.pings_sent += 1
            self._unanswered.add(sent_at)
            if channel.readyState == "open":
                channel.send(json.dumps({"type": "ping", "id": self._report.pings_sent, "t": sent_at}))
            await asyncio.sleep(_PING_INTERVAL_S)
