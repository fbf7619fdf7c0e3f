"""What answers the caller: a backend is attached to each session before its answer is made."""

from collections.abc import Callable
from typing import Protocol

from aiortc import RTCPeerConnection


class Backend(Protocol):
    """One session's media and events. aiortc's objects are the interface: tracks and data channels."""

    def attach(self, peer: RTCPeerConnection) -> None:
        """Add tracks and listen for the client's; called before the offer is applied."""
        ...

    async def close(self) -> None:
        """The session is over: end every task."""
        ...


BackendFactory = Callable[[], Backend]
