"""The line between a relay's processes and the agent that speaks with Redis: a SOCK_SEQPACKET pair for each.

A message is one datagram: its kind, then entries of one size. Neither side ever waits: what does not fit into the socket's
queue is not said, and told again with the next refresh. Both ends read the other's bytes as anybody's.

    kind   from    entries
    tell   relay   flow records, 62 bytes: assured flows, new or still alive
    ask    relay   flow names, 36 bytes: who has this client?
    found  agent   flow name, Found 1 byte, target 26 bytes (zeros but for HIT)
    again  agent   none: tell everything once more, Redis may have lost it
"""

import fcntl
import select
import socket
import termios
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from struct import Struct
from typing import NamedTuple

from wire.errors import WireError, WireFault
from wire.flow_record import RECORD_BYTES, TARGET_BYTES, FlowRecord
from wire.spp import FLOW_NAME_BYTES

_TELL, _ASK, _FOUND, _AGAIN = b"T", b"A", b"F", b"R"
_INT = Struct("i")
_FOUND_BYTES = FLOW_NAME_BYTES + 1 + TARGET_BYTES
# 31 KB: a socket's default queue takes six of them.
MAX_ENTRIES = 500
_MAX_MESSAGE_BYTES = 1 + MAX_ENTRIES * max(RECORD_BYTES, _FOUND_BYTES)
# Messages that one call reads, so that nobody else has to wait for long: the agent takes 10 ms for 1000 flows.
_MESSAGES_AT_ONCE = 2


class Found(IntEnum):
    """What the cache says of a flow. UNAVAILABLE: Redis cannot be asked now; FORGED: what is there was not sealed for it."""

    MISS = 0
    HIT = 1
    UNAVAILABLE = 2
    FORGED = 3


class Finding(NamedTuple):
    """The answer to one question: ``record`` is the flow's with HIT, else None."""

    name: bytes
    found: Found
    record: FlowRecord | None = None


def open_line() -> tuple[socket.socket, socket.socket]:
    """Both ends, non-blocking: the relay's and the agent's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


class RelayLine:
    """The end of a worker, or of the supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """For epoll."""
        return self._socket.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether nobody has the other end any more: the supervisor and the agent are gone."""
        return _is_hung_up(self._socket)

    def tell(self, records: Iterable[bytes]) -> int:
        """Tell of assured flows, packed as ``FlowRecord.pack``; how many could not be told now."""
        return _send_all(self._socket, _TELL, records)

    def ask(self, names: Iterable[bytes]) -> int:
        """Ask who has these flows; how many could not be asked now."""
        return _send_all(self._socket, _ASK, names)

    def receive(self) -> tuple[list[Finding], bool]:
        """What the agent has found, and whether it wants everything told again."""
        findings: list[Finding] = []
        again = False
        for kind, body in _receive(self._socket):
            if kind == _AGAIN:
                again = True
            elif kind == _FOUND:
                findings += (_unpack_finding(entry) for entry in _split(body, _FOUND_BYTES))
        return findings, again


class AgentLine:
    """The agent's end of one line."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._again_is_unread = False

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    @property
    def is_closed(self) -> bool:
        """Whether nobody has the other end any more, or somebody has shut it down: nothing will come."""
        return _is_hung_up(self._socket, select.POLLRDHUP)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def answer(self, findings: Sequence[Finding]) -> int:
        """Answer questions; how many answers could not be given."""
        return _send_all(self._socket, _FOUND, map(_pack_finding, findings))

    def want_everything(self) -> bool:
        """Have everything told again; False if the relay does not read now: of these, no more than one waits for a reader."""
        if self._again_is_unread and _has_unread(self._socket):
            return False
        self._again_is_unread = _send(self._socket, _AGAIN)
        return self._again_is_unread

    def receive_untrusted(self) -> tuple[list[FlowRecord], list[bytes]]:
        """(flows told, names asked). Raises WireError (RECORD_MALFORMED) on anything else."""
        told: list[FlowRecord] = []
        asked: list[bytes] = []
        for kind, body in _receive(self._socket):
            # Somebody lives there, and reads.
            self._again_is_unread = False
            if kind == _TELL:
                told += map(FlowRecord.unpack_untrusted, _split(body, RECORD_BYTES))
            elif kind == _ASK:
                asked += _split(body, FLOW_NAME_BYTES)
            else:
                raise WireError(WireFault.RECORD_MALFORMED, f"no message of a relay is of kind {kind!r}")
        return told, asked


def _is_hung_up(sock: socket.socket, events: int = 0) -> bool:
    # An empty message reads as an end does; anybody may send one.
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(0))


def _has_unread(sock: socket.socket) -> bool:
    """Whether something sent was not read yet; unix(7): SIOCOUTQ, which is TIOCOUTQ."""
    (unread,) = _INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))
    return bool(unread)


def _pack_finding(finding: Finding) -> bytes:
    target = finding.record.pack()[FLOW_NAME_BYTES:] if finding.record else bytes(TARGET_BYTES)
    return finding.name + bytes((finding.found,)) + target


def _unpack_finding(entry: bytes) -> Finding:
    name, found = entry[:FLOW_NAME_BYTES], Found(entry[FLOW_NAME_BYTES])
    if found is not Found.HIT:
        return Finding(name, found)
    return Finding(name, found, FlowRecord.unpack_untrusted(name + entry[FLOW_NAME_BYTES + 1 :]))


def _split(body: bytes, size: int) -> list[bytes]:
    if len(body) % size:
        raise WireError(WireFault.RECORD_MALFORMED, f"{len(body)} bytes are no whole number of entries")
    return [body[start : start + size] for start in range(0, len(body), size)]


def _send_all(sock: socket.socket, kind: bytes, entries: Iterable[bytes]) -> int:
    entries = iter(entries)
    unsaid = 0
    while batch := list(islice(entries, MAX_ENTRIES)):
        if unsaid or not _send(sock, kind + b"".join(batch)):
            unsaid += len(batch)
    return unsaid


def _send(sock: socket.socket, message: bytes) -> bool:
    try:
        sock.send(message)
    except OSError:  # the queue is full, or the other side is gone
        return False
    return True


def _receive(sock: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(_MESSAGES_AT_ONCE):
        try:
            message = sock.recv(_MAX_MESSAGE_BYTES)
        except OSError:  # empty, or the other side is gone
            return
        if not message:
            return
        yield message[:1], message[1:]
