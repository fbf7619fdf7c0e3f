"""Packet sockets on the links of calls, which no end of a call knows of; times are the kernel's (``SO_TIMESTAMPNS``)."""

import select
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from typing import Self

from bench.recovery.frames import SNAP_BYTES, Endpoint, Kind, Seen, read_frame_untrusted
from bench.recovery.hosts import FLEET_LINKS, TRANSCEIVER, VIP, Side, Sites
from bench.recovery.traces import Rtp
from bench.topology import ETH, PUBLIC, Host

_ETH_P_ALL, _PACKET_OUTGOING = 3, 4  # linux/if_ether.h, linux/if_packet.h
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
_BUFFER_BYTES = 16 * 1024 * 1024
# struct timespec: seconds 8 | nanoseconds 8
_TIMESPEC = struct.Struct("=qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
_READS = 256
_VIP: Endpoint = (VIP.host, VIP.port)


class Place(Enum):
    """Where a packet was, and which way it went."""

    SENT_UP = "client sent"
    REACHED_A = "reached relay A"
    REACHED_B = "reached relay B"
    CAME_UP = "transceiver had"
    CARRIED_A = "transceiver had of relay A"
    CARRIED_B = "transceiver had of relay B"
    SENT_DOWN = "transceiver sent"
    CAME_DOWN = "client had"

    @classmethod
    def reached(cls, side: Side) -> "Place":
        """The public interface of that relay."""
        return cls.REACHED_A if side is Side.A else cls.REACHED_B

    @classmethod
    def carried(cls, side: Side) -> "Place":
        """What the transceiver had of that relay."""
        return cls.CARRIED_A if side is Side.A else cls.CARRIED_B


# By the relay's address.
_CARRIED = {side.fleet.host: Place.carried(side) for side in Side}


class Taps:
    """Listens from ``__enter__`` to ``__exit__``. ``sink``: the port of the transceiver's host that probes are for."""

    def __init__(self, sites: Sites, sink_port: int) -> None:
        self._sink: Endpoint = (TRANSCEIVER.host, sink_port)
        self._poll = select.epoll()
        self._taps: dict[int, tuple[socket.socket, Callable[[Seen, float, bool], None]]] = {}
        self._media: dict[tuple[Place, Endpoint], list[Rtp]] = defaultdict(list)
        self._checks: dict[Endpoint, list[float]] = defaultdict(list)
        self._answers: dict[Endpoint, float] = {}
        self._probes: list[tuple[float, Endpoint]] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for host in (sites.callers, sites.browser):
            self._listen(host, ETH, self._at_client)
        for link in FLEET_LINKS:
            self._listen(sites.transceiver, link, self._at_transceiver)
        for side in Side:
            place = Place.reached(side)
            self._listen(sites.relay(side), PUBLIC, lambda *seen, place=place: self._at_relay(place, *seen))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self._thread.join()
        for tap, _ in self._taps.values():
            tap.close()
        self._poll.close()

    # asked by other threads: lists only grow at their end, and are copied at once

    def clients(self) -> list[Endpoint]:
        """Who has had media of a transceiver."""
        return sorted(client for place, client in list(self._media) if place is Place.CAME_DOWN)

    def media(self, place: Place, client: Endpoint) -> list[Rtp]:
        """Media of that client there, in order of time."""
        return sorted(self._media.get((place, client), ()))

    def times(self, place: Place, client: Endpoint) -> list[float]:
        """When media of that client was there."""
        return sorted(packet.at for packet in list(self._media.get((place, client), ())))

    def last_at(self, place: Place, client: Endpoint) -> float:
        """When the last media of that client was there; 0 for never."""
        packets = self._media.get((place, client))
        return packets[-1].at if packets else 0.0

    def served(self, since: float) -> dict[Endpoint, float]:
        """When the first probe since then came, by the worker's socket that sent it on."""
        found: dict[Endpoint, float] = {}
        for at, source in sorted(self._probes):
            if at >= since:
                found.setdefault(source, at)
        return found

    def checks(self, client: Endpoint) -> list[float]:
        """When that client sent Binding requests."""
        return sorted(self._checks.get(client, ()))

    def last_answer(self, client: Endpoint) -> float:
        """When that client last had an answer to a check; 0 for never."""
        return self._answers.get(client, 0.0)

    def forget(self, before: float) -> None:
        """Media and probes that nobody will ask for; checks stay."""
        with self._lock:
            for key, packets in self._media.items():
                self._media[key] = [packet for packet in packets if packet.at >= before]
            self._probes = [probe for probe in self._probes if probe[0] >= before]

    def unread(self) -> int:
        """Packets that found no room in the sockets of this bench itself, since this was asked last."""
        statistics = (tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8) for tap, _ in self._taps.values())
        return sum(struct.unpack("=II", counts)[1] for counts in statistics)

    def _listen(self, host: Host, interface: str, take: Callable[[Seen, float, bool], None]) -> None:
        with host:
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        tap.setblocking(False)
        tap.bind((interface, _ETH_P_ALL))
        self._taps[tap.fileno()] = tap, take
        self._poll.register(tap, select.EPOLLIN)

    def _run(self) -> None:
        while not self._ending.is_set():
            for fd, _ in self._poll.poll(0.1):
                with self._lock:
                    self._read(*self._taps[fd])

    def _read(self, tap: socket.socket, take: Callable[[Seen, float, bool], None]) -> None:
        for _ in range(_READS):
            try:
                frame, ancillary, _, address = tap.recvmsg(SNAP_BYTES, _ANCILLARY_BYTES)
            except OSError:  # empty, or an interface that went away
                return
            seen = read_frame_untrusted(frame)
            if seen is not None and ancillary:
                seconds, nanoseconds = _TIMESPEC.unpack_from(ancillary[0][2])
                take(seen, seconds + nanoseconds / 1e9, address[2] == _PACKET_OUTGOING)

    def _at_client(self, seen: Seen, at: float, is_outgoing: bool) -> None:
        if is_outgoing and seen.destination == _VIP:
            if seen.kind is Kind.CHECK:
                self._checks[seen.source].append(at)
            self._note(Place.SENT_UP, seen.source, seen, at)
        elif not is_outgoing and seen.source == _VIP:
            if seen.kind is Kind.STUN:
                self._answers[seen.destination] = at
            self._note(Place.CAME_DOWN, seen.destination, seen, at)

    def _at_relay(self, place: Place, seen: Seen, at: float, is_outgoing: bool) -> None:
        if not is_outgoing and seen.destination == _VIP:
            self._note(place, seen.source, seen, at)

    def _at_transceiver(self, seen: Seen, at: float, is_outgoing: bool) -> None:
        if seen.client is None:
            return
        if not is_outgoing and seen.destination == self._sink:
            self._probes.append((at, seen.source))
        elif is_outgoing:
            self._note(Place.SENT_DOWN, seen.client, seen, at)
        else:
            self._note(Place.CAME_UP, seen.client, seen, at)
            if seen.source[0] in _CARRIED:
                self._note(_CARRIED[seen.source[0]], seen.client, seen, at)

    def _note(self, place: Place, client: Endpoint, seen: Seen, at: float) -> None:
        if seen.kind is Kind.MEDIA:
            self._media[place, client].append(Rtp(at, seen.ssrc, seen.number, seen.source))
