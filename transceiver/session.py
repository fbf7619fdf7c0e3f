"""One call: its peer connection, its ICE agent, its backend, and how it ends."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiortc import RTCCertificate, RTCSessionDescription

from transceiver.backend import Backend
from transceiver.ice import CONSENT_S, Credential, IceLiteAgent, Path
from transceiver.mux import Mux
from transceiver.offer import OfferError
from transceiver.peer import MuxConnection, RelayedPeerConnection
from wire.address import Address

logger = logging.getLogger(__name__)

# Closing waits for aiortc's tasks; none of them needs long.
_CLOSE_TIMEOUT_S = 5.0


class Session:
    """Made by the hub for an offer, whose first section is ``mid``.

    ``phases`` holds seconds since its making (answered, latched, connected).
    """

    def __init__(
        self,
        *,
        session_id: bytes,
        credential: Credential,
        certificate: RTCCertificate,
        vips: tuple[Address, ...],
        mux: Mux,
        backend: Backend,
        clock: Callable[[], float],
        on_end: Callable[["Session", str], object],
        mid: str,
    ) -> None:
        self.session_id = session_id
        self.mid = mid
        self.etag = new_etag()
        self.counters: Counter[str] = Counter()
        self.phases: dict[str, float] = {}
        self.created_at = clock()
        self.agent = IceLiteAgent(credential, self.created_at)
        self._clock = clock
        self._backend = backend
        self._on_end = on_end
        self._connection = MuxConnection(self.agent, mux, clock, self)
        self._peer = RelayedPeerConnection(self._connection, certificate, vips, self)
        self._peer.on("connectionstatechange", self._state_changed)
        backend.attach(self._peer)

    async def answer(self, offer: str) -> str:
        """Apply a checked offer and return the SDP answer. Raises OfferError."""
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
            self._silence_video()
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:  # aiortc raises whatever a strange offer makes it trip over
            raise OfferError(422, f"offer cannot be answered ({type(error).__name__}: {error})") from error
        self._note_phase("answered")
        return str(self._peer.localDescription.sdp)

    def restart_ice(self, credential: Credential) -> list[str]:
        """Take new credentials and a new ETag; returns ufrags that are over."""
        self.etag = new_etag()
        return self.agent.restart(credential, self._clock())

    async def close(self) -> None:
        """End the call: DTLS says goodbye to the client, then every task ends."""
        self._peer.remove_all_listeners()
        await self._backend.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._peer.close(), _CLOSE_TIMEOUT_S)

    def path_validated(self) -> None:
        """See MuxEndpoint."""
        self._note_phase("latched")
        self._connection.latch()

    def datagram_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        """See MuxEndpoint."""
        self._connection.deliver(datagram, path, relay)

    def count(self, outcome: str) -> None:
        """See PeerObserver."""
        self.counters[outcome] += 1

    @property
    def is_connected(self) -> bool:
        """Whether DTLS is done and the call runs."""
        return bool(self._peer.connectionState == "connected")

    def is_overdue(self, now: float) -> bool:
        """Whether the client checks but never completed DTLS."""
        return not self.agent.handshake_done and now - self.created_at >= CONSENT_S

    @property
    def is_flooded(self) -> bool:
        """Whether the client sent more SCTP data than it was allowed to; aiortc would go on to store it."""
        sctp = self._peer.sctp
        return sctp is not None and sctp._advertised_rwnd < 0

    def describe(self) -> dict[str, Any]:
        """State for ``status``."""
        selected = self.agent.selected
        return {
            "session": self.session_id.hex(),
            "state": self._peer.connectionState,
            "age_s": round(self._clock() - self.created_at, 1),
            "server_ufrag": self.agent.credential.server_ufrag,
            "client": str(selected.client) if selected else None,
            "vip": str(selected.vip) if selected else None,
            "paths": len(self.agent.paths),
            "moves": self.agent.moves,
            "longest_gap_ms": round(self.agent.longest_gap_s * 1000, 1),
            "phases_s": self.phases,
            "counters": dict(self.counters),
        }

    def _silence_video(self) -> None:
        """Answer video, and audio beyond the first section, inactive: this is a voice service."""
        for transceiver in self._peer.getTransceivers()[1:]:
            transceiver.direction = "inactive"

    def _note_phase(self, phase: str) -> None:
        self.phases.setdefault(phase, round(self._clock() - self.created_at, 4))

    def _state_changed(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._note_phase("connected")
        elif state in ("closed", "failed"):
            self._on_end(self, f"peer connection {state}")


def new_etag() -> str:
    """A strong entity tag (RFC 9110 section 8.8.3), without its quotes."""
    return secrets.token_hex(8)
