"""The data path without BPF: batches of datagrams between sockets, as the core decides.

Packets that an assured flow tells all about are decided together; on each of the others the core decides. Then all of a
batch leave, each flow's in the order in which they came, those to one transceiver in trains, and before them what was held
of clients that were unknown. With two sockets a VIP, what
a flood fills is apart from where calls wait, and a worker that is behind leaves out packets of unknown clients.
"""

import errno
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relay.core.forwarding import RelayCore
from relay.core.known_flows import KnownFlows
from relay.core.recall import Departure
from relay.core.verdict import FlowEvent, Verdict
from relay.dataplane.batches import (
    BATCH,
    HEADER_AT,
    PAYLOAD_AT,
    Failure,
    Indexes,
    Lengths,
    Receiver,
    Sender,
    Slots,
    SocketAddresses,
    SystemCalls,
    find_system_calls,
    train_starts,
)
from relay.dataplane.counters import WorkerCounters
from wire.spp import HEADER_BYTES, MAGIC, encode_header

Verdicts = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

# So few packets are decided one by one as quickly.
_FEW = 3
# Packets of unknown clients a turn, about 1 ms of a worker's time, in which others' packets wait.
_UNKNOWN_A_TURN = 32
# Packets a turn of a socket that media and checks share.
_MIXED_TURN = 64
# Batches of a queue in which a worker is behind, before other sockets have their turn.
_CATCH_UP_BATCHES = 2
# A queue that is fuller will soon lose packets, and does not ask whose.
_BEHIND_SHARE = 0.25
_SO_MEMINFO = 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("II")  # what is queued; room (linux/sock_diag.h)
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
_ERROR_BYTES = 512
_EXTENDED_ERROR = struct.Struct("IB")  # errno, who tells (sock_extended_err, linux/errqueue.h)
_OF_ICMP = (2, 3)  # of IPv4, of IPv6
_SIZE_BITS = 12

_FAILURES = {
    errno.EAGAIN: Verdict.DROP_SEND_FULL,
    errno.ENOBUFS: Verdict.DROP_SEND_FULL,
    errno.ENOMEM: Verdict.DROP_SEND_FULL,
    errno.EMSGSIZE: Verdict.DROP_SEND_OVERSIZE,
}


def _family(sock: socket.socket) -> int:
    return 4 if sock.family == socket.AF_INET else 6


class UserspaceDataPath:
    """Moves datagrams between sockets as the core decides.

    public: one socket a VIP, in the order of ``RelayPolicy.vips``. fleet: at most one socket an address family.
    checks: none, or one a VIP for all that is neither DTLS nor RTP.
    """

    def __init__(
        self,
        core: RelayCore,
        counters: WorkerCounters,
        public: Sequence[socket.socket],
        fleet: Sequence[socket.socket],
        *,
        checks: Sequence[socket.socket] = (),
        calls: SystemCalls | None = None,
    ) -> None:
        worker = _Worker(core, counters, calls or find_system_calls())
        up, down = _ToFleet(worker, fleet), _ToClients(worker, public)
        self._held = held = _HeldPackets(worker, up)
        # Those first whose packets are of calls.
        self._entrances: dict[socket.socket, _Entrance] = {
            sock: _FromFleet(worker, sock, down, held) for sock in fleet
        }
        turn = BATCH if checks else _MIXED_TURN
        for index, sock in enumerate(public):
            self._entrances[sock] = _FromClients(worker, sock, up, held, index, turn)
        for index, sock in enumerate(checks):
            self._entrances[sock] = _FromClients(worker, sock, up, held, index, _UNKNOWN_A_TURN)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """In the order in which they are to have their turns."""
        return tuple(self._entrances)

    def receive(self, sock: socket.socket, now: float) -> int:
        """Take a turn's packets from a socket; how many there were, 0 if it is empty."""
        return self._entrances[sock].receive(now)

    def send_held(self) -> None:
        """Send what leaves, though no packet has come: what findings and time have decided on."""
        self._held.send()


class _Worker(NamedTuple):
    """What all ways in and out of a worker share."""

    core: RelayCore
    counters: WorkerCounters
    calls: SystemCalls


def _count(counters: WorkerCounters, verdicts: Verdicts, lengths: Lengths, *, is_up: bool) -> None:
    counts = np.bincount(verdicts, minlength=len(Verdict))
    forwarded = int(lengths[verdicts <= Verdict.FORWARD_CLIENT].sum())
    counters.count_batch(counts, forwarded, is_up=is_up)


