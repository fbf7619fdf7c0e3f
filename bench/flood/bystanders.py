"""Who else is there during a flood: the transceiver that the attackers' ufrags name, and clients that want to begin a call."""

import selectors
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.topology import Host
from wire.address import Address
from wire.spp import HEADER_BYTES
from wire.stun import MAGIC_COOKIE

_POLL_S = 0.05
_BUFFER_BYTES = 64 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BINDING_REQUEST, _BINDING_SUCCESS = b"\x00\x01", 0x0101
_STUN_HEADER = struct.Struct("!HHI12s")
# RFC 8445 section 14.3: the first is sent again after this time, and so on after twice the time before.
_FIRST_RETRY_S = 0.05


class Bystander(ABC):
    """A thread for the life of a ``with`` block."""

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._close()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does until ``_ending`` is set."""

    @abstractmethod
    def _close(self) -> None:
        """Called when the thread has ended."""


class AttackedTransceiver(Bystander):
    """Counts requests and answers each, as a transceiver answers whoever knows its session's password.

    It is none of the calls' own, so what it cannot take is not their loss. Its answers are bare: the relay reads none.
    """

    def __init__(self, host: Host, address: Address) -> None:
        super().__init__()
        self.requests = 0
        with host:
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._sock.settimeout(_POLL_S)
        self._sock.bind((str(address.ip), address.port))

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                datagram, relay = self._sock.recvfrom(2048)
            except TimeoutError:
                continue
            if datagram[HEADER_BYTES : HEADER_BYTES + 2] == _BINDING_REQUEST:
                self.requests += 1
                transaction = datagram[HEADER_BYTES + 8 : HEADER_BYTES + 20]
                answer = _STUN_HEADER.pack(_BINDING_SUCCESS, 0, MAGIC_COOKIE, transaction)
                self._sock.sendto(datagram[:HEADER_BYTES] + answer, relay)

    def _close(self) -> None:
        self._sock.close()


@dataclass
class _Newcomer:
    sock: socket.socket
    check: bytes
    begins_at: float
    retry_s: float = _FIRST_RETRY_S
    next_at: float = 0.0
    answered_at: float | None = None


class Newcomers(Bystander):
    """Clients with a first check each, one after the other; each sends it until it is answered."""

    def __init__(self, host: Host, vip: Address, checks: Mapping[Address, bytes], interval_s: float) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self._newcomers: list[_Newcomer] = []
        began = time.monotonic()
        for number, (client, check) in enumerate(checks.items()):
            with host:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.bind((str(client.ip), client.port))
            sock.connect((str(vip.ip), vip.port))
            begins_at = began + number * interval_s
            newcomer = _Newcomer(sock, check, begins_at, next_at=begins_at)
            self._newcomers.append(newcomer)
            self._selector.register(sock, selectors.EVENT_READ, newcomer)

    def waited_s(self) -> list[float | None]:
        """How long each waited for its first answer, None for those that had none; of those that have begun."""
        now = time.monotonic()
        return [
            round(one.answered_at - one.begins_at, 4) if one.answered_at else None
            for one in self._newcomers
            if one.begins_at <= now
        ]

    def _run(self) -> None:
        while not self._ending.is_set():
            now = time.monotonic()
            for one in self._newcomers:
                if one.answered_at is None and one.next_at <= now:
                    one.sock.send(one.check)
                    one.next_at, one.retry_s = now + one.retry_s, 2 * one.retry_s
            for key, _ in self._selector.select(0.005):
                newcomer: _Newcomer = key.data
                newcomer.sock.recv(2048)
                newcomer.answered_at = newcomer.answered_at or time.monotonic()

    def _close(self) -> None:
        self._selector.close()
        for one in self._newcomers:
            one.sock.close()
