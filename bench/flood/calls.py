"""Calls as a relay sees them, and nothing more: plain sockets, numbered packets both ways, consent checks that are answered.

One thread has both ends, so what was sent and what came is compared in one place. A process of its own: the job is a line
on standard input, ``{"flowing": …}`` is said once every flow has carried packets both ways, and then each line
``{"spans": [[begin, end], …]}`` (monotonic seconds) is answered with what became of the packets that were sent then. It
ends with standard input.

Packets of a flow and direction are numbered in one sequence, whatever their class; checks have a sequence of their own, as
a relay may take STUN and media by different sockets.
"""

import json
import os
import resource
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import netns

from bench.flood.lanes import Lane, count
from host.keystore import load_keys
from wire.address import Address
from wire.errors import WireError
from wire.spp import HEADER_BYTES, decode_header_untrusted
from wire.stun import parse_stun_untrusted, write_binding_request, write_binding_success
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

# First byte of RTP or of DTLS application data | length 2 | flow 4 | number 4, filler, and the number again at the end.
_HEAD = struct.Struct("!BxHII")
_NUMBER = struct.Struct("!I")
_RTP, _DTLS = 0x80, 0x17
_DTLS_BYTES = 1200
_FILLER = bytes(range(256)) * 6
# A transaction id of ours: magic 4 | flow 4 | number 4
_TRANSACTION = struct.Struct("!4sII")
_MAGIC = b"call"
_REQUEST, _SUCCESS = b"\x00\x01", b"\x01\x01"
_BURST = (5, 10)
_SO_RCVBUFFORCE, _SO_MEMINFO, _DROPS = 33, 55, 8  # asm-generic/socket.h; linux/sock_diag.h
_CLIENT_BUFFER_BYTES, _TRANSCEIVER_BUFFER_BYTES = 4 * 1024 * 1024, 64 * 1024 * 1024
_FIRST_CHECK_RETRY_S = 0.25
_FLOWING_TIMEOUT_S = 30.0
# A loop that is late catches up by and by, never in one burst.
_MAX_TURNS = 16
_MAX_READS = 64


@dataclass(frozen=True, kw_only=True)
class CallsJob:
    """What to send, where.

    client_namespace, transceiver_namespace: names of network namespaces. vip: where clients send to.
    client_ips: flow i has the (i modulo their number)th, and a port of its own from ``first_port`` on.
    transceivers: sockets that take turns as the flows' own. keys_file: the relay's.
    packets_per_s: of each flow and direction. sizes: of the payloads, in turn.
    dtls_every, burst_every: every so many turns a packet like DTLS of 1200 bytes, or 5 to 10 packets at once; 0 for none.
    core: the CPU to keep to; None leaves that to the scheduler.
    """

    client_namespace: str
    transceiver_namespace: str
    vip: str
    client_ips: tuple[str, ...]
    transceivers: tuple[str, ...]
    keys_file: str
    flows: int
    packets_per_s: float
    sizes: tuple[int, ...]
    first_port: int = 20_000
    check_interval_s: float = 2.5
    dtls_every: int = 0
    burst_every: int = 0
    core: int | None = None


@dataclass
class _Flow:
    index: int
    sock: socket.socket
    transceiver: socket.socket
    ufrag: str
    ice_pwd: bytes
    next_check_at: float = 0.0
    turns: int = 0
    # As the relay last said: the SPP header and where it came from.
    way_down: tuple[bytes, Any] | None = None
    is_answered: bool = False
    up: Lane = field(default_factory=Lane)
    down: Lane = field(default_factory=Lane)
    checks: Lane = field(default_factory=Lane)
    answers: Lane = field(default_factory=Lane)


class Payload(NamedTuple):
    """A numbered payload, taken apart."""

    flow: int
    number: int


def write_payload(flow: int, number: int, size: int, *, is_dtls: bool = False) -> bytes:
    """A payload of that size that says whose it is."""
    head = _HEAD.pack(_DTLS if is_dtls else _RTP, size, flow, number)
    start = (flow + number) % 256
    return head + _FILLER[start : start + size - len(head) - _NUMBER.size] + _NUMBER.pack(number)


def read_payload(data: bytes) -> Payload | None:
    """None if it is not as it was written."""
    if len(data) < _HEAD.size + _NUMBER.size:
        return None
    _, size, flow, number = _HEAD.unpack_from(data)
    start = (flow + number) % 256
    filler = data[_HEAD.size : -_NUMBER.size]
    whole = len(data) == size and _NUMBER.unpack_from(data, size - _NUMBER.size)[0] == number
    return Payload(flow, number) if whole and _FILLER.startswith(filler, start) else None


