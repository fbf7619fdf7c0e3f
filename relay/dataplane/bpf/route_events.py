"""What happens to routes, neighbours and links, as the kernel tells it: one netlink socket, read cheaply.

A busy LAN tells of strangers all the time, so only headers and the few attributes that decide whether anybody cares are
read, by hand: 3 microseconds a message, where pyroute2 takes a hundred. What was told is a hint; the kernel is asked.
"""

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from relay.dataplane.bpf.ways import ABSENT, NTF_EXT_MANAGED, Neighbour, NeighbourKey

# linux/netlink.h, linux/rtnetlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE = 1, 3, 5, 7, 8
_IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE, _NEXTHOP = 9, 11, 19, 32
_GROUPS = (_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE)
_NEW_LINK, _DEL_LINK, _NEW_ROUTE, _DEL_ROUTE, _NEW_NEIGH, _DEL_NEIGH = 16, 17, 24, 25, 28, 29
# Addresses, rules and nexthop objects, new and gone: any host's route may be another now.
_FAR_REACHING = frozenset((20, 21, 32, 33, 104, 105))
# NDA_*, RTA_*, IFLA_*
_NDA_DST, _NDA_LLADDR, _NDA_FLAGS_EXT = 1, 2, 15
_RTA_DST = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_OPERSTATE, _IFLA_XDP = 1, 3, 4, 5, 16, 43
_NLA_TYPE_MASK = 0x3FFF

# nlmsghdr: u32 length, u16 type, u16 flags, u32 sequence number, u32 port
_HEADER = struct.Struct("=IHHII")
# ndmsg: u8 family, 3 of padding, s32 ifindex, u16 state, u8 flags, u8 type
_NDMSG = struct.Struct("=B3xiHBB")
# rtmsg: u8 family, u8 destination's prefix length, 10 others
_RTMSG = struct.Struct("=BB10x")
# ifinfomsg: u8 family, u8 of padding, u16 type, s32 ifindex, u32 flags, u32 changed
_IFINFOMSG = struct.Struct("=BxHiII")
# nlattr: u16 length, u16 type
_ATTRIBUTE = struct.Struct("=HH")

_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}
# Longer than any event that was seen (a link's: 1.5 kB); a longer one is cut, and its link asked for all the same.
_LONGEST = 16_384
# So that other tasks of the loop have their turn under a storm.
_READ_AT_ONCE = 64
# Some thousand messages.
_BUFFER_BYTES = 1 << 20


class NeighbourEvent(NamedTuple):
    """A neighbour is as told, or gone."""

    key: NeighbourKey
    neighbour: Neighbour


class RouteEvent(NamedTuple):
    """A route to this prefix came, changed or went; ``network`` is packed, its bits after ``length`` are 0."""

    network: bytes
    length: int


class LinkEvent(NamedTuple):
    """``properties`` tell whether anything changed that ways depend on; empty for a link that is gone."""

    ifindex: int
    properties: tuple[object, ...]


class EverythingEvent(NamedTuple):
    """Any way may be another now."""

    were_lost: bool = False


Event = NeighbourEvent | RouteEvent | LinkEvent | EverythingEvent


def read_events(datagram: bytes) -> Iterator[Event]:
    """Every event of a datagram that could matter to anybody."""
    position, end = 0, len(datagram)
    while position + _HEADER.size <= end:
        length, kind, *_ = _HEADER.unpack_from(datagram, position)
        if length < _HEADER.size:
            return
        body = datagram[position + _HEADER.size : position + length]
        try:
            if kind in (_NEW_NEIGH, _DEL_NEIGH):
                yield from _read_neighbour(body, is_gone=kind == _DEL_NEIGH)
            elif kind in (_NEW_ROUTE, _DEL_ROUTE):
                yield from _read_route(body)
            elif kind in (_NEW_LINK, _DEL_LINK):
                yield from _read_link(body, is_gone=kind == _DEL_LINK)
            elif kind in _FAR_REACHING:
                yield EverythingEvent()
        except struct.error:
            yield EverythingEvent()
        position += (length + 3) & ~3


def _read_neighbour(body: bytes, *, is_gone: bool) -> Iterator[Event]:
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    if family not in _ADDRESS_BYTES:
        return  # a bridge's table of MACs
    attributes = dict(_attributes(body, _NDMSG.size))
    key = NeighbourKey(index, attributes.get(_NDA_DST, b""))
    if is_gone:
        yield NeighbourEvent(key, ABSENT)
        return
    more = int.from_bytes(attributes.get(_NDA_FLAGS_EXT, b""), "little")
    mac = attributes.get(_NDA_LLADDR, b"")
    yield NeighbourEvent(key, Neighbour(state, flags, bool(more & NTF_EXT_MANAGED), mac))


def _read_route(body: bytes) -> Iterator[Event]:
    family, length = _RTMSG.unpack_from(body)
    if family in _ADDRESS_BYTES:
        network = dict(_attributes(body, _RTMSG.size)).get(_RTA_DST, bytes(_ADDRESS_BYTES[family]))
        yield RouteEvent(network, length) if length <= 8 * len(network) else EverythingEvent()


def _read_link(body: bytes, *, is_gone: bool) -> Iterator[Event]:
    family, kind, index, flags, _ = _IFINFOMSG.unpack_from(body)
    if family != socket.AF_UNSPEC:
        return  # a bridge's port
    if is_gone:
        yield LinkEvent(index, ())
        return
    attributes = dict(_attributes(body, _IFINFOMSG.size))
    told = (_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_OPERSTATE, _IFLA_XDP)
    yield LinkEvent(index, (kind, flags, *map(attributes.get, told)))


def _attributes(body: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    while position + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _NLA_TYPE_MASK, body[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3


class RouteEvents:
    """A subscription of this network namespace; ``with`` ends it. Raises OSError if the kernel gives none."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        """on_event: called in the running event loop."""
        self._on_event = on_event
        self._failure: OSError | None = None
        self._loop = asyncio.get_running_loop()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, 0))
            for group in _GROUPS:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            with contextlib.suppress(OSError):  # not before Linux 5.3
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NEXTHOP)
            self._loop.add_reader(self._socket, self._read)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def check(self) -> None:
        """Raises OSError if nothing comes any more."""
        if self._failure is not None:
            raise self._failure

    def _read(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                datagram = self._socket.recv(_LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._failure = error
                    self._loop.remove_reader(self._socket)
                # Else the buffer was full: it goes on with what comes next.
                self._on_event(EverythingEvent(were_lost=True))
                return
            for event in read_events(datagram):
                self._on_event(event)
