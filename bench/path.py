"""An impaired network path in user space: late, lost, doubled and reordered datagrams by a fixed pattern.

Clients send to ``listen``; every client address has an outer socket of its own towards ``to``, as behind a NAT. What becomes
of a datagram is a pure function of (seed, client, direction, number): two runs lose the same numbers, however busy the machine.
Times differ, so whether a datagram that was held back was overtaken is counted when it leaves.

    async with ImpairedPath(listen, to, seed=7, up=Impairment(loss=0.05), down=Impairment(delay_s=0.05)) as path: …
    with path_in_thread(listen, to, up=…) as path: …     # for what has no event loop, or keeps it busy

With the relay: ``relayctl start --listen TO --vip LISTEN``, as behind a cloud's 1:1 NAT.
"""

import asyncio
import contextlib
import heapq
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from hashlib import blake2b
from typing import NamedTuple, Self, TypeVar

from host.sockets import bind_udp, bound_address, sockaddr
from wire.address import Address
from wire.demux import PacketClass, classify

_SEED = struct.Struct("!qIIQ")
_DRAWS = struct.Struct("!IIII")
_RANGE = 1 << 32
_MAX_DATAGRAM_BYTES = 65_535
_MAX_READS = 64
_SO_MEMINFO, _DROPS = 55, 8  # asm-generic/socket.h; linux/sock_diag.h

T = TypeVar("T")


class Direction(IntEnum):
    """Away from the client, or to it."""

    UP = 0
    DOWN = 1


class Kind(StrEnum):
    """What a datagram is, by its first bytes (RFC 7983 section 7, RFC 5761 section 4)."""

    STUN = "stun"
    DTLS = "dtls"
    RTP = "rtp"
    RTCP = "rtcp"
    OTHER = "other"


def kind_of(datagram: bytes) -> Kind:
    """Whatever it says, it is forwarded; counts are by kind."""
    match classify(datagram):
        case PacketClass.STUN:
            return Kind.STUN
        case PacketClass.DTLS:
            return Kind.DTLS
        case PacketClass.RTP:
            return Kind.RTCP if len(datagram) > 1 and 192 <= datagram[1] <= 223 else Kind.RTP
        case _:
            return Kind.OTHER


