"""aiortc's RTCPeerConnection on the mux: ICE-lite, no gathering, one socket for all.

aiortc makes an ICE agent and sockets a connection; here it gets stand-ins with the same methods that lead to the mux.
These names of aiortc are private; tests/transceiver/test_aiortc_names.py fails if a release changes them.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import aiortc.rtp
import numpy as np
from aioice import Candidate, ConnectionClosed
from aiortc import (
    RTCCertificate,
    RTCConfiguration,
    RTCIceTransport,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.rtcconfiguration import RTCBundlePolicy
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceCandidate, RTCIceGatherer, RTCIceParameters
from av import AudioFrame
from OpenSSL import SSL
from pyee.asyncio import AsyncIOEventEmitter

from transceiver.ice import IceLiteAgent, Path
from transceiver.mux import Mux
from wire.address import Address
from wire.demux import PacketClass, classify

# About 1 s of audio, and every flight of a handshake: what is older is of no use to a call.
_MAX_QUEUED = 64
# https://www.rfc-editor.org/rfc/rfc8445#section-5.1.2.1: type preference 126 (host), local preference, component 1
_HOST_PRIORITY = (126 << 24) | 255
_CM_TAG_BYTES = 10
_MAX_RECORD_BYTES = 1500
# aiortc offers ECDSA suites only, so as DTLS client it could not finish with a peer whose certificate is RSA
# (GStreamer's default, some embedded stacks).
_CIPHERS = b":".join(
    f"ECDHE-{signature}-{cipher}".encode()
    for cipher in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA")
    for signature in ("ECDSA", "RSA")
)


def _audio_level_dbov(frame: AudioFrame) -> int:
    """Root mean square of a frame in dBov, -127 to 0 (RFC 6464 section 3)."""
    samples = frame.to_ndarray().astype(np.float64)
    rms = float(np.sqrt(np.mean(np.square(samples)))) / 32768 if samples.size else 0.0
    return max(-127, min(0, round(20 * np.log10(rms)))) if rms > 0 else -127


# aiortc's own is pure Python and costs as much as the Opus encoder.
aiortc.rtp.compute_audio_level_dbov = _audio_level_dbov


class SessionCertificate(RTCCertificate):
    """The process's DTLS certificate, with its SSL context made once."""

    _context: SSL.Context | None = None

    def _create_ssl_context(self, srtp_profiles: list[Any]) -> SSL.Context:
        if self._context is None:
            self._context = super()._create_ssl_context(srtp_profiles)
            self._context.set_cipher_list(_CIPHERS)
        return self._context


class PeerObserver(Protocol):
    """Counts what a session drops."""

    def count(self, outcome: str) -> None:
        """One more of that outcome."""
        ...


class MuxConnection:
    """Stands in for aioice's Connection: bytes go through the mux, ICE is the agent's."""

    def __init__(
        self, agent: IceLiteAgent, mux: Mux, clock: Callable[[], float], observer: PeerObserver
    ) -> None:
        self.agent = agent
        self.ice_controlling = False
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None
        self.local_candidates: list[Candidate] = []
        self.remote_candidates: list[Candidate] = []
        self.received = b""
        self._received_on: tuple[Path, Address] | None = None
        self._mux = mux
        self._clock = clock
        self._observer = observer
        self._queue: deque[tuple[bytes, Path, Address]] = deque()
        self._arrived = asyncio.Event()
        self._latched = asyncio.Event()
        self._closed = asyncio.Event()

    def latch(self) -> None:
        """The first fresh check was answered."""
        self._latched.set()

    def deliver(self, datagram: bytes, path: Path, relay: Address) -> None:
        """Queue a datagram for aiortc; the oldest gives way when it does not keep up."""
        if len(self._queue) >= _MAX_QUEUED:
            self._queue.popleft()
            self._observer.count("queue_overflow")
        self._queue.append((datagram, path, relay))
        self._arrived.set()

    async def connect(self) -> None:
        """Wait for the first check. Raises ConnectionError if the session ends before."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._latched, self._closed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._closed.is_set():
            raise ConnectionError("session closed before its first check")

    async def recv(self) -> bytes:
        """The next datagram. Raises ConnectionError once closed."""
        while not self._queue:
            if self._closed.is_set():
                raise ConnectionError("session closed")
            self._arrived.clear()
            await self._arrived.wait()
        self.received, path, relay = self._queue.popleft()
        self._received_on = path, relay
        return self.received

    async def send(self, datagram: bytes) -> None:
        """Send to the selected address. Raises ConnectionError once closed."""
        if self._closed.is_set():
            raise ConnectionError("session closed")
        dtls = classify(datagram) is PacketClass.DTLS
        destination = self.agent.destination(len(datagram), dtls=dtls, now=self._clock())
        if destination is None:
            self._observer.count("send_withheld")
            return
        self._mux.send(datagram, *destination)

    async def close(self) -> None:
        """End the session's transport and wake whoever waits."""
        self._closed.set()
        self._arrived.set()

    async def get_event(self) -> ConnectionClosed:
        """Wait for the end: a lite agent has no other event."""
        await self._closed.wait()
        return ConnectionClosed()

    async def add_remote_candidate(self, candidate: Candidate | None) -> None:
        """A lite agent sends no checks, so the client's candidates are of no use (RFC 8445 section 2.5)."""

    def authenticated(self, *, newest: bool) -> None:
        """The datagram that ``recv`` gave last passed SRTP or DTLS authentication."""
        if self._received_on is not None:
            self.agent.authenticate(*self._received_on, newest=newest, now=self._clock())


