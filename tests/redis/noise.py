"""What answers on Redis' port and is no Redis: it says whatever it likes, and may never stop."""

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle

_POLL_S = 0.02
_SEND_INTERVAL_S = 0.005
_OK = b"+OK\r\n"

# What is said to each thing heard: name → answer to the bytes heard.
ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "random bytes": lambda heard: os.urandom(512),
    "HTTP": lambda heard: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "yes to everything": lambda heard: _OK * max(1, heard.count(b"*")),
    "integers out of range": lambda heard: b":99999999999999999999999999\r\n",
    "arrays in arrays": lambda heard: b"*1\r\n" * 5000,
    "an array of two thousand million": lambda heard: b"*2147483647\r\n" + b":1\r\n" * 64,
    "a string of 512 MB that comes by and by": lambda heard: b"$536870912\r\n" + bytes(65_536),
    "pushes nobody asked for": lambda heard: b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nx\r\n" * 50,
    "an error for each": lambda heard: b"-NOISE " + os.urandom(8).hex().encode() * 500 + b"\r\n",
    "nothing and then the end": lambda heard: b"",
}
# These go on saying it, whether anybody asks or not.
_ENDLESS = {"a string of 512 MB that comes by and by", "pushes nobody asked for", "random bytes"}


class NoiseServer:
    """Runs in a thread of its own, and says one of ``kinds`` to each connection, in turn.

    said: how many connections were told what.
    """

    def __init__(self, kinds: Iterable[str], host: str = "127.0.0.1") -> None:
        self.said: Counter[str] = Counter()
        self._kinds = cycle(kinds)
        self._listener = socket.create_server((host, 0))
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._clients: dict[socket.socket, str] = {}
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End everything."""
        self._ending = True
        self._thread.join()
        for sock in (self._listener, *self._clients):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ending:
            for key, _ in self._selector.select(_POLL_S):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                else:
                    self._hear(sock)
            if endless := [client for client, kind in self._clients.items() if kind in _ENDLESS]:
                for client in endless:
                    self._answer(client, b"")
                time.sleep(_SEND_INTERVAL_S)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            self._clients[client] = kind = next(self._kinds)
            self.said[kind] += 1
            self._selector.register(client, selectors.EVENT_READ)

    def _hear(self, client: socket.socket) -> None:
        try:
            heard = client.recv(65_536)
        except OSError:
            heard = b""
        if not heard or not ANSWERS[self._clients[client]](heard):
            self._drop(client)
        else:
            self._answer(client, heard)

    def _answer(self, client: socket.socket, heard: bytes) -> None:
        try:
            client.send(ANSWERS[self._clients[client]](heard))
        except BlockingIOError:
            return  # it does not read
        except OSError:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._clients[client]
        client.close()


@contextlib.contextmanager
def noise_server(*kinds: str) -> Iterator[NoiseServer]:
    """For the life of the block; without ``kinds`` it says everything."""
    server = NoiseServer(kinds or ANSWERS)
    try:
        yield server
    finally:
        server.close()
