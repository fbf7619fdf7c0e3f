"""Every session of one transceiver process: made, found, swept, ended."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transceiver.backend import BackendFactory
from transceiver.ice import Credential
from transceiver.load_board import PUBLISH_INTERVAL_S, Load
from transceiver.mux import Mux
from transceiver.offer import OfferError, check_offer_untrusted
from transceiver.peer import SessionCertificate
from transceiver.session import Session
from wire.address import Address
from wire.keys import KeyRing
from wire.session_token import SESSION_ID_BYTES, SessionToken
from wire.ufrag import NONCE_BYTES, RouteHint, derive_ice_pwd, seal_ufrag

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 1.0


class HubFullError(Exception):
    """No room, or draining; the client should try again elsewhere or later."""


class NoSuchSessionError(Exception):
    """The session is over, or never was."""


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What the sessions of one process share.

    address: of the mux's socket, as hints name it. internal_http: where other processes pass signaling on to.
    vips: what clients are told. max_sessions: over it new ones are refused.
    """

    address: Address
    internal_http: Address
    vips: tuple[Address, ...]
    cluster_id: int
    max_sessions: int


class Hub:
    """Sessions by id. ``clock`` is monotonic seconds."""

    def __init__(
        self,
        settings: HubSettings,
        keys: KeyRing,
        mux: Mux,
        make_backend: BackendFactory,
        clock: Callable[[], float] = time.monotonic,
        publish: Callable[[Load], None] = lambda load: None,
        is_admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        """``publish`` tells the other processes of our load; ``is_admitted`` asks whether new sessions are wanted."""
        self.settings = settings
        self._draining = False
        self._publish = publish
        self._is_admitted = is_admitted
        self.ended: Counter[str] = Counter()
        self._keys = keys
        self._mux = mux
        self._make_backend = make_backend
        self._clock = clock
        self._certificate = SessionCertificate.generateCertificate()
        self._sessions: dict[bytes, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def draining(self) -> bool:
        """Whether new sessions are refused while the old ones go on."""
        return self._draining or not self._is_admitted()

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self.publish_load()

    def publish_load(self) -> None:
        """Tell the other processes how many sessions we have and take, and that we live."""
        limit = 0 if self._draining else self.settings.max_sessions
        self._publish(Load(len(self._sessions), self._count_connected(), limit))

    async def keep_publishing(self) -> None:
        """Tell it also while nothing changes; runs until cancelled."""
        while True:
            self.publish_load()
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    async def create(self, offer: str) -> tuple[Session, str]:
        """A session and its SDP answer. Raises OfferError or HubFullError."""
        if self.draining:
            raise HubFullError("this transceiver is draining")
        if len(self._sessions) >= self.settings.max_sessions:
            raise HubFullError(f"this transceiver has its {self.settings.max_sessions} sessions")
        mid, client_ufrag = check_offer_untrusted(offer)
        session = Session(
            session_id=secrets.token_bytes(SESSION_ID_BYTES),
            credential=self._new_credential(client_ufrag),
            certificate=self._certificate,
            vips=self.settings.vips,
            mux=self._mux,
            backend=self._make_backend(),
            clock=self._clock,
            on_end=self._end,
            mid=mid,
        )
        self._sessions[session.session_id] = session
        self.publish_load()
        self._mux.add(session)
        try:
            sdp = await session.answer(offer)
            logger.info("session %s answered", session.session_id.hex())
            return session, sdp
        except OfferError:
            self._end(session, "offer refused")
            raise

    def get(self, session_id: bytes) -> Session:
        """Raises NoSuchSessionError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise NoSuchSessionError("no such session; it has ended")
        return session

    def token(self, session: Session) -> SessionToken:
        """What the session's resource URL names."""
        return SessionToken(self.settings.internal_http, session.session_id)

    def restart_ice(self, session: Session, client_ufrag: str) -> Credential:
        """New credentials for an ICE restart (RFC 8445 section 9)."""
        credential = self._new_credential(client_ufrag)
        self._mux.remove_ufrags(session.restart_ice(credential))
        self._mux.add(session)
        return credential

    async def close(self, session: Session, reason: str) -> None:
        """End a session and wait until it has ended."""
        closing = self._end(session, reason)
        if closing is not None:
            await asyncio.wait({closing})

    async def close_all(self, reason: str) -> None:
        """End every session."""
        for session in list(self._sessions.values()):
            self._end(session, reason)
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def sweep(self) -> None:
        """End sessions whose consent is gone, and old credentials; runs until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            now = self._clock()
            for session in list(self._sessions.values()):
                self._mux.remove_ufrags(session.agent.expire_credentials(now))
                if session.agent.is_expired(now):
                    self._end(session, "consent expired")
                elif session.is_overdue(now):
                    self._end(session, "never connected")
                elif session.is_flooded:
                    self._end(session, "data channel flooded")

    def describe(self) -> dict[str, Any]:
        """Counts for ``status``."""
        return {
            "address": str(self.settings.address),
            "draining": self.draining,
            "sessions": len(self._sessions),
            "connected": self._count_connected(),
            "max_sessions": self.settings.max_sessions,
            "ended": dict(self.ended),
            "datagrams": dict(self._mux.counters),
        }

    def describe_sessions(self) -> list[dict[str, Any]]:
        """One entry a session."""
        return [session.describe() for session in self._sessions.values()]

    def _count_connected(self) -> int:
        return sum(session.is_connected for session in self._sessions.values())

    def _new_credential(self, client_ufrag: str) -> Credential:
        hint = RouteHint(
            self.settings.cluster_id,
            self.settings.address,
            int(time.clock_gettime(time.CLOCK_REALTIME)),
            secrets.token_bytes(NONCE_BYTES),
        )
        server_ufrag = seal_ufrag(self._keys, hint)
        return Credential(server_ufrag, derive_ice_pwd(self._keys, server_ufrag), client_ufrag)

    def _end(self, session: Session, reason: str) -> asyncio.Task[None] | None:
        if self._sessions.pop(session.session_id, None) is None:
            return None
        self.publish_load()
        self.ended[reason] += 1
        self._mux.remove(session)
        logger.info("session %s ended: %s", session.session_id.hex(), reason)
        task = asyncio.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closed)
        return task

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a session did not close cleanly", exc_info=task.exception())
