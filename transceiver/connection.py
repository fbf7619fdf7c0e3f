"""Stand-ins for aiortc's ICE: what it would do with sockets of its own goes through the mux.

aiortc makes an ICE agent and sockets a connection; here it gets objects with the same methods.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from aioice import Candidate, ConnectionClosed
from aiortc import RTCIceTransport
from aiortc.rtcicetransport import RTCIceCandidate, RTCIceParameters
from pyee.asyncio import AsyncIOEventEmitter

from transceiver.ice import IceLiteAgent, Path
from transceiver.media.context import PeerObserver
from transceiver.mux import Mux
from wire.address import Address
from wire.demux import PacketClass, classify

# Every flight of a handshake, and what SCTP may have under way: what is older is of no use to a call.
_MAX_QUEUED = 64
# The first audio may overtake the end of the handshake.
_MAX_EARLY = 8
# https://www.rfc-editor.org/rfc/rfc8445#section-5.1.2.1: type preference 126 (host), local preference, component 1
_HOST_PRIORITY = (126 << 24) | 255

OnSrtp = Callable[[bytes, Path, Address], None]


class MuxConnection:
    """Stands in for aioice's Connection: bytes go through the mux, ICE is the agent's."""

    def __init__(
        self, agent: IceLiteAgent, mux: Mux, clock: Callable[[], float], observer: PeerObserver
    ) -> None:
        self.agent = agent
        self.clock = clock
        self.on_latched: Callable[[], None] = lambda: None
        self.ice_controlling = False
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None
        self.local_candidates: list[Candidate] = []
        self.remote_candidates: list[Candidate] = []
        self.received = b""
        self.packets_in = self.bytes_in = self.packets_out = self.bytes_out = 0
        self._received_on: tuple[Path, Address] | None = None
        self._mux = mux
        self._observer = observer
        self._on_srtp: OnSrtp | None = None
        self._early: deque[tuple[bytes, Path, Address]] = deque(maxlen=_MAX_EARLY)
        self._queue: deque[tuple[bytes, Path, Address]] = deque()
        self._arrived = asyncio.Event()
        self._latched = asyncio.Event()
        self._closed = asyncio.Event()

    # what the mux brings

    def path_validated(self) -> None:
        """See MuxEndpoint."""
        if not self._latched.is_set():
            self._latched.set()
            self.on_latched()

    def dtls_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        """Queue a datagram for aiortc; the oldest gives way when it does not keep up."""
        self._note_received(datagram)
        if len(self._queue) >= _MAX_QUEUED:
            self._queue.popleft()
            self._observer.count("queue_overflow")
        self._queue.append((datagram, path, relay))
        self._arrived.set()

    def srtp_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        """Hand a packet to whoever has the keys, at once."""
        self._note_received(datagram)
        if self._on_srtp is not None:
            self._on_srtp(datagram, path, relay)
            return
        if len(self._early) == _MAX_EARLY:
            self._observer.count("srtp_early")
        self._early.append((datagram, path, relay))

    def _note_received(self, datagram: bytes) -> None:
        self.packets_in += 1
        self.bytes_in += len(datagram)

    def deliver_srtp(self, on_srtp: OnSrtp) -> None:
        """The keys are there. What came before them is handed on in the loop's next round, when receivers are, too."""
        asyncio.get_running_loop().call_soon(self._deliver_early, on_srtp)

    def _deliver_early(self, on_srtp: OnSrtp) -> None:
        self._on_srtp = on_srtp
        while self._early:
            on_srtp(*self._early.popleft())

    # what aiortc calls

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
        """The next DTLS datagram. Raises ConnectionError once closed."""
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
        self.send_now(datagram, dtls=classify(datagram) is PacketClass.DTLS)

    def send_now(self, datagram: bytes, *, dtls: bool = False) -> None:
        """Send to the selected address, if the agent lets us."""
        destination = self.agent.destination(len(datagram), dtls=dtls, now=self.clock())
        if destination is None:
            self._observer.count("send_withheld")
            return
        self.packets_out += 1
        self.bytes_out += len(datagram)
        self._mux.send(datagram, *destination)

    async def close(self) -> None:
        """End the session's transport and wake whoever waits."""
        self._closed.set()
        self._arrived.set()
        self._on_srtp = None
        self._early.clear()

    async def get_event(self) -> ConnectionClosed:
        """Wait for the end: a lite agent has no other event."""
        await self._closed.wait()
        return ConnectionClosed()

    async def add_remote_candidate(self, candidate: Candidate | None) -> None:
        """A lite agent sends no checks, so the client's candidates are of no use (RFC 8445 section 2.5)."""

    # what the holder of the keys tells

    def authenticated(self, *, newest: bool) -> None:
        """The datagram that ``recv`` gave last passed DTLS authentication."""
        if self._received_on is not None:
            self.agent.authenticate(*self._received_on, newest=newest, now=self.clock())


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
    """The candidates of a description, the first VIP preferred."""
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


class MuxIceTransport(RTCIceTransport):
    """Ends quietly: aiortc starts the transport once for each section, also after its end."""

    async def start(self, remoteParameters: RTCIceParameters) -> None:  # noqa: N803  # the base class's name
        """See the base class."""
        if self.state != "closed":
            await super().start(remoteParameters)

    async def addRemoteCandidate(self, candidate: RTCIceCandidate | None) -> None:  # noqa: N802  # the base class's name
        """Of no use to a lite agent; and aiortc's way would look mDNS names up."""