@dataclass(frozen=True, kw_only=True)
class Impairment:
    """What one direction does; the shares are of 1.

    delay_s: of every datagram; half a round trip. jitter_s: up to so much more, evenly spread; order is kept, as in a queue.
    loss: what vanishes. doubled: what comes again ``hold_s`` later. reordered: what leaves the queue and comes ``hold_s`` later.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    doubled: float = 0.0
    reordered: float = 0.0
    hold_s: float = 0.05

    def __post_init__(self) -> None:
        for name in ("delay_s", "jitter_s", "hold_s"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; a path cannot deliver before it was given"
                )
        for name in ("loss", "doubled", "reordered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")


CLEAN = Impairment()


class Fate(NamedTuple):
    """What becomes of a datagram: ``copies`` is 0 (lost), 1 or 2; ``held``: the first is overtaken by what comes after it."""

    copies: int
    held: bool
    delay_s: float


def fate_of(impairment: Impairment, seed: int, client: int, direction: Direction, number: int) -> Fate:
    """Of the datagram with that number, from 0, of the ``client``th address in this direction. Pure."""
    digest = blake2b(_SEED.pack(seed, client, direction, number), digest_size=_DRAWS.size).digest()
    loss, doubled, reordered, jitter = (draw / _RANGE for draw in _DRAWS.unpack(digest))
    if loss < impairment.loss:
        return Fate(0, False, 0.0)
    return Fate(
        2 if doubled < impairment.doubled else 1,
        reordered < impairment.reordered,
        impairment.delay_s + jitter * impairment.jitter_s,
    )


@dataclass
class Counts:
    """What a direction did with datagrams of a kind. ``forwarded`` counts copies, too, so without anything under way
    received + doubled = forwarded + lost + paused + overflowed + refused.

    reordered: left after one that had come later. paused: dropped by a pause. overflowed: found the queue full.
    refused: the kernel did not take it.
    """

    received: int = 0
    forwarded: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    paused: int = 0
    overflowed: int = 0
    refused: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def minus(self, before: "Counts") -> "Counts":
        """What has come since."""
        return Counts(*(a - b for a, b in zip(vars(self).values(), vars(before).values(), strict=True)))


@dataclass(slots=True)
class _Lane:
    """One direction of one client."""

    index: int
    direction: Direction
    next_number: int = 0
    highest_left: int = -1
    queue_ends_at: float = float("-inf")


@dataclass(slots=True)
class _Client:
    address: Address
    outer: socket.socket
    lanes: tuple[_Lane, _Lane]


class _Parcel(NamedTuple):
    """A datagram on its way; ``number`` is None for a copy."""

    leaves_at: float
    order: int
    client: _Client
    lane: _Lane
    number: int | None
    kind: Kind
    datagram: bytes


@dataclass(slots=True)
class _Silence:
    """Of all RTP in one direction."""

    since: float = float("inf")
    longest_s: float = 0.0

    def end(self, now: float) -> None:
        self.longest_s = max(self.longest_s, now - self.since)
        self.since = now


@dataclass
class _Pause:
    until: float = float("-inf")
    stops: frozenset[Direction] = field(default_factory=frozenset)


class ImpairedPath:
    """Between clients and ``to``. Its sockets live in the network namespace in which it was made.

    max_clients, max_queued: addresses that it serves, and datagrams under way in both directions together; more are dropped.
    outer_host: where outer sockets are bound; the kernel's choice if None.
    """

    def __init__(
        self,
        listen: Address,
        to: Address,
        *,
        seed: int = 1,
        up: Impairment = CLEAN,
        down: Impairment = CLEAN,
        outer_host: bytes | None = None,
        max_clients: int = 4096,
        max_queued: int = 65_536,
    ) -> None:
        self._inner = bind_udp("path", listen)
        self.listen = bound_address(self._inner)
        self._to = to
        self._seed = seed
        self._impairments = [up, down]
        self._outer_host = outer_host or _route_to(to)
        self._max_clients, self._max_queued = max_clients, max_queued
        self._clients: dict[Address, _Client] = {}
        self._counts = {(direction, kind): Counts() for direction in Direction for kind in Kind}
        self._first_left: dict[tuple[Direction, Kind], float] = {}
        self._silences = {direction: _Silence() for direction in Direction}
        self._queue: list[_Parcel] = []
        self._order = itertools.count()
        self._pause = _Pause()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inner, self._take_up)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for sock in (self._inner, *(client.outer for client in self._clients.values())):
            self._loop.remove_reader(sock)
            sock.close()

    def impair(self, *, up: Impairment | None = None, down: Impairment | None = None) -> None:
        """Change what the directions do, from the next datagram on."""
        for direction, impairment in ((Direction.UP, up), (Direction.DOWN, down)):
            if impairment is not None:
                self._impairments[direction] = impairment

    def pause(self, seconds: float, stops: tuple[Direction, ...] = tuple(Direction)) -> None:
        """Drop what comes from now on; what is under way arrives. ``inf`` is until ``pause(0)``."""
        self._pause = _Pause(self._loop.time() + seconds, frozenset(stops))

    def rebind(self) -> None:
        """Take other outer ports, as a NAT does after a time-out or a reboot; the old ones are closed."""
        for client in self._clients.values():
            old, client.outer = client.outer, self._open(client)
            self._loop.remove_reader(old)
            old.close()

    def counts(self, direction: Direction, *kinds: Kind) -> Counts:
        """Of all clients up to now: of these kinds, or of every kind."""
        return sum((replace(self._counts[direction, kind]) for kind in kinds or Kind), Counts())

    def first_left_s(self, direction: Direction, kind: Kind) -> float | None:
        """When the first datagram of a kind left us, in monotonic seconds."""
        return self._first_left.get((direction, kind))

    def outer_addresses(self) -> list[Address]:
        """As the far side sees the clients, in the order in which they came."""
        return [bound_address(client.outer) for client in self._clients.values()]

    def forget_gaps(self) -> None:
        """Gaps in media are counted from now on; one that lasts now, in full."""
        for silence in self._silences.values():
            silence.longest_s = 0.0

    def media_gap_s(self, direction: Direction) -> float:
        """The longest time between two RTP datagrams that left us, whosever they were, and since the last."""
        silence = self._silences[direction]
        return max(silence.longest_s, self._loop.time() - silence.since)

    @property
    def queued(self) -> int:
        """Datagrams under way."""
        return len(self._queue)

    def kernel_drops(self) -> int:
        """Datagrams that found our sockets' buffers full: nothing of the pattern, and not in the counts."""
        sockets = [self._inner, *(client.outer for client in self._clients.values())]
        return sum(map(_drops, sockets))

    # receiving

    def _take_up(self) -> None:
        for _ in range(_MAX_READS):
            try:
                datagram, source = self._inner.recvfrom(_MAX_DATAGRAM_BYTES)
            except OSError:  # empty, or an ICMP error
                return
            client = self._client_of(Address.from_host(*source[:2]))
            if client is None:
                self._counts[Direction.UP, kind_of(datagram)].received += 1
                self._counts[Direction.UP, kind_of(datagram)].overflowed += 1
            else:
                self._carry(client, client.lanes[Direction.UP], datagram)

    def _take_down(self, client: _Client) -> None:
        for _ in range(_MAX_READS):
            try:
                datagram, source = client.outer.recvfrom(_MAX_DATAGRAM_BYTES)
            except OSError:
                return
            if Address.from_host(*source[:2]) == self._to:  # as a NAT that filters by address and port
                self._carry(client, client.lanes[Direction.DOWN], datagram)

    def _client_of(self, address: Address) -> _Client | None:
        client = self._clients.get(address)
        if client is None and len(self._clients) < self._max_clients:
            index = len(self._clients)
            lanes = (_Lane(index, Direction.UP), _Lane(index, Direction.DOWN))
            client = _Client(address, self._inner, lanes)
            client.outer = self._open(client)
            self._clients[address] = client
        return client

    def _open(self, client: _Client) -> socket.socket:
        outer = bind_udp("path", Address(self._outer_host, 0))
        self._loop.add_reader(outer, self._take_down, client)
        return outer

    # carrying

    def _carry(self, client: _Client, lane: _Lane, datagram: bytes) -> None:
        kind, now = kind_of(datagram), self._loop.time()
        counts = self._counts[lane.direction, kind]
        number, lane.next_number = lane.next_number, lane.next_number + 1
        counts.received += 1
        if lane.direction in self._pause.stops and now < self._pause.until:
            counts.paused += 1
            return
        impairment = self._impairments[lane.direction]
        fate = fate_of(impairment, self._seed, lane.index, lane.direction, number)
        if not fate.copies:
            counts.lost += 1
            return
        if len(self._queue) + fate.copies > self._max_queued:
            counts.overflowed += 1
            return
        leaves_at = now + fate.delay_s
        if fate.held:
            leaves_at += impairment.hold_s
        else:
            leaves_at = lane.queue_ends_at = max(leaves_at, lane.queue_ends_at)
        self._put(_Parcel(leaves_at, next(self._order), client, lane, number, kind, datagram))
        if fate.copies > 1:
            counts.doubled += 1
            again_at = leaves_at + impairment.hold_s
            self._put(_Parcel(again_at, next(self._order), client, lane, None, kind, datagram))
        self._send_due()

    def _put(self, parcel: _Parcel) -> None:
        heapq.heappush(self._queue, parcel)

    def _send_due(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].leaves_at <= now:
            self._send(heapq.heappop(self._queue))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0].leaves_at, self._send_due)

    def _send(self, parcel: _Parcel) -> None:
        counts, lane = self._counts[parcel.lane.direction, parcel.kind], parcel.lane
        try:
            if lane.direction is Direction.UP:
                parcel.client.outer.sendto(parcel.datagram, sockaddr(self._to))
            else:
                self._inner.sendto(parcel.datagram, sockaddr(parcel.client.address))
        except OSError:
            counts.refused += 1
            return
        counts.forwarded += 1
        self._first_left.setdefault((lane.direction, parcel.kind), self._loop.time())
        if parcel.kind is Kind.RTP:
            self._silences[lane.direction].end(self._loop.time())
        if parcel.number is not None:
            counts.reordered += parcel.number < lane.highest_left
            lane.highest_left = max(lane.highest_left, parcel.number)


