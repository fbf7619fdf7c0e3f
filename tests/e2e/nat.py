"""A NAT between clients and the relay: the VIP is the NAT's address, its inner side sends to where the relay listens.

It can change its outer ports (a rebind), lose packets by direction, and tell of what passes.
"""

import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING

from wire.demux import PacketClass, classify
from wire.stun import parse_stun_untrusted

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.05
_SockAddr = tuple[str, int]


class Nat:
    """Runs in a thread of its own. ``passes_up`` and ``passes_down`` decide on each datagram."""

    def __init__(self, vip: _SockAddr, listen: _SockAddr) -> None:
        self.listen = listen
        self._family = socket.AF_INET6 if ":" in vip[0] else socket.AF_INET
        self._inner = self._bind(vip)
        self._outer: dict[_SockAddr, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inner, selectors.EVENT_READ)
        self._ending = False
        self._rebinding = False
        self.checks: list[bytes] = []
        self.delivered_up = 0
        self.passes_up: Callable[[bytes], bool] = lambda datagram: True
        self.passes_down: Callable[[bytes], bool] = lambda datagram: True
        self.media_down_at: dict[_SockAddr, list[float]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Nat":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending = True
        self._thread.join()
        for sock in (self._inner, *self._outer.values()):
            sock.close()
        self._selector.close()

    @property
    def outer_port(self) -> int:
        """The source port that the relay sees of the only client."""
        (outer,) = self._outer.values()
        return int(outer.getsockname()[1])

    def rebind(self) -> None:
        """Take other outer ports, as a NAT does after a time-out or a reboot; the old ones are closed."""
        self._rebinding = True
        while self._rebinding:
            time.sleep(_POLL_S / 10)

    def _bind(self, address: _SockAddr) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        sock.bind(address)
        sock.setblocking(False)
        return sock

    def _outer_of(self, client: _SockAddr) -> socket.socket:
        if client not in self._outer:
            self._outer[client] = self._bind(("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0))
            self._selector.register(self._outer[client], selectors.EVENT_READ, client)
        return self._outer[client]

    def _run(self) -> None:
        while not self._ending:
            if self._rebinding:
                for client in list(self._outer):
                    old = self._outer.pop(client)
                    self._selector.unregister(old)
                    self._outer_of(client)
                    old.close()
                self._rebinding = False
            for key, _ in self._selector.select(_POLL_S):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    datagram, source = sock.recvfrom(4096)
                except BlockingIOError:
                    continue
                if key.data is None:
                    self._carry_up(datagram, source[:2])
                else:
                    self._carry_down(datagram, key.data)

    def _carry_up(self, datagram: bytes, client: _SockAddr) -> None:
        if classify(datagram) is PacketClass.STUN and parse_stun_untrusted(datagram).is_binding_request:
            self.checks.append(datagram)
        if self.passes_up(datagram):
            self.delivered_up += 1
            self._outer_of(client).sendto(datagram, self.listen)

    def _carry_down(self, datagram: bytes, client: _SockAddr) -> None:
        if self.passes_down(datagram):
            if classify(datagram) is PacketClass.RTP:
                self.media_down_at.setdefault(client, []).append(time.monotonic())
            self._inner.sendto(datagram, client)
