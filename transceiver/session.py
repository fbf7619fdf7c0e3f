"""One call: its connection, its backend, its name in signaling, and how it ends."""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiortc import RTCSessionDescription

from transceiver.backend import Backend
from transceiver.hub import Hub
from transceiver.ice import Credential, IceLiteAgent
from transceiver.offer import Described, OfferError
from transceiver.peer import RelayedPeerConnection

logger = logging.getLogger(__name__)

# Closing waits for aiortc's tasks; none of them needs long.
_CLOSE_TIMEOUT_S = 5.0


class Session:
    """Made for an offer, whose first section is ``mid``; ``on_end`` hears why it ends by itself."""

    def __init__(
        self,
        session_id: bytes,
        hub: Hub,
        backend: Backend,
        on_end: Callable[["Session", str], object],
        mid: str,
    ) -> None:
        self.session_id = session_id
        self.mid = mid
        self.etag = new_etag()
        self.peer = RelayedPeerConnection(hub=hub)
        self.peer.on_over = lambda reason: on_end(self, reason)
        self._hub = hub
        self._backend = backend
        self._on_end = on_end
        self.peer.on("connectionstatechange", self._state_changed)
        backend.attach(self.peer)

    @property
    def agent(self) -> IceLiteAgent:
        """Its side of ICE."""
        return self.peer.agent

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, by reason."""
        return self.peer.counters

    @property
    def phases(self) -> dict[str, float]:
        """Seconds since its making: answered, latched, connected, first_audio."""
        return self.peer.phases

    async def answer(self, offer: str, described: Described) -> str:
        """Apply a checked offer and return the SDP answer. Raises OfferError."""
        try:
            await self.peer.apply(RTCSessionDescription(sdp=offer, type="offer"), described)
            self._silence_video()
            await self.peer.setLocalDescription(await self.peer.createAnswer())
        except Exception as error:  # aiortc raises whatever a strange offer makes it trip over
            raise OfferError(422, f"offer cannot be answered ({type(error).__name__}: {error})") from error
        return str(self.peer.localDescription.sdp)

    def restart_ice(self, client_ufrag: str) -> Credential:
        """Take new credentials and a new ETag."""
        self.etag = new_etag()
        return self._hub.restart_ice(self.peer, client_ufrag)

    async def close(self) -> None:
        """End the call: DTLS says goodbye to the client, then every task ends."""
        self.peer.remove_all_listeners()
        try:
            await self._backend.close()
        except Exception:  # the client is to hear of the end all the same
            logger.exception("the backend of a session failed to close")
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.peer.close(), _CLOSE_TIMEOUT_S)

    @property
    def is_connected(self) -> bool:
        """Whether DTLS is done and the call runs."""
        return bool(self.peer.connectionState == "connected")

    def describe(self) -> dict[str, Any]:
        """State for ``sessions``."""
        return {"session": self.session_id.hex(), **self.peer.describe()}

    def _silence_video(self) -> None:
        """Answer video, and audio beyond the first section, inactive: this is a voice service."""
        for transceiver in self.peer.getTransceivers()[1:]:
            transceiver.direction = "inactive"

    def _state_changed(self) -> None:
        state = self.peer.connectionState
        if state in ("closed", "failed"):
            self._on_end(self, f"peer connection {state}")


def new_etag() -> str:
    """A strong entity tag (RFC 9110 section 8.8.3), without its quotes."""
    return secrets.token_hex(8)