class _Entrance(ABC):
    """A socket that packets come by, with slots for a batch of them. ``offset``: where in a slot they are received."""

    def __init__(self, worker: _Worker, sock: socket.socket, offset: int, held: "_HeldPackets") -> None:
        core = worker.core
        self._core = core
        self._socket = sock
        self._fd = sock.fileno()
        self._counters = worker.counters
        self._slots = Slots()
        self._receiver = Receiver(worker.calls, self._slots, offset, _family(sock))
        self._flows = core.flows.assured
        self._known_flows = KnownFlows(core.flows, is_shared=core.shares_flows)
        self._held = held

    @abstractmethod
    def receive(self, now: float) -> int:
        """See UserspaceDataPath."""

    def _count(self, verdicts: Verdicts, lengths: Lengths, *, is_up: bool) -> None:
        _count(self._counters, verdicts, lengths, is_up=is_up)


class _FromClients(_Entrance):
    """A public socket. ``turn``: how many packets are taken at once, as long as the worker is not behind."""

    def __init__(
        self,
        worker: _Worker,
        sock: socket.socket,
        exit_: "_ToFleet",
        held: "_HeldPackets",
        vip_index: int,
        turn: int,
    ) -> None:
        super().__init__(worker, sock, PAYLOAD_AT, held)
        self._exit = exit_
        self._vip_index = vip_index
        self._turn = turn
        self._slots.set_vip(worker.core.vips[vip_index])

    def receive(self, now: float) -> int:
        """See UserspaceDataPath. A worker that is behind decides on a turn's unknown clients, and leaves out others."""
        count = self._receiver.receive(self._fd, self._turn)
        if not count:
            return 0
        if count < self._turn or not self._is_behind():
            self._forward(count, now, count)
            return count
        self._forward(count, now, _UNKNOWN_A_TURN)
        for _ in range(_CATCH_UP_BATCHES):
            more = self._receiver.receive(self._fd)
            self._forward(more, now, 0)
            count += more
            if more < BATCH:
                break
        return count

    def _is_behind(self) -> bool:
        queued, room = _MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return bool(queued > room * _BEHIND_SHARE)

    def _forward(self, count: int, now: float, most_unknown: int) -> None:
        if not count:
            return
        slots = self._slots
        slots.take_clients(self._receiver.sources, count)
        lengths = self._receiver.lengths(count)
        verdicts = np.full(count, Verdict.DROP_OVERLOAD, np.uint8)
        numbers = np.full(count, -1, np.int64)
        names = slots.name[:count].tolist()
        rows = self._flows.find(names)
        left = np.ones(count, np.bool_)
        if count > _FEW:
            known, transceivers = self._known_flows.forward_up(rows, slots.first_byte[:count], lengths, now)
            verdicts[known] = Verdict.FORWARD_FLOW
            numbers[known] = transceivers
            left = ~known
        if most_unknown < count:
            left[(rows < 0).nonzero()[0][most_unknown:]] = False
        # Whose order is to be kept: of unknown clients, the first packet's place stands for the flow.
        firsts: dict[bytes, int] = {}
        for index in left.nonzero()[0].tolist():
            if rows[index] < 0:
                rows[index] = ~firsts.setdefault(names[index], index)
            client = self._receiver.sources.get(index)
            datagram = slots.read(index, PAYLOAD_AT, int(lengths[index]))
            verdict, transceiver, _ = self._core.receive_from_client(datagram, client, self._vip_index, now)
            verdicts[index] = verdict
            if transceiver is not None:
                numbers[index] = self._core.flows.transceivers.number(transceiver)
        # Before those that came later, of which a check may have made the flow.
        self._held.send()
        self._exit.send(slots, numbers, lengths, rows, verdicts)
        self._count(verdicts, lengths, is_up=True)