class MuxGatherer(AsyncIOEventEmitter):
    """Stands in for RTCIceGatherer: the candidates are the VIPs, known beforehand."""

    def __init__(self, connection: MuxConnection, vips: tuple[Address, ...]) -> None:
        super().__init__()
        self._connection = connection
        self._remote_candidates_end = False
        self._vips = vips
        self.state = "new"

    async def gather(self) -> None:
        """Nothing to wait for."""
        if self.state == "new":
            self.state = "completed"
            self.emit("statechange")

    def getLocalCandidates(self) -> list[RTCIceCandidate]:  # noqa: N802  # aiortc calls it by this name
        """One host candidate a VIP; none before ``gather``, or aiortc would start before the answer is made."""
        return [] if self.state == "new" else vip_candidates(self._vips)

    def getLocalParameters(self) -> RTCIceParameters:  # noqa: N802  # aiortc calls it by this name
        """The sealed ufrag and its ice-pwd."""
        credential = self._connection.agent.credential
        return RTCIceParameters(
            usernameFragment=credential.server_ufrag, password=credential.ice_pwd, iceLite=True
        )


def vip_candidates(vips: tuple[Address, ...]) -> list[RTCIceCandidate]:
    """The candidates of an answer, the first VIP preferred."""
    return [
        RTCIceCandidate(
            component=1,
            foundation=str(index),
            ip=str(vip.ip),
            port=vip.port,
            priority=_HOST_PRIORITY | (0xFFFF - index) << 8,
            protocol="udp",
            type="host",
        )
        for index, vip in enumerate(vips, 1)
    ]


class _AuthenticatedDataReceiver:
    """Tells the agent of DTLS application data, then hands it on to SCTP."""

    def __init__(self, receiver: Any, connection: MuxConnection, observer: PeerObserver) -> None:
        self._receiver = receiver
        self._connection = connection
        self._observer = observer

    async def _handle_data(self, data: bytes) -> None:
        record = self._connection.received
        # https://www.rfc-editor.org/rfc/rfc6347#section-4.1: epoch and sequence number at 3, length at 11. Of several
        # records in a datagram only one need be authentic, so they prove nothing; DTLS 1.3 encrypts the number
        # (RFC 9147 section 4.2.3).
        if 20 <= record[0] <= 25 and len(record) == 13 + int.from_bytes(record[11:13], "big"):
            newest = self._connection.agent.is_newest_record(int.from_bytes(record[3:11], "big"))
            self._connection.authenticated(newest=newest)
        try:
            await self._receiver._handle_data(data)
        except (ValueError, IndexError, KeyError, AssertionError, struct.error):
            self._observer.count("sctp_malformed")


class MuxIceTransport(RTCIceTransport):
    """Ends quietly: aiortc starts the transport once for each section, also after its end."""

    async def start(self, remoteParameters: RTCIceParameters) -> None:  # noqa: N803  # the base class's name
        """See the base class."""
        if self.state != "closed":
            await super().start(remoteParameters)