class Calls:
    """Both ends of all flows, and the loop that moves their packets."""

    def __init__(self, job: CallsJob) -> None:
        self._job = job
        self._keys = load_keys(Path(job.keys_file))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, job.flows + 1024), hard))
        self._poll = select.epoll()
        self._stray = self._refused = 0
        self._behind_s = 0.0
        netns.pushns(job.transceiver_namespace)
        self._transceivers = [
            self._bind(Address.parse(text), _TRANSCEIVER_BUFFER_BYTES) for text in job.transceivers
        ]
        netns.popns()
        netns.pushns(job.client_namespace)
        self._flows = [self._make_flow(index) for index in range(job.flows)]
        netns.popns()
        self._client_of = {flow.sock.fileno(): flow for flow in self._flows}
        self._transceiver_of = {sock.fileno(): sock for sock in self._transceivers}
        self._commands = ""
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        os.set_blocking(sys.stdin.fileno(), False)

    def run(self) -> None:
        """Set up, then send and answer until standard input ends. Raises TimeoutError if flows do not come up."""
        self._set_up()
        _say({"flowing": time.monotonic()})
        interval_s = 1 / (self._job.packets_per_s * len(self._flows))
        started, turn = time.monotonic(), 0
        while True:
            now = time.monotonic()
            due = int((now - started) / interval_s)
            self._behind_s = max(self._behind_s, (due - turn) * interval_s)
            for number in range(turn, min(due, turn + _MAX_TURNS)):
                self._take_turn(self._flows[number % len(self._flows)], now)
                turn = number + 1
            if not self._receive(0.001 if turn >= due else 0):
                return

    # setting up

    def _bind(self, address: Address, buffer_bytes: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        sock.bind((str(address.ip), address.port))
        self._poll.register(sock, select.EPOLLIN)
        return sock

    def _make_flow(self, index: int) -> _Flow:
        job = self._job
        ip = job.client_ips[index % len(job.client_ips)]
        port = job.first_port + index // len(job.client_ips)
        sock = self._bind(Address.from_host(ip, port), _CLIENT_BUFFER_BYTES)
        vip = Address.parse(job.vip)
        sock.connect((str(vip.ip), vip.port))
        transceiver = self._transceivers[index % len(self._transceivers)]
        issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
        hint = RouteHint(
            1, Address.parse(job.transceivers[index % len(job.transceivers)]), issued_at, os.urandom(5)
        )
        ufrag = seal_ufrag(self._keys, hint)
        flow = _Flow(index, sock, transceiver, ufrag, derive_ice_pwd(self._keys, ufrag).encode())
        # lost is what is not answered
        flow.answers.sent_at, flow.answers.came = flow.checks.sent_at, bytearray()
        return flow

    def _set_up(self) -> None:
        """A check until it is answered, then packets until some came both ways."""
        deadline = time.monotonic() + _FLOWING_TIMEOUT_S
        missing = self._flows
        while missing := [flow for flow in missing if not (flow.up.next_number and flow.down.next_number)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} of {len(self._flows)} flows carry nothing")
            for flow in missing:
                now = time.monotonic()
                if not flow.is_answered:
                    self._send_check(flow, now)
                else:
                    self._send_up(flow, now, self._job.sizes[0])
                    self._send_down(flow, now, self._job.sizes[0])
                self._receive(0)
            retry_at = time.monotonic() + _FIRST_CHECK_RETRY_S
            while time.monotonic() < retry_at:
                self._receive(0.01)
        now = time.monotonic()
        for flow in self._flows:
            flow.next_check_at = now + self._job.check_interval_s * flow.index / len(self._flows)

    # sending

    def _take_turn(self, flow: _Flow, now: float) -> None:
        job = self._job
        flow.turns += 1
        if now >= flow.next_check_at:
            flow.next_check_at += job.check_interval_s
            self._send_check(flow, now)
        turn = flow.turns + flow.index
        if job.burst_every and turn % job.burst_every == 0:
            least, most = _BURST
            for number in range(least + turn // job.burst_every % (most - least + 1)):
                size = job.sizes[(turn + number) % len(job.sizes)]
                self._send_up(flow, now, size)
                self._send_down(flow, now, size)
            return
        is_dtls = bool(job.dtls_every) and turn % job.dtls_every == 0
        size = _DTLS_BYTES if is_dtls else job.sizes[turn % len(job.sizes)]
        self._send_up(flow, now, size, is_dtls=is_dtls)
        self._send_down(flow, now, size, is_dtls=is_dtls)

    def _send_up(self, flow: _Flow, now: float, size: int, *, is_dtls: bool = False) -> None:
        data = write_payload(flow.index, flow.up.send(now), size, is_dtls=is_dtls)
        self._send(flow.sock, data)

    def _send_down(self, flow: _Flow, now: float, size: int, *, is_dtls: bool = False) -> None:
        if flow.way_down is None:
            return
        header, relay = flow.way_down
        data = write_payload(flow.index, flow.down.send(now), size, is_dtls=is_dtls)
        self._send(flow.transceiver, header + data, relay)

    def _send_check(self, flow: _Flow, now: float) -> None:
        transaction = _TRANSACTION.pack(_MAGIC, flow.index, flow.checks.send(now))
        flow.answers.came.append(0)
        self._send(flow.sock, write_binding_request(transaction, f"{flow.ufrag}:abcd", flow.ice_pwd))

    def _send(self, sock: socket.socket, data: bytes, to: Any = None) -> None:
        try:
            if to is None:
                sock.send(data)
            else:
                sock.sendto(data, to)
        except OSError:
            self._refused += 1

    # receiving

    def _receive(self, timeout_s: float) -> bool:
        """What has come to any socket; False when standard input has ended."""
        for fd, _ in self._poll.poll(timeout_s):
            if fd in self._client_of:
                self._take_down(self._client_of[fd])
            elif fd in self._transceiver_of:
                self._take_up(self._transceiver_of[fd])
            elif not self._obey():
                return False
        return True

    def _take_down(self, flow: _Flow) -> None:
        for _ in range(_MAX_READS):
            try:
                data = flow.sock.recv(2048)
            except OSError:  # empty, or an ICMP error
                return
            if data[:2] == _SUCCESS:
                _, _, number = _TRANSACTION.unpack_from(data, 8)
                flow.answers.receive(number)
                flow.is_answered = True
                continue
            payload = read_payload(data)
            if payload is None or payload.flow != flow.index:
                flow.down.damaged += 1
            else:
                flow.down.receive(payload.number)

    def _take_up(self, sock: socket.socket) -> None:
        for _ in range(_MAX_READS):
            try:
                datagram, relay = sock.recvfrom(2048)
            except OSError:
                return
            data = datagram[HEADER_BYTES:]
            if data[:2] == _REQUEST:
                self._answer(sock, datagram, relay)
                continue
            payload = read_payload(data)
            if payload is None or payload.flow >= len(self._flows):
                self._stray += 1
                continue
            flow = self._flows[payload.flow]
            flow.way_down = datagram[:HEADER_BYTES], relay
            flow.up.receive(payload.number)

    def _answer(self, sock: socket.socket, datagram: bytes, relay: Any) -> None:
        """Of a flow here, or of anybody whose ufrag names this transceiver."""
        try:
            client, _ = decode_header_untrusted(datagram)
            message = parse_stun_untrusted(datagram[HEADER_BYTES:])
            server_ufrag, _ = message.ufrags_untrusted
            ice_pwd = derive_ice_pwd(self._keys, server_ufrag).encode()
        except WireError:
            self._stray += 1
            return
        magic, index, number = _TRANSACTION.unpack(message.transaction_id)
        if magic == _MAGIC and index < len(self._flows):
            flow = self._flows[index]
            flow.way_down = datagram[:HEADER_BYTES], relay
            flow.checks.receive(number)
        answer = write_binding_success(message.transaction_id, client, ice_pwd)
        self._send(sock, datagram[:HEADER_BYTES] + answer, relay)

    # telling

    def _obey(self) -> bool:
        text = os.read(sys.stdin.fileno(), 65_536).decode()
        if not text:
            return False
        *lines, self._commands = (self._commands + text).split("\n")
        for line in lines:
            _say(self._tell([(begin, end) for begin, end in json.loads(line)["spans"]]))
        return True

    def _tell(self, spans: list[tuple[float, float]]) -> dict[str, Any]:
        lanes = {
            kind: [getattr(flow, kind) for flow in self._flows]
            for kind in ("up", "down", "checks", "answers")
        }
        every = [lane for kind in lanes.values() for lane in kind]
        return {
            "spans": [
                {kind: vars(count(of_kind, begin, end)) for kind, of_kind in lanes.items()}
                for begin, end in spans
            ],
            **{what: sum(getattr(lane, what) for lane in every) for what in ("late", "doubled", "damaged")},
            "stray": self._stray,
            "send_errors": self._refused,
            "own_drops": sum(map(_drops, [*self._transceivers, *(flow.sock for flow in self._flows)])),
            "behind_s": self._behind_s,
        }


def _drops(sock: socket.socket) -> int:
    """Datagrams that came to one of our own sockets and found no room: no fault of the relay's."""
    return int(struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_DROPS])


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do the one job of standard input."""
    message = json.loads(sys.stdin.readline())
    lists = {name: tuple(value) for name, value in message.items() if isinstance(value, list)}
    job = CallsJob(**{**message, **lists})
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    try:
        Calls(job).run()
    except TimeoutError as error:
        _say({"error": str(error)})


if __name__ == "__main__":
    main()
