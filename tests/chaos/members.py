"""Clients and transceivers of a test's own: plain sockets that one thread moves, and counts at.

A transceiver has the sessions whose checks it answered; it sends media back, and confirms by a bare SPP header that it has a
session on the path that a bare header asks for. Everything else that reaches it is counted by path: client and VIP.
"""

import contextlib
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from wire.address import Address
from wire.keys import KeyRing
from wire.spp import HEADER_BYTES, SppHeader, decode_header_untrusted
from wire.stun import parse_stun_untrusted, write_binding_request, write_binding_success
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag, ufrag_tag

_REQUEST = b"\x00\x01"
_RTP, _DTLS = 0x80, 0x17
_PACKET_BYTES = 120
_PACE_S = 0.02


@dataclass
class Transceiver:
    """A socket. ``payload``: bytes of packets by path; ``questions``: bare headers by path."""

    sock: socket.socket
    address: Address
    sessions: set[SppHeader] = field(default_factory=set)
    payload: Counter[SppHeader] = field(default_factory=Counter)
    questions: Counter[SppHeader] = field(default_factory=Counter)
    first_at: dict[SppHeader, float] = field(default_factory=dict)

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self.payload.clear()
        self.questions.clear()
        self.first_at.clear()


@dataclass
class Client:
    """A socket with a session at one transceiver. ``came``: packets that were sent back."""

    name: str
    sock: socket.socket
    path: SppHeader
    transceiver: Transceiver
    ufrag: str
    sent: int = 0
    came: int = 0
    first_sent_at: float = 0.0

    @property
    def tag(self) -> str:
        """Of its ufrag, as flows keep it."""
        return ufrag_tag(self.ufrag)


class Members:
    """See the top of this file; nothing moves but in ``run``."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._poll = select.epoll()
        self._transceivers: dict[int, Transceiver] = {}
        self._clients: dict[int, Client] = {}

    def add_transceiver(self) -> Transceiver:
        """One on loopback."""
        sock = self._bind("127.0.0.1")
        made = Transceiver(sock, Address.from_host(*sock.getsockname()))
        self._transceivers[sock.fileno()] = made
        return made

    def add_client(self, name: str, client: Address, vip: Address, transceiver: Transceiver) -> Client:
        """One whose ufrag names the transceiver; the session is not set up yet. Port 0 is any, also one that another VIP's client has."""
        sock = self._bind(str(client.ip), client.port)
        sock.connect((str(vip.ip), vip.port))
        path = SppHeader(Address.from_host(*sock.getsockname()), vip)
        made = Client(name, sock, path, transceiver, "")
        self.lead(made, transceiver)
        self._clients[sock.fileno()] = made
        return made

    def lead(self, client: Client, transceiver: Transceiver) -> None:
        """Give it a new session, at that transceiver; it is not set up yet."""
        issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
        client.transceiver = transceiver
        client.ufrag = seal_ufrag(self._keys, RouteHint(1, transceiver.address, issued_at, os.urandom(5)))

    def check(self, client: Client) -> None:
        """Send a STUN check."""
        ice_pwd = derive_ice_pwd(self._keys, client.ufrag).encode()
        client.sock.send(write_binding_request(os.urandom(12), f"{client.ufrag}:abcd", ice_pwd))

    def run(self, seconds: float, senders: Iterable[Client] = ()) -> None:
        """Move packets for so long; ``senders`` send media, each at 50 packets/s."""
        senders, until = list(senders), time.monotonic() + seconds
        next_at = time.monotonic()
        while (now := time.monotonic()) < until:
            if now >= next_at:
                next_at += _PACE_S
                for client in senders:
                    self._send(client, now)
            for fd, _ in self._poll.poll(0.002):
                if fd in self._clients:
                    self._take_down(self._clients[fd])
                else:
                    self._take_up(self._transceivers[fd])

    def close(self) -> None:
        """Close every socket."""
        for client in self._clients.values():
            client.sock.close()
        for transceiver in self._transceivers.values():
            transceiver.sock.close()
        self._poll.close()

    def _bind(self, ip: str, port: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        self._poll.register(sock, select.EPOLLIN)
        return sock

    def _send(self, client: Client, now: float) -> None:
        client.first_sent_at = client.first_sent_at or now
        first = _DTLS if client.sent % 10 == 9 else _RTP
        # Refused: the relay is not there, and the kernel says so.
        with contextlib.suppress(ConnectionRefusedError):
            client.sock.send(bytes((first,)) + client.sent.to_bytes(4, "big").ljust(_PACKET_BYTES, b"\0"))
        client.sent += 1

    def _take_down(self, client: Client) -> None:
        try:
            data = client.sock.recv(2048)
        except OSError:  # an ICMP error
            return
        client.came += data[0] in (_RTP, _DTLS)

    def _take_up(self, transceiver: Transceiver) -> None:
        datagram, relay = transceiver.sock.recvfrom(2048)
        header, data = datagram[:HEADER_BYTES], datagram[HEADER_BYTES:]
        path = decode_header_untrusted(header)
        if not data:
            transceiver.questions[path] += 1
            if path in transceiver.sessions:
                transceiver.sock.sendto(header, relay)
            return
        transceiver.payload[path] += len(data)
        transceiver.first_at.setdefault(path, time.monotonic())
        if data[:2] == _REQUEST:
            message = parse_stun_untrusted(data)
            ice_pwd = derive_ice_pwd(self._keys, message.ufrags_untrusted[0]).encode()
            transceiver.sessions.add(path)
            data = write_binding_success(message.transaction_id, path.client, ice_pwd)
        transceiver.sock.sendto(header + data, relay)
