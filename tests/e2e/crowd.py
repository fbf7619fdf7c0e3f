"""Thousands of clients and their transceiver in one thread: every packet is numbered, and counted at both ends.

Each client has a socket of its own on the client host, a sealed ufrag of its own, and sends at a steady pace; the
transceiver, a socket on the relay's host or another, sends each packet back.
"""

import os
import resource
import select
import socket
import struct
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from wire.address import Address
from wire.keys import KeyRing
from wire.spp import HEADER_BYTES
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

# RTP's first byte, so that the relay takes it for media; then client and sequence number.
_MEDIA = struct.Struct("!BxxxII")
_SO_RCVBUFFORCE = 33
# At the end: as long a silence shows that nothing is doubled; and, while something is missing, that it is lost.
_SETTLE_S, _MISSING_S = 1.0, 5.0


@dataclass
class Tally:
    """What one direction saw of one client."""

    numbers: set[int] = field(default_factory=set)
    next_number: int = 0
    late: int = 0
    doubled: int = 0
    last_at: float = 0.0
    longest_gap_s: float = 0.0

    def note(self, number: int, now: float) -> None:
        if number in self.numbers:
            self.doubled += 1
        elif number < self.next_number:
            self.late += 1
        else:
            self.next_number = number + 1
        self.numbers.add(number)
        if self.last_at:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
        self.last_at = now

    @property
    def received(self) -> int:
        """Packets that came at least once."""
        return len(self.numbers)


@dataclass
class _Client:
    sock: socket.socket
    check: bytes
    sent: int = 0
    up: Tally = field(default_factory=Tally)
    down: Tally = field(default_factory=Tally)


class Crowd:
    """Runs from ``start`` to ``stop``; ``interval_s`` is each client's pace."""

    def __init__(
        self,
        clients_on: AbstractContextManager[object],
        client_ip: str,
        transceiver_on: AbstractContextManager[object],
        vip: str,
        keys: KeyRing,
        count: int,
        interval_s: float,
        transceiver_ip: str = "127.0.0.1",
    ) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 4096), hard))
        self._interval_s = interval_s
        with transceiver_on:
            self._transceiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._transceiver.bind((transceiver_ip, 0))
        address = Address.from_host(*self._transceiver.getsockname())
        self._transceiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * 1024 * 1024)
        self._transceiver.setblocking(False)
        vip_address = Address.parse(vip)
        self.clients: list[_Client] = []
        self._poll = select.epoll()
        self._poll.register(self._transceiver, select.EPOLLIN)
        issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
        with clients_on:
            for _ in range(count):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((client_ip, 0))
                sock.connect((str(vip_address.ip), vip_address.port))
                sock.setblocking(False)
                ufrag = seal_ufrag(keys, RouteHint(1, address, issued_at, os.urandom(5)))
                check = write_binding_request(
                    os.urandom(12), f"{ufrag}:abcd", derive_ice_pwd(keys, ufrag).encode()
                )
                self.clients.append(_Client(sock, check))
                self._poll.register(sock, select.EPOLLIN)
        self._by_fd = {client.sock.fileno(): client for client in self.clients}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Set up one client after the other within one interval, then have all send at their pace."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending, and wait for what is on its way; again: nothing."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._thread.join()
        for client in self.clients:
            client.sock.close()
        self._transceiver.close()
        self._poll.close()

    def wait_until_flowing(self, timeout_s: float) -> None:
        """Until every client has had a packet back."""
        deadline = time.monotonic() + timeout_s
        while missing := sum(client.down.received == 0 for client in self.clients):
            assert time.monotonic() < deadline, f"{missing} of {len(self.clients)} clients heard nothing"
            time.sleep(0.1)

    def wait_for_more(self, count: int, timeout_s: float) -> None:
        """Until so many packets more than by now have come back to clients."""
        least = count + sum(client.down.received for client in self.clients)
        deadline = time.monotonic() + timeout_s
        while (heard := sum(client.down.received for client in self.clients)) < least:
            assert time.monotonic() < deadline, f"{heard - least + count} of {count} packets came back"
            time.sleep(0.01)

    def report(self) -> dict[str, float]:
        """Packets sent and lost each way, late and doubled ones, and the longest gaps beyond the pace; after ``stop``."""
        sent = sum(client.sent for client in self.clients)
        up = sum(client.up.received for client in self.clients)
        down = sum(client.down.received for client in self.clients)
        return {
            "clients": len(self.clients),
            "sent": sent,
            "lost up": sent - up,
            "lost down": up - down,
            "late": sum(client.up.late + client.down.late for client in self.clients),
            "doubled": sum(client.up.doubled + client.down.doubled for client in self.clients),
            "gap up_ms": self._longest_gap_ms([client.up for client in self.clients]),
            "gap down_ms": self._longest_gap_ms([client.down for client in self.clients]),
        }

    def numbers_lost_up(self) -> list[int]:
        """Whether it was at the start, or in the midst; after ``stop``."""
        return sorted(n for client in self.clients for n in set(range(client.sent)) - client.up.numbers)

    def _longest_gap_ms(self, tallies: list[Tally]) -> float:
        return round((max(tally.longest_gap_s for tally in tallies) - self._interval_s) * 1000, 1)

    def _run(self) -> None:
        count, started, sent = len(self.clients), time.monotonic(), 0
        while not self._ending.is_set():
            due = int((time.monotonic() - started) / self._interval_s * count)
            # Never a burst: a crowd that is late catches up by and by.
            for number in range(sent, min(due, sent + 50)):
                self._send(number % count)
                sent = number + 1
            self._receive(0.001)
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < (_SETTLE_S if self._all_are_back() else _MISSING_S):
            if self._receive(0.05):
                silent_since = time.monotonic()

    def _all_are_back(self) -> bool:
        return all(client.down.received == client.sent for client in self.clients)

    def _send(self, index: int) -> None:
        client = self.clients[index]
        if not client.sent:
            client.sock.send(client.check)
        client.sock.send(_MEDIA.pack(0x80, index, client.sent))
        client.sent += 1

    def _receive(self, timeout_s: float) -> bool:
        """Take what comes; whether something did."""
        events = self._poll.poll(timeout_s)
        for fd, _ in events:
            client = self._by_fd.get(fd)
            if client is None:
                self._reflect()
            else:
                self._take(client)
        return bool(events)

    def _reflect(self) -> None:
        for _ in range(64):
            try:
                datagram, relay = self._transceiver.recvfrom(2048)
            except BlockingIOError:
                return
            if datagram[HEADER_BYTES] == 0x80:
                _, index, number = _MEDIA.unpack_from(datagram, HEADER_BYTES)
                self.clients[index].up.note(number, time.monotonic())
                self._transceiver.sendto(datagram, relay)

    def _take(self, client: _Client) -> None:
        try:
            datagram = client.sock.recv(2048)
        except BlockingIOError:
            return
        _, _, number = _MEDIA.unpack(datagram)
        client.down.note(number, time.monotonic())
