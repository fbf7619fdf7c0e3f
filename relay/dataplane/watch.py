"""Which sockets wake a worker up, and which it looks after by itself.

To have a socket watched costs the kernel something for each packet that comes to it. One that has many at a time is not
watched, but read at each turn, until it was found empty some times.
"""

import selectors
import socket
from collections.abc import Sequence
from typing import Any

# So many packets at once, and more are on their way.
_MANY = 8
# With so many turns without any, none are.
_EMPTY_TURNS = 4


class Watch:
    """``sockets`` are those of packets, in the order in which they are to be read; others are added."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        # And how often they may yet be found empty.
        self._unwatched: dict[socket.socket, int] = {}
        for sock in sockets:
            self.add(sock)

    def add(self, one: Any) -> None:
        """Watch a file object."""
        self._selector.register(one, selectors.EVENT_READ)

    def remove(self, one: Any) -> None:
        """Watch it no longer."""
        self._selector.unregister(one)

    @property
    def is_busy(self) -> bool:
        """Whether there are sockets that are read without being watched."""
        return bool(self._unwatched)

    def wait(self, timeout_s: float) -> tuple[list[socket.socket], set[Any]]:
        """Sockets to be read, and others that are ready. Does not wait while there are sockets that are not watched."""
        ready = {key.fileobj for key, _ in self._selector.select(0.0 if self._unwatched else timeout_s)}
        ready.update(self._unwatched)
        return [sock for sock in self._sockets if sock in ready], ready

    def note(self, sock: socket.socket, packets: int) -> None:
        """How many packets a socket had."""
        if packets >= _MANY:
            if sock not in self._unwatched:
                self.remove(sock)
            self._unwatched[sock] = _EMPTY_TURNS
        elif not packets and sock in self._unwatched:
            self._unwatched[sock] -= 1
            if not self._unwatched[sock]:
                del self._unwatched[sock]
                self.add(sock)
