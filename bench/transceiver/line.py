"""How callers' datagrams reach a transceiver: with SPP, as a relay sends them, or plainly from socket to socket.

One socket has all calls. Behind SPP a call has a client address of its own; plainly it is told by the socket that the
other side made for it.
"""

import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

from wire.address import Address
from wire.spp import HEADER_BYTES, encode_header

SockAddr = tuple[str, int]
# An SPP header, or the other side's socket.
Key = bytes | SockAddr

_SO_RCVBUFFORCE, _SO_MEMINFO, _DROPS = 33, 55, 8  # asm-generic/socket.h; linux/sock_diag.h
_BUFFER_BYTES = 64 * 1024 * 1024
# RFC 2544's network: addresses of nobody.
_FIRST_CLIENT = Address.parse("198.18.0.1:40000")
_CLIENTS_A_HOST = 1000


class Line(ABC):
    """A socket and what of a datagram is the call's."""

    def __init__(self, ip: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.sock.bind((ip, 0))
        self.sock.setblocking(False)
        self.header_bytes = 0

    def own_drops(self) -> int:
        """Datagrams that our own socket had no room for."""
        info = self.sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
        return int(struct.unpack_from("=I", info, 4 * _DROPS)[0])

    @abstractmethod
    def header(self, index: int) -> bytes:
        """What goes in front of each datagram of a call."""

    @abstractmethod
    def key(self, datagram: bytes, source: SockAddr) -> Key:
        """By what a received datagram's call is known."""

    @abstractmethod
    def offered(self) -> Sequence[str]:
        """Lines of the offer that say how we are reached."""


class SppLine(Line):
    """We are relay and clients of one transceiver."""

    def __init__(self, transceiver: SockAddr, vip: Address) -> None:
        super().__init__("127.0.0.1")
        self.header_bytes = HEADER_BYTES
        self.transceiver = transceiver
        self._vip = vip

    def header(self, index: int) -> bytes:
        """SPP's."""
        host = int.from_bytes(_FIRST_CLIENT.host, "big") + index // _CLIENTS_A_HOST
        client = Address(host.to_bytes(4, "big"), _FIRST_CLIENT.port + index % _CLIENTS_A_HOST)
        return encode_header(client, self._vip)

    def key(self, datagram: bytes, source: SockAddr) -> Key:
        """SPP's header, which names the client both ways."""
        return datagram[:HEADER_BYTES]

    def offered(self) -> Sequence[str]:
        """Nothing: a lite agent looks at no candidates."""
        return ()


class PlainLine(Line):
    """We are an ICE-lite agent with one candidate."""

    def header(self, index: int) -> bytes:
        """None."""
        return b""

    def key(self, datagram: bytes, source: SockAddr) -> Key:
        """The other side's socket."""
        return source

    def offered(self) -> Sequence[str]:
        """Our candidate."""
        ip, port = self.sock.getsockname()
        return (f"a=candidate:1 1 udp 2130706431 {ip} {port} typ host", "a=end-of-candidates")
