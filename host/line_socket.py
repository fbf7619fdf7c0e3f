"""The blocking end of a JSON-lines channel: for workers, which have no event loop, and for the command line."""

import itertools
import socket
from collections import deque
from typing import Any

from host.channel import ChannelError
from wire.admin import LineReader, Message, encode_message
from wire.errors import WireError

_RECEIVE_BYTES = 65_536
# What a supervisor that does not read may cost a worker; events beyond it are lost, packets are not.
_MAX_UNSENT_BYTES = 1024 * 1024


class LineSocket:
    """Messages over a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = LineReader()
        self._unsent = b""
        self._received: deque[Message] = deque()
        self._ids = itertools.count(1)

    def fileno(self) -> int:
        """For selectors."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def receive(self) -> list[Message] | None:
        """Messages that have arrived, or None when the other side is gone. Raises WireError."""
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        return self._reader.feed(data) if data else None

    def receive_one(self) -> Message | None:
        """The next message, or None when the other side is gone; the socket must be blocking. Raises WireError."""
        while not self._received:
            messages = self.receive()
            if messages is None:
                return None
            self._received.extend(messages)
        return self._received.popleft()

    def send(self, message: Message) -> None:
        """Send without waiting; what the socket does not take now goes with ``flush``."""
        if len(self._unsent) < _MAX_UNSENT_BYTES:
            self._unsent += encode_message(message)
        self.flush()

    def flush(self) -> None:
        """Send what is left over. Does nothing if the other side is gone: ``receive`` tells."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except (BlockingIOError, ConnectionError):
            return

    def request(self, method: str, **params: Any) -> Any:
        """The result of a method on the other side; the socket must be blocking. Raises ChannelError."""
        request_id = next(self._ids)
        try:
            self._sock.sendall(encode_message({"id": request_id, "method": method, "params": params}))
            while (message := self.receive_one()) is not None:
                if message.get("id") == request_id:
                    if "error" in message:
                        raise ChannelError(str(message["error"]))
                    return message.get("result")
        except TimeoutError:
            raise ChannelError(f"no answer to {method!r} in time") from None
        except WireError as error:
            raise ChannelError(
                f"{method!r} was answered with something else than our protocol ({error})"
            ) from None
        except ConnectionError as error:
            raise ChannelError(f"lost the connection ({error.strerror})") from None
        raise ChannelError("the other side closed the connection")