class _FromFleet(_Entrance):
    """A fleet socket."""

    def __init__(
        self, worker: _Worker, sock: socket.socket, exit_: "_ToClients", held: "_HeldPackets"
    ) -> None:
        super().__init__(worker, sock, HEADER_AT, held)
        self._exit = exit_
        self._addresses = _TransceiverAddresses(worker.core, _family(sock))
        name, level = (
            (_IP_RECVERR, socket.IPPROTO_IP) if _family(sock) == 4 else (_IPV6_RECVERR, socket.IPPROTO_IPV6)
        )
        sock.setsockopt(level, name, 1)

    def receive(self, now: float) -> int:
        """See UserspaceDataPath."""
        count = self._receiver.receive(self._fd)
        if not count:
            self._read_errors()
            return 0
        slots = self._slots
        lengths = self._receiver.lengths(count) - HEADER_BYTES
        verdicts = np.zeros(count, np.uint8)
        vips = np.full(count, -1, np.int64)
        left: Sequence[int] = range(count)
        if count > _FEW:
            senders = self._addresses.numbers(self._receiver.sources, count)
            known, known_vips = self._known_flows.forward_down(
                self._flows.find(slots.name[:count].tolist()),
                senders,
                slots.first_byte[:count],
                np.where(slots.magic[:count] == MAGIC, lengths, 0),
                now,
            )
            verdicts[known] = Verdict.FORWARD_CLIENT
            vips[known] = known_vips
            left = (~known).nonzero()[0].tolist()
        for index in left:
            datagram = slots.read(index, HEADER_AT, HEADER_BYTES + int(lengths[index]))
            source = self._receiver.sources.get(index)
            verdict, _, vips[index] = self._core.receive_from_fleet(datagram, source, now)
            verdicts[index] = verdict
        self._held.send()
        self._exit.send(slots, vips, lengths, verdicts)
        self._count(verdicts, lengths, is_up=False)
        return count

    def _read_errors(self) -> None:
        """What ICMP told of packets to transceivers; unread it would wake the worker for ever."""
        try:
            while True:
                flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                for _, _, told in self._socket.recvmsg(0, _ERROR_BYTES, flags)[1]:
                    error, origin = _EXTENDED_ERROR.unpack_from(told)
                    if origin in _OF_ICMP and error != errno.EMSGSIZE:
                        self._core.events[FlowEvent.TRANSCEIVER_UNREACHABLE] += 1
        except OSError:
            return


class _TransceiverAddresses:
    """Socket addresses of transceivers by their numbers, of one family; filled anew when a number changes hands."""

    def __init__(self, core: RelayCore, family: int) -> None:
        self._transceivers = core.flows.transceivers
        self._family = family
        self._changes = -1
        self.is_ours: npt.NDArray[np.bool_] = np.zeros(1, np.bool_)
        self.addresses = SocketAddresses(family, 1)
        self._number_of: dict[bytes, int] = {}

    def refresh(self) -> None:
        """Follow what transceivers are known."""
        if self._changes == self._transceivers.changes:
            return
        self._changes = self._transceivers.changes
        room = len(self._transceivers.addresses)
        if room > len(self.is_ours):
            self.addresses = SocketAddresses(self._family, 2 * room)
            self.is_ours = np.zeros(2 * room, np.bool_)
        self._number_of.clear()
        for address, number in self._transceivers.numbers.items():
            self.is_ours[number] = address.family == self._family
            if self.is_ours[number]:
                self._number_of[self.addresses.put(number, address)] = number

    def numbers(self, sources: SocketAddresses, count: int) -> Numbers:
        """Those of the first so many sources, -1 for one that is no transceiver's."""
        self.refresh()
        number_of = self._number_of.get
        return np.array([number_of(source, -1) for source in sources.whole[:count].tolist()], np.int64)


class _ToFleet:
    """The fleet sockets, as a way out."""

    def __init__(self, worker: _Worker, fleet: Sequence[socket.socket]) -> None:
        self._ways = [
            (sock.fileno(), _TransceiverAddresses(worker.core, _family(sock)), Sender(worker.calls))
            for sock in fleet
        ]

    def send(
        self, slots: Slots, numbers: Numbers, lengths: Lengths, flows: Indexes, verdicts: Verdicts
    ) -> None:
        """Send a batch: each slot to the transceiver of that number, if it has one, with its header.

        flows: equal for packets whose order is to be kept. verdicts: those of packets that could not be sent are set.
        """
        sendable = numbers >= 0
        for fd, ways, sender in self._ways:
            ways.refresh()
            here = (sendable & ways.is_ours[numbers]).nonzero()[0]
            if not len(here):
                continue
            sendable[here] = False
            here = here[_trains_first(numbers[here], lengths[here], flows[here])]
            sizes, to = lengths[here] + HEADER_BYTES, numbers[here]
            starts = train_starts(to, sizes)
            pointers = ways.addresses.pointers[to]
            failures = sender.send(fd, slots, here, HEADER_AT, sizes, pointers, ways.addresses.length, starts)
            _note_failures(failures, here, verdicts)
        verdicts[sendable] = Verdict.DROP_SEND_FAILED