def _route_to(address: Address) -> bytes:
    """The host address that the kernel would send from."""
    with socket.socket(
        socket.AF_INET if address.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM
    ) as probe:
        probe.connect(sockaddr(address))
        return bound_address(probe).host


def _drops(sock: socket.socket) -> int:
    return int(struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[_DROPS])


class ThreadedPath:
    """An ImpairedPath in the event loop of a thread of its own; its methods are the path's, from any other thread."""

    def __init__(self, path: ImpairedPath, loop: asyncio.AbstractEventLoop) -> None:
        self._path, self._loop = path, loop
        self.listen = path.listen

    def impair(self, *, up: Impairment | None = None, down: Impairment | None = None) -> None:
        """See ImpairedPath."""
        self._run(lambda path: path.impair(up=up, down=down))

    def pause(self, seconds: float, stops: tuple[Direction, ...] = tuple(Direction)) -> None:
        """See ImpairedPath."""
        self._run(lambda path: path.pause(seconds, stops))

    def rebind(self) -> None:
        """See ImpairedPath."""
        self._run(lambda path: path.rebind())

    def counts(self, direction: Direction, *kinds: Kind) -> Counts:
        """See ImpairedPath."""
        return self._run(lambda path: path.counts(direction, *kinds))

    def first_left_s(self, direction: Direction, kind: Kind) -> float | None:
        """See ImpairedPath."""
        return self._run(lambda path: path.first_left_s(direction, kind))

    def outer_addresses(self) -> list[Address]:
        """See ImpairedPath."""
        return self._run(lambda path: path.outer_addresses())

    def forget_gaps(self) -> None:
        """See ImpairedPath."""
        self._run(lambda path: path.forget_gaps())

    def media_gap_s(self, direction: Direction) -> float:
        """See ImpairedPath."""
        return self._run(lambda path: path.media_gap_s(direction))

    @property
    def queued(self) -> int:
        """See ImpairedPath."""
        return self._run(lambda path: path.queued)

    def kernel_drops(self) -> int:
        """See ImpairedPath."""
        return self._run(lambda path: path.kernel_drops())

    def _run(self, do: Callable[[ImpairedPath], T]) -> T:
        async def done() -> T:
            return do(self._path)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result()


@contextlib.contextmanager
def path_in_thread(
    listen: Address,
    to: Address,
    *,
    seed: int = 1,
    up: Impairment = CLEAN,
    down: Impairment = CLEAN,
    outer_host: bytes | None = None,
) -> Iterator[ThreadedPath]:
    """For the life of the block; a thread begins in the network namespace of the one that makes it."""
    path = ImpairedPath(listen, to, seed=seed, up=up, down=down, outer_host=outer_host)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def run() -> None:
        async with path:
            started.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), name="path", daemon=True)
    thread.start()
    started.wait()
    try:
        yield ThreadedPath(path, loop)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
