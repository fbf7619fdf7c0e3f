"""What answers the caller: a backend is attached to each session before its answer is made."""

from collections.abc import Callable
from typing import Protocol

from transceiver.peer import RelayedPeerConnection


class Backend(Protocol):
    """One session's media and events: the two ends of ``peer.voice``, or aiortc's tracks; and data channels."""

    def attach(self, peer: RelayedPeerConnection) -> None:
        """Add an audio section and listen for the client's; called before the offer is applied."""
        ...

    async def close(self) -> None:
        """The session is over: end every task."""
        ...


BackendFactory = Callable[[], Backend]
