"""The sessions that signaling makes in one transceiver process: limits, draining, ends."""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transceiver.backend import BackendFactory
from transceiver.hub import Hub
from transceiver.ice import Credential
from transceiver.load_board import PUBLISH_INTERVAL_S, Load
from transceiver.memory import WORTH_IT, return_memory
from transceiver.mux import Mux
from transceiver.offer import OfferError, check_offer_untrusted
from transceiver.overload import Gauge, Limits, Overload, Usage, read_usage
from transceiver.session import Session
from wire.address import Address
from wire.session_token import SESSION_ID_BYTES, SessionToken

logger = logging.getLogger(__name__)


class SessionsFullError(Exception):
    """No room, or draining; the client should try again elsewhere or later."""


class NoSuchSessionError(Exception):
    """The session is over, or never was."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """internal_http: where other processes pass signaling on to. max_sessions, limits: over them new ones are refused."""

    internal_http: Address
    max_sessions: int
    limits: Limits = field(default_factory=Limits)


class Sessions:
    """Sessions by id, on one hub."""

    def __init__(
        self,
        settings: SessionSettings,
        hub: Hub,
        mux: Mux,
        make_backend: BackendFactory,
        publish: Callable[[Load], None] = lambda load: None,
        is_admitted: Callable[[], bool] = lambda: True,
        read_usage: Callable[[], Usage] = read_usage,
    ) -> None:
        """``publish`` tells the other processes of our load; ``is_admitted`` asks whether new sessions are wanted.

        ``read_usage`` looks at this process.
        """
        self.settings = settings
        self.hub = hub
        self.gauge = Gauge(settings.limits)
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._read_usage = read_usage
        self._draining = False
        self._mux = mux
        self._make_backend = make_backend
        self._publish = publish
        self._is_admitted = is_admitted
        self._sessions: dict[bytes, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._left_behind = 0  # sessions since memory was returned

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

    @property
    def load(self) -> Load:
        """What the other processes are told."""
        limit = 0 if self._draining else self.settings.max_sessions
        return Load(len(self._sessions), self._count_connected(), limit, self.gauge.overload)

    def publish_load(self) -> None:
        """Look at what this process uses; tell the others how many sessions we have and take, and that we live."""
        before, load = self.gauge.overload, self.load
        self.gauge.update(self._read_usage(), load.sessions - load.connected, self.hub.clock())
        if self.gauge.overload and not before:
            logger.warning("no new sessions: %s", self.gauge)
        elif before and not self.gauge.overload:
            logger.info("new sessions again: %s", self.gauge)
        self._publish(load._replace(overload=self.gauge.overload))

    def note_refused(self) -> None:
        """A client was sent away (503), as neither we nor others took its call; counted by what kept us from it."""
        self.refused["draining" if self.draining else self.load.full or "others"] += 1

    async def keep_publishing(self) -> None:
        """Tell it also while nothing changes; runs until cancelled."""
        while True:
            self.publish_load()
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    async def create(self, offer: str) -> tuple[Session, str]:
        """A session and its SDP answer. Raises OfferError or SessionsFullError."""
        if self.draining:
            raise SessionsFullError("this transceiver is draining")
        if len(self._sessions) >= self.settings.max_sessions:
            raise SessionsFullError(f"this transceiver has its {self.settings.max_sessions} sessions")
        if self.gauge.overload:
            lacking = "memory" if self.gauge.overload is Overload.MEMORY else "CPU time"
            raise SessionsFullError(f"this transceiver has no {lacking} for another session")
        described = check_offer_untrusted(offer)
        session = Session(
            secrets.token_bytes(SESSION_ID_BYTES), self.hub, self._make_backend(), self._end, described.mid
        )
        self._sessions[session.session_id] = session
        self.publish_load()
        try:
            sdp = await session.answer(offer, described)
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
        return session.restart_ice(client_ufrag)

    async def close(self, session: Session, reason: str) -> None:
        """End a session and wait until it has ended."""
        closing = self._end(session, reason)
        if closing is not None:
            await asyncio.wait({closing})

    async def kick(self, session_ids: Sequence[bytes], why: str) -> list[bytes]:
        """End those by an operator's word, for which ``why`` goes to the log; returns those that there were."""
        kicked = [self._sessions[session_id] for session_id in session_ids if session_id in self._sessions]
        closing = [task for session in kicked if (task := self._end(session, "kicked", why)) is not None]
        if closing:
            await asyncio.wait(closing)
        return [session.session_id for session in kicked]

    async def close_all(self, reason: str) -> None:
        """End every session."""
        for session in list(self._sessions.values()):
            self._end(session, reason)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def describe(self) -> dict[str, Any]:
        """Counts for ``status``."""
        return {
            "address": str(self.hub.settings.address),
            "draining": self.draining,
            "sessions": len(self._sessions),
            "connected": self._count_connected(),
            "max_sessions": self.settings.max_sessions,
            "full": self.load.full,
            "rss_bytes": self.gauge.rss_bytes,
            "max_memory_bytes": self.gauge.limits.memory_bytes,
            "cpu": round(self.gauge.cpu, 4),
            "max_cpu": self.gauge.limits.cpu,
            "ended": dict(self.ended),
            "refused": dict(self.refused),
            "datagrams": dict(self._mux.counters),
        }

    @property
    def ids(self) -> list[bytes]:
        """Of all sessions."""
        return list(self._sessions)

    def describe_sessions(self) -> list[dict[str, Any]]:
        """One entry a session."""
        return [session.describe() for session in self._sessions.values()]

    def _count_connected(self) -> int:
        return sum(session.is_connected for session in self._sessions.values())

    def _end(self, session: Session, reason: str, why: str = "") -> asyncio.Task[None] | None:
        if self._sessions.pop(session.session_id, None) is None:
            return None
        self.hub.disconnect(session.peer)
        self.publish_load()
        self.ended[reason] += 1
        # Somebody's own words are quoted: they must not look like a line of ours.
        told = f"{reason} ({why!r})" if why else reason
        logger.info("session %s ended: %s", session.session_id.hex(), told)
        task = asyncio.create_task(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closed)
        return task

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._left_behind += 1
        if not self._sessions and not self._closing and self._left_behind >= WORTH_IT:
            # Nobody is in a call whom the pause would hurt.
            self._left_behind = 0
            return_memory()
        if not task.cancelled() and task.exception() is not None:
            logger.error("a session did not close cleanly", exc_info=task.exception())
