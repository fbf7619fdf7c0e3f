"""Many datagrams a system call: ``recvmmsg`` and ``sendmmsg`` over arrays that the kernel reads and writes in place.

A datagram lies in a slot of its own, with room for an SPP header in front, so that none is moved:

    offset   0        6             44
             unused   SPP header    payload, 2048 bytes and one more, by which a larger one is known

Equal datagrams to one address can leave as a train: one message that the kernel, or the NIC, cuts apart (UDP_SEGMENT,
https://man7.org/linux/man-pages/man7/udp.7.html). Needs a 64-bit Linux.
"""

import contextlib
import ctypes
import errno
import mmap
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relay.core.forwarding import MAX_DATAGRAM_BYTES
from wire.address import Address
from wire.spp import FLOW_NAME_BYTES, HEADER_BYTES, MAGIC, encode_header

# Datagrams a batch: about 0.7 ms of a worker's time. More gain little, and let others wait longer.
BATCH: Final = 1024
HEADER_AT: Final = 6
PAYLOAD_AT: Final = HEADER_AT + HEADER_BYTES
_HUGE_PAGE_BYTES = 2 * 1024 * 1024
_SLOT_BYTES = -(-(PAYLOAD_AT + MAX_DATAGRAM_BYTES + 1) // 64) * 64

Indexes = npt.NDArray[np.intp]
Lengths = npt.NDArray[np.int64]
Pointers = npt.NDArray[np.uintp]


class Slots:
    """Room for one batch, and views of it: one cell a slot."""

    def __init__(self) -> None:
        self.bytes: npt.NDArray[np.uint8] = _zeros_on_huge_pages(BATCH * _SLOT_BYTES).reshape(BATCH, -1)
        self._memory = self.bytes.data.cast("B")
        self._address = self.bytes.ctypes.data
        self.magic = self._column(">u2", 0)
        self.magic[:] = MAGIC
        # An SPP header behind its magic: what a flow is looked up by.
        self.name = self._column(f"V{FLOW_NAME_BYTES}", HEADER_BYTES - FLOW_NAME_BYTES)
        self._client_host16 = self._column("V16", 2)
        self._client_host4 = self._column("u4", 14)
        self._client_port = self._column("u2", 34)
        self.first_byte: npt.NDArray[np.uint8] = self.bytes[:, PAYLOAD_AT]

    def _column(self, dtype: str, offset: int) -> npt.NDArray[Any]:
        """At that offset of the SPP header."""
        return np.ndarray((BATCH,), dtype, self.bytes.data, HEADER_AT + offset, (_SLOT_BYTES,))

    def set_vip(self, vip: Address) -> None:
        """Write the headers of packets to that VIP, but for the clients."""
        header = np.frombuffer(encode_header(Address(bytes(len(vip.host)), 0), vip), np.uint8)
        self.bytes[:, HEADER_AT:PAYLOAD_AT] = header

    def take_clients(self, sources: "SocketAddresses", count: int) -> None:
        """Write into the first headers where their packets came from."""
        host = self._client_host4 if sources.is_ipv4 else self._client_host16
        host[:count] = sources.host[:count]
        self._client_port[:count] = sources.port[:count]

    def give_clients(self, destinations: "SocketAddresses", slots: Indexes) -> None:
        """Write where to the packets of these slots go, into the first of ``destinations``."""
        host = self._client_host4 if destinations.is_ipv4 else self._client_host16
        destinations.host[: len(slots)] = host[slots]
        destinations.port[: len(slots)] = self._client_port[slots]

    def pointers(self, indexes: Indexes, offset: int) -> Pointers:
        """Where these slots are in memory."""
        return (self._address + offset + indexes * _SLOT_BYTES).astype(np.uintp)

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Fill some of a slot."""
        begin = index * _SLOT_BYTES + offset
        self._memory[begin : begin + len(data)] = data

    def read(self, index: int, offset: int, length: int) -> bytes:
        """A copy of some of a slot."""
        begin = index * _SLOT_BYTES + offset
        return bytes(self._memory[begin : begin + length])


def _zeros_on_huge_pages(size: int) -> npt.NDArray[np.uint8]:
    """Zeros where the kernel, and this process, find many slots by one entry of the TLB: 6 % of all that a packet costs."""
    memory = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without huge pages has none to give.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    begin = -whole.ctypes.data % _HUGE_PAGE_BYTES
    return whole[begin : begin + size]


class SocketAddresses:
    """So many ``struct sockaddr_in`` or ``sockaddr_in6`` of one family, and views of them."""

    def __init__(self, family: int, count: int) -> None:
        self.is_ipv4 = family == 4
        self.length = _SOCKADDR_BYTES[family]
        self.bytes: npt.NDArray[np.uint8] = np.zeros((count, self.length), np.uint8)
        self._column("u2", 0)[:] = socket.AF_INET if self.is_ipv4 else socket.AF_INET6
        self.port = self._column("u2", 2)
        self.host = self._column("u4", 4) if self.is_ipv4 else self._column("V16", 8)
        self.whole = self._column(f"V{self.length}", 0)
        self.pointers: Pointers = (
            self.bytes.ctypes.data + np.arange(count, dtype=np.intp) * self.length
        ).astype(np.uintp)

    def _column(self, dtype: str, offset: int) -> npt.NDArray[Any]:
        return np.ndarray((len(self.bytes),), dtype, self.bytes.data, offset, (self.length,))

    def get(self, index: int) -> Address:
        """Read one; a scope is left out."""
        return Address(self.host[index].tobytes(), int.from_bytes(self.port[index].tobytes(), "big"))

    def put(self, index: int, address: Address) -> bytes:
        """Write one; returns it as it stands."""
        self.bytes[index, 2:4] = np.frombuffer(address.port.to_bytes(2, "big"), np.uint8)
        at = 4 if self.is_ipv4 else 8
        self.bytes[index, at : at + len(address.host)] = np.frombuffer(address.host, np.uint8)
        return bytes(self.bytes[index].data)


_SOCKADDR_BYTES = {4: 16, 6: 28}
_IOVEC = np.dtype([("base", np.uintp), ("length", np.uintp)])
_MESSAGE = np.dtype(  # struct mmsghdr
    [
        ("name", np.uintp),
        ("name_length", np.uint32),
        ("", "V4"),
        ("iovecs", np.uintp),
        ("iovec_count", np.uintp),
        ("control", np.uintp),
        ("control_length", np.uintp),
        ("flags", np.int32),
        ("", "V4"),
        ("length", np.uint32),
        ("", "V4"),
    ]
)
_LENGTH_AT = 56
_CONTROL = np.dtype(  # struct cmsghdr with one value, padded
    [("length", np.uintp), ("level", np.int32), ("kind", np.int32), ("segment", np.uint16), ("", "V6")]
)
_CONTROL_LENGTH = 18
_SOL_UDP, _UDP_SEGMENT = 17, 103
_MAX_TRAIN = 64  # UDP_MAX_SEGMENTS
_MAX_TRAIN_BYTES = 65_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
for _call in (_libc.recvmsg, _libc.sendmsg):
    _call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    _call.restype = ctypes.c_ssize_t

# File descriptor, first message, how many; returns how many, or -1 with errno.
_Many = Callable[[int, int, int], int]


class SystemCalls(NamedTuple):
    """How batches come and go."""

    receive: _Many
    send: _Many


def _receive_many(fd: int, messages: int, count: int) -> int:
    return int(_libc.recvmmsg(fd, messages, count, socket.MSG_DONTWAIT, None))


def _send_many(fd: int, messages: int, count: int) -> int:
    return int(_libc.sendmmsg(fd, messages, count, socket.MSG_DONTWAIT))


def _each(call: Any) -> _Many:
    def many(fd: int, messages: int, count: int) -> int:
        for number in range(count):
            message = messages + number * _MESSAGE.itemsize
            length = call(fd, message, socket.MSG_DONTWAIT)
            if length < 0:
                return number or -1
            ctypes.c_uint32.from_address(message + _LENGTH_AT).value = length
        return count

    return many


MANY_A_CALL: Final = SystemCalls(_receive_many, _send_many)
ONE_A_CALL: Final = SystemCalls(_each(_libc.recvmsg), _each(_libc.sendmsg))


def find_system_calls(calls: SystemCalls = MANY_A_CALL) -> SystemCalls:
    """Those for many datagrams, or, where a kernel or a sandbox lacks them, those for one."""
    for call in calls:
        if call(-1, 0, 0) < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            return ONE_A_CALL
    return calls


class Receiver:
    """Receives batches into slots, at that offset. ``sources`` and ``lengths`` are of the last batch."""

    def __init__(self, calls: SystemCalls, slots: Slots, offset: int, family: int) -> None:
        self._receive = calls.receive
        self.sources = SocketAddresses(family, BATCH)
        self._iovecs = np.zeros(BATCH, _IOVEC)
        self._iovecs["base"] = slots.pointers(np.arange(BATCH), offset)
        self._iovecs["length"] = _SLOT_BYTES - PAYLOAD_AT + (PAYLOAD_AT - offset)
        self._messages = np.zeros(BATCH, _MESSAGE)
        self._messages["name"] = self.sources.pointers
        self._messages["name_length"] = self.sources.length
        self._messages["iovecs"] = self._iovecs.ctypes.data + np.arange(BATCH) * _IOVEC.itemsize
        self._messages["iovec_count"] = 1
        self._address = self._messages.ctypes.data
        self._length = self._messages["length"]

    def receive(self, fd: int, count: int = BATCH) -> int:
        """How many came, 0 if none waits. What the kernel first tells of a packet that was sent is passed over."""
        received = self._receive(fd, self._address, count)
        if received < 0 and ctypes.get_errno() != errno.EAGAIN:
            received = self._receive(fd, self._address, count)
        return max(0, received)

    def lengths(self, count: int) -> Lengths:
        """Bytes that each of so many has, at most one more than what is taken."""
        return self._length[:count].astype(np.int64)


# What a socket tells of a packet that was sent before, at the expense of the next one.
_OF_AN_EARLIER_PACKET = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO, errno.EMSGSIZE}
)


class Failure(NamedTuple):
    """A datagram that was not sent: its place in what was to be sent, and why."""

    place: int
    errno: int


class Sender:
    """Sends datagrams out of slots."""

    def __init__(self, calls: SystemCalls) -> None:
        self._send = calls.send
        self._iovecs = np.zeros(BATCH, _IOVEC)
        self._controls = np.zeros(BATCH, _CONTROL)
        self._controls["length"] = _CONTROL_LENGTH
        self._controls["level"], self._controls["kind"] = _SOL_UDP, _UDP_SEGMENT
        self._messages = np.zeros(BATCH, _MESSAGE)
        self._address = self._messages.ctypes.data
        self._iovecs_address = self._iovecs.ctypes.data
        self._control_pointers = self._controls.ctypes.data + np.arange(BATCH) * _CONTROL.itemsize
        # Set when a train is refused as such: this kernel, or the device, cannot cut them.
        self._cuts_trains = True

    def send(
        self,
        fd: int,
        slots: Slots,
        indexes: Indexes,
        offset: int,
        lengths: Lengths,
        destinations: Pointers,
        sockaddr_length: int,
        starts: Indexes | None = None,
    ) -> list[Failure]:
        """Send these slots, from ``offset`` on, in that order.

        destinations: pointers to a socket address for each. starts: places at which a train begins, 0 the first of them;
        all of a train have one destination, and one length but for the last, which may be shorter. None: no trains.
        """
        count = len(indexes)
        self._iovecs["base"][:count] = slots.pointers(indexes, offset)
        self._iovecs["length"][:count] = lengths
        every = np.arange(count)
        if starts is None or not self._cuts_trains:
            starts = every
        failures = []
        for number, error in self._send_messages(fd, starts, count, lengths, destinations, sockaddr_length):
            begin = int(starts[number])
            end = int(starts[number + 1]) if number + 1 < len(starts) else count
            if end - begin == 1:
                failures.append(Failure(begin, error))
                continue
            if error in (errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                self._cuts_trains = False
            alone = every[begin:end]
            again = self._send_messages(fd, alone, end, lengths, destinations, sockaddr_length)
            failures += [Failure(int(alone[place]), error) for place, error in again]
        return failures

    def _send_messages(
        self,
        fd: int,
        starts: Indexes,
        end: int,
        lengths: Lengths,
        destinations: Pointers,
        sockaddr_length: int,
    ) -> list[tuple[int, int]]:
        """Numbers of messages that failed, with errno."""
        count = len(starts)
        messages = self._messages[:count]
        messages["name"] = destinations[starts]
        messages["name_length"] = sockaddr_length
        messages["iovecs"] = self._iovecs_address + starts * _IOVEC.itemsize
        sizes = _sizes(starts, end)
        messages["iovec_count"] = sizes
        are_trains = sizes > 1
        messages["control"] = np.where(are_trains, self._control_pointers[:count], 0)
        messages["control_length"] = np.where(are_trains, _CONTROL.itemsize, 0)
        self._controls["segment"][:count] = lengths[starts]
        return self._submit(fd, count)

    def _submit(self, fd: int, count: int) -> list[tuple[int, int]]:
        failures: list[tuple[int, int]] = []
        done, is_again = 0, False
        while done < count:
            sent = self._send(fd, self._address + done * _MESSAGE.itemsize, count - done)
            if sent > 0:
                done, is_again = done + sent, False
                continue
            error = ctypes.get_errno()
            if error == errno.EINTR:
                continue
            if error in _OF_AN_EARLIER_PACKET and not is_again:
                is_again = True
                continue
            failures.append((done, error))
            done, is_again = done + 1, False
        return failures


def _sizes(starts: Indexes, end: int) -> Indexes:
    """From each start to the next one, or to the end."""
    ends = np.empty_like(starts)
    ends[:-1] = starts[1:]
    ends[-1] = end
    return ends - starts


def train_starts(destinations: npt.NDArray[Any], lengths: Lengths) -> Indexes:
    """Where trains begin among datagrams in the order in which they are to leave."""
    count = len(lengths)
    breaks = np.empty(count, np.bool_)
    breaks[0] = True
    breaks[1:] = (destinations[1:] != destinations[:-1]) | (lengths[1:] != lengths[:-1])
    starts = breaks.nonzero()[0]
    longest = np.minimum(_MAX_TRAIN, _MAX_TRAIN_BYTES // lengths[starts])
    sizes = _sizes(starts, count)
    if (sizes <= longest).all():
        return starts
    return np.concatenate(
        [
            np.arange(start, start + size, most)
            for start, size, most in zip(starts, sizes, longest, strict=True)
        ]
    )