class _HeldPackets:
    """Packets of clients that were unknown, on their way out; and questions to transceivers."""

    def __init__(self, worker: _Worker, exit_: _ToFleet) -> None:
        self._core = worker.core
        self._counters = worker.counters
        self._exit = exit_
        self._slots: Slots | None = None

    def send(self) -> None:
        """Send all that is to leave now, and count what had been held."""
        recall = self._core.recall
        if recall is None or not recall.has_departures:
            return
        departures = recall.take_departures()
        for begin in range(0, len(departures), BATCH):
            self._send_batch(departures[begin : begin + BATCH])

    def _send_batch(self, departures: Sequence[Departure]) -> None:
        if self._slots is None:
            self._slots = Slots()
        count = len(departures)
        numbers = np.full(count, -1, np.int64)
        lengths = np.zeros(count, np.int64)
        flows = np.zeros(count, np.intp)
        verdicts = np.full(count, Verdict.DROP_UNKNOWN_FLOW, np.uint8)
        firsts: dict[bytes, int] = {}
        for index, (key, datagram, transceiver) in enumerate(departures):
            lengths[index] = len(datagram)
            header = encode_header(*key)
            flows[index] = firsts.setdefault(header, index)
            if transceiver is not None:
                verdicts[index] = Verdict.FORWARD_FLOW
                numbers[index] = self._core.flows.transceivers.number(transceiver)
                self._slots.write(index, HEADER_AT, header + datagram)
        self._exit.send(self._slots, numbers, lengths, flows, verdicts)
        # A question is no packet.
        are_packets = lengths > 0
        _count(self._counters, verdicts[are_packets], lengths[are_packets], is_up=True)


class _ToClients:
    """The public sockets, as a way out: one for each VIP."""

    def __init__(self, worker: _Worker, public: Sequence[socket.socket]) -> None:
        self._ways = [
            (sock.fileno(), SocketAddresses(_family(sock), BATCH), Sender(worker.calls)) for sock in public
        ]

    def send(self, slots: Slots, vips: Numbers, lengths: Lengths, verdicts: Verdicts) -> None:
        """Send a batch: each slot's payload to the client in its header, from the VIP of that index, if it has one."""
        for vip, (fd, addresses, sender) in enumerate(self._ways):
            here = (vips == vip).nonzero()[0]
            if not len(here):
                continue
            slots.give_clients(addresses, here)
            failures = sender.send(
                fd, slots, here, PAYLOAD_AT, lengths[here], addresses.pointers[: len(here)], addresses.length
            )
            _note_failures(failures, here, verdicts)


def _trains_first(numbers: Numbers, sizes: Lengths, flows: Indexes) -> Indexes:
    """An order in which packets of one transceiver and size follow each other, and each flow's keep theirs."""
    together = numbers << _SIZE_BITS | sizes
    if (sizes != sizes[0]).any():
        together |= _turns(sizes, flows) << 32 + _SIZE_BITS
    return together.argsort(kind="stable")


def _turns(sizes: Lengths, flows: Indexes) -> Numbers:
    """How often each packet's flow has changed its size before: none may overtake one of an earlier turn."""
    by_flow = flows.argsort(kind="stable")
    sizes, flows = sizes[by_flow], flows[by_flow]
    is_first = np.empty(len(flows), np.bool_)
    is_first[0] = True
    is_first[1:] = flows[1:] != flows[:-1]
    changes = np.zeros(len(flows), np.int64)
    changes[1:] = ~is_first[1:] & (sizes[1:] != sizes[:-1])
    changes = changes.cumsum()
    before_flow = np.maximum.accumulate(np.where(is_first, changes, 0))
    turns = np.empty(len(flows), np.int64)
    turns[by_flow] = changes - before_flow
    return turns


def _note_failures(failures: list[Failure], here: Indexes, verdicts: Verdicts) -> None:
    for failure in failures:
        verdicts[here[failure.place]] = _FAILURES.get(failure.errno, Verdict.DROP_SEND_FAILED)
