"""One UDP socket for every connection of a process, and what they share: keys, certificate, ICE credentials, timer."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from transceiver.connection import MuxConnection
from transceiver.dtls import SessionCertificate
from transceiver.ice import Credential, IceLiteAgent
from transceiver.media.context import PeerObserver
from transceiver.media.effort import Effort
from transceiver.media.settings import AudioSettings
from transceiver.media.ticker import Ticker
from transceiver.mux import Mux
from transceiver.standalone import open_standalone
from wire.address import Address
from wire.keys import KeyRing
from wire.ufrag import NONCE_BYTES, RouteHint, derive_ice_pwd, seal_ufrag

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 1.0
# Closing waits for aiortc's tasks; none of them needs long.
_CLOSE_TIMEOUT_S = 5.0


class HubError(RuntimeError):
    """No hub is open, or one is already."""


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What the connections of one process share.

    address: of the mux's socket, as hints name it. vips: what clients are told.
    """

    address: Address
    vips: tuple[Address, ...]
    cluster_id: int
    audio: AudioSettings = field(default_factory=AudioSettings)


class HubPeer(PeerObserver, Protocol):
    """What a connection shows to its hub."""

    connection: MuxConnection
    on_over: Callable[[str], object]

    @property
    def agent(self) -> IceLiteAgent:
        """Its side of ICE."""
        ...

    def why_over(self, now: float) -> str | None:
        """The reason for which it should end, or None."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Hub:
    """Connections on one mux. ``clock`` is monotonic seconds."""

    _current: ClassVar["Hub | None"] = None

    def __init__(
        self, settings: HubSettings, keys: KeyRing, mux: Mux, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.certificate = SessionCertificate.generateCertificate()
        self.ticker = Ticker(clock)
        self.effort = Effort(settings.audio.complexity, adaptive=settings.audio.adaptive)
        self._keys = keys
        self._mux = mux
        self._peers: dict[HubPeer, None] = {}
        self._is_closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: str | Path | None = None,
        *,
        state_dir: str | Path | None = None,
        listen: str | None = None,
        audio: AudioSettings | None = None,
    ) -> AsyncIterator["Hub"]:
        """For applications of aiortc: a hub on a socket of its own, which ``RelayedPeerConnection`` finds.

        ``config`` is relayctl's: [fleet] names the VIPs, the cluster and the keys, [transceiver] the address and the relays'
        networks. ``listen`` stands in for transceiver.listen, whose port relayctl's own processes have; its port 0 takes
        any. ``state_dir`` is where keys.json is, if the configuration does not name it. Raises HubError, ConfigError,
        AddressInUseError.
        """
        if Hub._current is not None:
            raise HubError("a hub is open already; a process needs one, for all its connections")
        standalone = open_standalone(config, state_dir, listen)
        mux = Mux(standalone.sock, standalone.relay_networks, time.monotonic)
        settings = HubSettings(
            address=standalone.address,
            vips=standalone.vips,
            cluster_id=standalone.cluster_id,
            audio=audio or AudioSettings(),
        )
        hub = Hub._current = cls(settings, standalone.keys, mux)
        mux.start()
        sweeping = asyncio.create_task(hub.sweep())
        try:
            yield hub
        finally:
            Hub._current = None
            hub._is_closed = True
            sweeping.cancel()
            try:
                await asyncio.gather(sweeping, return_exceptions=True)
                await hub._close_peers()
            finally:
                mux.stop()

    @classmethod
    def current(cls) -> "Hub":
        """The hub that is open in this process. Raises HubError if none is."""
        if Hub._current is None:
            raise HubError(
                "no hub is open: make connections within `async with transceiver.Hub.open(...)`, or name a hub"
            )
        return Hub._current

    async def _close_peers(self) -> None:
        closings = [asyncio.wait_for(peer.close(), _CLOSE_TIMEOUT_S) for peer in list(self._peers)]
        for result in await asyncio.gather(*closings, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.error("a connection did not close", exc_info=result)

    def __len__(self) -> int:
        return len(self._peers)

    # for connections

    def connect(self, peer: HubPeer) -> MuxConnection:
        """A transport for a new connection; no check reaches it before ``expect``."""
        agent = IceLiteAgent(self._new_credential(""), self.clock())
        return MuxConnection(agent, self._mux, self.clock, peer)

    def watch(self, peer: HubPeer) -> bool:
        """Look after a connection, which has its first description; True if it is new, and its consent counts from now.

        One that has none is its application's alone. Raises HubError.
        """
        if self._is_closed:
            raise HubError(
                "the hub of this connection has closed; make another within the block of an open hub"
            )
        if peer in self._peers:
            return False
        self._peers[peer] = None
        peer.agent.expect("", self.clock())
        return True

    def expect(self, peer: HubPeer, client_ufrag: str) -> None:
        """Serve a connection, whose client's description has come."""
        self.watch(peer)
        peer.agent.expect(client_ufrag, self.clock())
        self._mux.add(peer.connection)

    def restart_ice(self, peer: HubPeer, client_ufrag: str) -> Credential:
        """New credentials for an ICE restart (RFC 8445 section 9); the old ones work a while longer."""
        credential = self._new_credential(client_ufrag)
        self._mux.remove_ufrags(peer.agent.restart(credential, self.clock()))
        self._mux.add(peer.connection)
        return credential

    def disconnect(self, peer: HubPeer) -> None:
        """Serve a connection no more."""
        if peer in self._peers:
            del self._peers[peer]
            self._mux.remove(peer.connection)

    # the life of all

    async def sweep(self) -> None:
        """End connections that are over, and old credentials; look how busy we are. Runs until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            now = self.clock()
            self.effort.update(time.thread_time(), now)
            for peer in list(self._peers):
                try:
                    self._sweep_one(peer, now)
                except Exception:  # one connection's trouble must not keep the others from ending
                    logger.exception("a connection could not be looked after")

    def _sweep_one(self, peer: HubPeer, now: float) -> None:
        self._mux.remove_ufrags(peer.agent.expire_credentials(now))
        reason = peer.why_over(now)
        if reason is not None:
            peer.on_over(reason)

    def _new_credential(self, client_ufrag: str) -> Credential:
        hint = RouteHint(
            self.settings.cluster_id,
            self.settings.address,
            int(time.clock_gettime(time.CLOCK_REALTIME)),
            secrets.token_bytes(NONCE_BYTES),
        )
        server_ufrag = seal_ufrag(self._keys, hint)
        return Credential(server_ufrag, derive_ice_pwd(self._keys, server_ufrag), client_ufrag)