class MuxDtlsTransport(RTCDtlsTransport):
    """Tells the agent which packets were authentic; a malformed one from an authentic peer costs a counter only."""

    def __init__(
        self,
        transport: RTCIceTransport,
        certificate: RTCCertificate,
        connection: MuxConnection,
        observer: PeerObserver,
    ) -> None:
        super().__init__(transport, [certificate])
        self._connection = connection
        self._observer = observer

    async def _handle_rtp_data(self, data: bytes, arrival_time_ms: int) -> None:
        try:
            # https://www.rfc-editor.org/rfc/rfc3550#section-5.1: sequence number at 2, SSRC at 8
            sequence_number, ssrc = struct.unpack_from("!2xH4xI", data)
            newest = self._connection.agent.is_newest_rtp(ssrc, sequence_number)
            self._connection.authenticated(newest=newest)
            await super()._handle_rtp_data(data, arrival_time_ms)
        except (ValueError, IndexError, struct.error):
            self._observer.count("rtp_malformed")

    async def _handle_rtcp_data(self, data: bytes) -> None:
        try:
            # https://www.rfc-editor.org/rfc/rfc3550#section-6.4.1: the sender's SSRC at 4
            (ssrc,) = struct.unpack_from("!4xI", data)
            newest = self._connection.agent.is_newest_rtcp(ssrc, self._srtcp_index())
            self._connection.authenticated(newest=newest)
            await super()._handle_rtcp_data(data)
        except (ValueError, IndexError, struct.error):
            self._observer.count("rtcp_malformed")

    async def _send_data(self, data: bytes) -> None:
        # aiortc's retransmission timer may run out while DTLS is being closed: lost, as any datagram may be.
        with contextlib.suppress(SSL.Error):
            await super()._send_data(data)

    async def _recv_next(self) -> None:
        await super()._recv_next()
        # aiortc reads one record of a datagram and leaves the others for the next, which would be taken for their origin.
        if self.encrypted and self._ssl and classify(self._connection.received) is PacketClass.DTLS:
            await self._read_further_records(self._ssl)

    async def _read_further_records(self, ssl: SSL.Connection) -> None:
        while True:
            try:
                data = ssl.recv(_MAX_RECORD_BYTES)
            except SSL.ZeroReturnError:
                raise ConnectionError("DTLS closed by the client") from None
            except SSL.Error:
                return
            if self._data_receiver:
                await self._data_receiver._handle_data(data)

    def _register_data_receiver(self, receiver: Any) -> None:
        super()._register_data_receiver(
            _AuthenticatedDataReceiver(receiver, self._connection, self._observer)
        )

    def _unregister_data_receiver(self, receiver: Any) -> None:
        self._data_receiver = None

    def _srtcp_index(self) -> int:
        """Of the SRTCP packet that ``recv`` gave last: behind the tag with AES-GCM, before it with AES-CM."""
        # https://www.rfc-editor.org/rfc/rfc7714#section-9.2 and https://www.rfc-editor.org/rfc/rfc3711#section-3.4
        assert self._ssl is not None  # SRTCP was decrypted with its keys
        end = None if b"GCM" in self._ssl.get_selected_srtp_profile() else -_CM_TAG_BYTES
        return int.from_bytes(self._connection.received[:end][-4:], "big") & 0x7FFF_FFFF


class RelayedPeerConnection(RTCPeerConnection):
    """An RTCPeerConnection that answers offers through the mux. Everything is bundled on one transport."""

    if TYPE_CHECKING:  # private names of the base class
        _RTCPeerConnection__certificates: list[RTCCertificate]
        _RTCPeerConnection__iceTransports: set[RTCIceTransport]
        _RTCPeerConnection__dtlsTransports: set[RTCDtlsTransport]
        _RTCPeerConnection__updateIceGatheringState: Callable[[], None]
        _RTCPeerConnection__updateIceConnectionState: Callable[[], None]
        _RTCPeerConnection__updateConnectionState: Callable[[], None]

    def __init__(
        self,
        connection: MuxConnection,
        certificate: RTCCertificate,
        vips: tuple[Address, ...],
        observer: PeerObserver,
    ) -> None:
        super().__init__(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._RTCPeerConnection__certificates = [certificate]
        self._connection = connection
        self._certificate = certificate
        self._vips = vips
        self._observer = observer

    async def setRemoteDescription(self, sessionDescription: RTCSessionDescription) -> None:  # noqa: N802, N803
        """See the base class, which would stop the one transport when the offer's first section is not our first."""
        for transceiver in self.getTransceivers():
            transceiver._bundled = True
        await super().setRemoteDescription(sessionDescription)

    def _RTCPeerConnection__createDtlsTransport(self) -> MuxDtlsTransport:  # noqa: N802  # overrides aiortc's private name
        gatherer = MuxGatherer(self._connection, self._vips)
        gatherer.on("statechange", self._RTCPeerConnection__updateIceGatheringState)
        ice = MuxIceTransport(cast("RTCIceGatherer", gatherer))
        ice.on("statechange", self._RTCPeerConnection__updateIceConnectionState)
        ice.on("statechange", self._RTCPeerConnection__updateConnectionState)
        self._RTCPeerConnection__iceTransports.add(ice)
        dtls = MuxDtlsTransport(ice, self._certificate, self._connection, self._observer)
        dtls.on("statechange", self._RTCPeerConnection__updateConnectionState)
        dtls.on("statechange", lambda: self._note_handshake(dtls))
        self._RTCPeerConnection__dtlsTransports.add(dtls)
        self._RTCPeerConnection__updateIceGatheringState()
        self._RTCPeerConnection__updateIceConnectionState()
        self._RTCPeerConnection__updateConnectionState()
        return dtls

    def _note_handshake(self, dtls: MuxDtlsTransport) -> None:
        if dtls.state == "connected":
            self._connection.agent.complete_handshake()
