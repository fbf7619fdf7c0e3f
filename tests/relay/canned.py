"""System calls for batches that deliver what a test puts in and keep what is sent: for addresses that loopback lacks.

They read and write ``struct mmsghdr`` as the kernel does (recvmmsg(2)), with the layout written down once more.
"""

import ctypes
import errno
import socket
from collections import defaultdict, deque
from collections.abc import Callable
from struct import pack, unpack_from
from typing import NamedTuple

from relay.dataplane.batches import SystemCalls
from wire.address import Address

MESSAGE_BYTES = 64
# An errno, or 0, for a message to that address.
Refuse = Callable[[Address, list[bytes]], int]


class Sent(NamedTuple):
    """One datagram as it leaves; ``message`` numbers those of a train alike."""

    fd: int
    destination: Address
    datagram: bytes
    message: int


class CannedCalls:
    """``arrived`` by socket: datagram and source, or bytes of a sockaddr. ``refuse`` may name an errno for a message."""

    def __init__(self) -> None:
        self.arrived: dict[int, deque[tuple[bytes, Address | bytes]]] = defaultdict(deque)
        self.sent: list[Sent] = []
        self.refuse: Refuse = lambda destination, datagrams: 0
        self.most_a_call = 1024
        self._messages = 0

    @property
    def system_calls(self) -> SystemCalls:
        """To be given to a data path."""
        return SystemCalls(self._receive, self._send)

    def _receive(self, fd: int, messages: int, count: int) -> int:
        queue = self.arrived[fd]
        if not queue:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        taken = min(count, len(queue))
        for number in range(taken):
            datagram, source = queue.popleft()
            at = messages + number * MESSAGE_BYTES
            name, name_length, iov = unpack_from("QI4xQ", ctypes.string_at(at, 24))
            sockaddr = source if isinstance(source, bytes) else pack_sockaddr(source)
            assert name_length >= len(sockaddr)
            ctypes.memmove(name, sockaddr, len(sockaddr))
            base, room = unpack_from("QQ", ctypes.string_at(iov, 16))
            length = min(room, len(datagram))
            ctypes.memmove(base, datagram, length)
            ctypes.memmove(at + 56, pack("I", length), 4)
        return taken

    def _send(self, fd: int, messages: int, count: int) -> int:
        for number in range(min(count, self.most_a_call)):
            header = ctypes.string_at(messages + number * MESSAGE_BYTES, MESSAGE_BYTES)
            name, name_length, iov, iov_count, control, control_length = unpack_from("QI4xQQQQ", header)
            destination = parse_sockaddr(ctypes.string_at(name, name_length))
            parts = [unpack_from("QQ", ctypes.string_at(iov + i * 16, 16)) for i in range(iov_count)]
            datagrams = [ctypes.string_at(base, length) for base, length in parts]
            if len(datagrams) > 1:
                assert control_length == 24
                segment = check_train(ctypes.string_at(control, control_length), datagrams)
                assert all(len(datagram) == segment for datagram in datagrams[:-1])
            else:
                assert control_length == 0
            error = self.refuse(destination, datagrams)
            if error:
                ctypes.set_errno(error)
                return number or -1
            self.sent += [Sent(fd, destination, datagram, self._messages) for datagram in datagrams]
            self._messages += 1
        return min(count, self.most_a_call)


def check_train(control: bytes, datagrams: list[bytes]) -> int:
    """The segment size of a train that the kernel would take (udp(7), UDP_SEGMENT)."""
    length, level, kind, segment = unpack_from("QiiH", control)
    assert (length, level, kind) == (18, socket.IPPROTO_UDP, 103)
    assert len(datagrams) <= 64
    assert sum(map(len, datagrams)) <= 65_507
    assert len(datagrams[-1]) <= segment
    return int(segment)


def pack_sockaddr(address: Address, *, scope: int = 0) -> bytes:
    """``struct sockaddr_in`` or ``sockaddr_in6``."""
    port = address.port.to_bytes(2, "big")
    if address.family == 4:
        return pack("H", socket.AF_INET) + port + address.host + bytes(8)
    return pack("H", socket.AF_INET6) + port + bytes(4) + address.host + pack("I", scope)


def parse_sockaddr(sockaddr: bytes) -> Address:
    """The inverse of ``pack_sockaddr``."""
    (family,) = unpack_from("H", sockaddr)
    port = int.from_bytes(sockaddr[2:4], "big")
    if family == socket.AF_INET:
        assert len(sockaddr) == 16
        return Address(sockaddr[4:8], port)
    assert (family, len(sockaddr)) == (socket.AF_INET6, 28)
    return Address(sockaddr[8:24], port)
