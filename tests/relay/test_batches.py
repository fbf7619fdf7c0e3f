"""Batches through the userspace data path: each packet as if it had come alone, and every flow in its order.

Packets come from and go to ``canned.CannedCalls``, as the loopback interface has none of these addresses.
"""

import ctypes
import errno
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.forwarding import RelayCore
from relay.core.verdict import Verdict
from relay.dataplane import userspace
from relay.dataplane.batches import BATCH, MANY_A_CALL, ONE_A_CALL, SystemCalls, find_system_calls
from relay.dataplane.counters import WorkerCounters, create_counters_fd
from relay.dataplane.userspace import UserspaceDataPath
from tests.relay.canned import CannedCalls, Sent, pack_sockaddr
from tests.relay.harness import MemoryStore, Relay
from tests.relay.network import (
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    KEYS,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    POLICY,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    UNIX_S,
    VIP_V4,
    Call,
    answer,
    check,
    spp,
    stun,
)
from tests.relay.packets import ROWS, PacketRow
from wire.address import Address

NOW = 1000.0
FAMILIES = (4, 6, 4)
MEDIA = b"\x80" + bytes(range(99))


class Path:
    """A data path of POLICY's three VIPs with a fleet socket a family, over canned calls."""

    def __init__(
        self,
        stack: ExitStack,
        *,
        store: MemoryStore | None = None,
        fleet: tuple[int, ...] = (4, 6),
        has_cache: bool = False,
    ) -> None:
        self.calls = CannedCalls()
        self.public = [stack.enter_context(udp(family)) for family in FAMILIES]
        self.checks = [stack.enter_context(udp(family)) for family in FAMILIES]
        self.fleet = [stack.enter_context(udp(family)) for family in fleet]
        fd = create_counters_fd()
        stack.callback(os.close, fd)
        self.counters = WorkerCounters(fd)
        stack.callback(self.counters.close)
        self.core = RelayCore(POLICY, KEYS, unix_s=UNIX_S, store=store, has_cache=has_cache)
        self.path = UserspaceDataPath(
            self.core,
            self.counters,
            self.public,
            self.fleet,
            checks=self.checks,
            calls=self.calls.system_calls,
        )

    def from_clients(
        self, *packets: tuple[bytes, Address], vip_index: int = 0, now: float = NOW
    ) -> list[Sent]:
        """Deliver a batch to a VIP; what left."""
        return self.deliver(self.public[vip_index], list(packets), now)

    def from_fleet(self, *packets: tuple[bytes, Address], now: float = NOW) -> list[Sent]:
        """Deliver a batch of one family to the fleet socket of the first one's; what left."""
        sock = self.fleet[0 if packets[0][1].family == 4 else 1]
        return self.deliver(sock, list(packets), now)

    def deliver(self, sock: socket.socket, packets: list[tuple[bytes, Address]], now: float) -> list[Sent]:
        before = len(self.calls.sent)
        self.calls.arrived[sock.fileno()].extend(packets)
        while self.path.receive(sock, now):
            pass
        return self.calls.sent[before:]

    def connect(self, call: Call = CALL, client: Address = CLIENT_V4, vip_index: int = 0) -> None:
        """A check, then DTLS both ways."""
        self.from_clients((check(call), client), vip_index=vip_index)
        self.from_clients((CLIENT_HELLO, client), vip_index=vip_index)
        vip = POLICY.vips[vip_index].address
        self.from_fleet((spp(client, vip, SERVER_HELLO), call.transceiver))

    def counted(self) -> dict[str, int]:
        return {label: count for label, count in self.counters.verdicts().items() if count}


def udp(family: int) -> socket.socket:
    return socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=[pytest.param(0, id="together"), pytest.param(10_000, id="one by one")])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to decide, for batches of any size."""
    monkeypatch.setattr(userspace, "_FEW", request.param)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.side}: {row.description}") for row in ROWS])
def test_packet(stack: ExitStack, row: PacketRow) -> None:
    path = Path(stack)
    if row.known_flow != "none":
        path.connect(row.call, row.client, row.vip_index)
    if row.known_flow == "provisional":
        flow = next(iter(path.core.flows))
        path.core.flows.remove(flow.key)
        path.from_clients((check(row.call), row.client), vip_index=row.vip_index)
    before = path.counters.verdicts()
    if row.side == "public":
        sent = path.from_clients((row.datagram, row.source), vip_index=row.vip_index)
        leaves_by = path.fleet[0 if row.destination is None or row.destination.family == 4 else 1]
    else:
        sent = path.from_fleet((row.datagram, row.source))
        leaves_by = path.public[row.vip_index]
    assert path.counters.verdicts() == {**before, row.verdict.label: before[row.verdict.label] + 1}
    if row.forwarded is None or row.destination is None:
        assert sent == []
    else:
        assert [each[:3] for each in sent] == [(leaves_by.fileno(), row.destination, row.forwarded)]


# a batch decides as its packets would one by one

CLIENTS = [Address.parse(f"198.51.100.{host}:40000") for host in (7, 8, 9)]
CALLS = [CALL, OTHER_CALL, RESTARTED_CALL]
CHECKS = [check(call) for call in CALLS]
UP = [
    *CHECKS,
    CLIENT_HELLO,
    RTP,
    MEDIA,
    b"",
    b"\x10",
    stun(message_type=0x0011),
    RTP.ljust(2048),
    RTP.ljust(2049),
]
DOWN = [SERVER_HELLO, RTP, answer(CALL), b"", bytes.fromhex("15fefd 0001000000000007 0004 01020304")]
PACKETS = st.one_of(
    st.tuples(st.just("up"), st.sampled_from(CLIENTS), st.sampled_from(UP), st.just(CALL)),
    st.tuples(st.just("down"), st.sampled_from(CLIENTS), st.sampled_from(DOWN), st.sampled_from(CALLS)),
    st.tuples(st.just("connect"), st.sampled_from(CLIENTS), st.just(b""), st.sampled_from(CALLS)),
)
BATCHES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.02, 1.5, 6.0, 61.0]), st.lists(PACKETS, max_size=12)), max_size=6
)
Step = tuple[str, Address, bytes, Call]


def state_of(relay: RelayCore) -> list[tuple[object, ...]]:
    """Flows with all that decisions go by, and their counts."""
    return sorted(
        (f.key, f.transceiver, f.ufrag_tag, f.assured, f.released, f.last_seen, f.down_seen_at, f.counts)
        for f in relay.flows
    )


def runs(steps: list[Step]) -> Iterator[tuple[str, list[Step]]]:
    """What can be one batch: packets in a row that go one way."""
    run: list[Step] = []
    for step in steps:
        if run and (run[0][0] != step[0] or step[0] == "connect"):
            yield run[0][0], run
            run = []
        run.append(step)
    if run:
        yield run[0][0], run


@settings(deadline=None, max_examples=300)
@given(BATCHES, st.booleans())
def test_batch_is_decided_as_its_packets_would_be_one_by_one(
    batches: list[tuple[float, list[Step]]], is_shared: bool
) -> None:
    with ExitStack() as stack, patch.object(userspace, "_FEW", 0):
        alone = Relay(MemoryStore() if is_shared else None)
        path = Path(stack, store=MemoryStore() if is_shared else None)
        verdicts: Counter[str] = Counter()
        for seconds, steps in batches:
            alone.let_pass(seconds)
            path.core.handle_timer(alone.now, UNIX_S + alone.now - NOW)
            for way, run in runs(steps):
                if way == "connect":
                    _, client, _, call = run[0]
                    run = [("up", client, check(call), call), ("up", client, CLIENT_HELLO, call)]
                    decide_alike(alone, path, "up", run, verdicts)
                    decide_alike(alone, path, "down", [("down", client, SERVER_HELLO, call)], verdicts)
                else:
                    decide_alike(alone, path, way, run, verdicts)
            assert state_of(path.core) == state_of(alone.core)
        assert path.counted() == {label: count for label, count in verdicts.items() if count}
        assert path.core.events == alone.core.events


def decide_alike(alone: Relay, path: Path, way: str, run: list[Step], verdicts: Counter[str]) -> None:
    expected = []
    for _, client, payload, call in run:
        if way == "up":
            outcome = alone.client_sends(payload, client)
            forwarded = spp(client, VIP_V4, payload)
        else:
            outcome = alone.transceiver_sends(payload, call.transceiver, client)
            forwarded = payload
        verdicts[outcome.verdict.label] += 1
        if outcome.destination is not None:
            expected.append((outcome.destination, forwarded))
    if way == "up":
        sent = path.from_clients(*((payload, client) for _, client, payload, _ in run), now=alone.now)
    else:
        packets = ((spp(client, VIP_V4, payload), call.transceiver) for _, client, payload, call in run)
        sent = path.from_fleet(*packets, now=alone.now)
    assert Counter((each.destination, each.datagram) for each in sent) == Counter(expected)


# order, and trains


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([40, 80, 80, 110, 1200, "check"])),
        max_size=2 * BATCH + 7,
    )
)
def test_each_flow_keeps_its_order_and_nothing_is_lost_or_doubled(
    packets: list[tuple[int, int | str]],
) -> None:
    """Flows 0 to 3 are assured, two at each transceiver; 4 is provisional and 5 unknown."""
    with ExitStack() as stack:
        path = Path(stack)
        clients = [Address(CLIENT_V4.host, 1000 + flow) for flow in range(6)]
        calls = [CALL, CALL, OTHER_CALL, OTHER_CALL, OTHER_CALL]
        for client, call in zip(clients[:4], calls, strict=False):
            path.connect(call, client)
        path.from_clients((check(OTHER_CALL), clients[4]))
        arriving, expected = [], defaultdict(list)
        for number, (flow, size) in enumerate(packets):
            if isinstance(size, str):
                datagram = stun(message_type=0x0011)[:8] + number.to_bytes(12, "big")
            else:
                datagram = (b"\x80" + number.to_bytes(4, "big")).ljust(size, b"p")
            arriving.append((datagram, clients[flow]))
            if flow < 5:
                expected[clients[flow]].append(datagram)
        sent = path.from_clients(*arriving)
        left = defaultdict(list)
        for each in sent:
            header, datagram = each.datagram[:38], each.datagram[38:]
            client = next(client for client in clients if header == spp(client, VIP_V4))
            assert each.destination == calls[clients.index(client)].transceiver
            left[client].append(datagram)
        assert left == expected


def test_equal_packets_to_one_transceiver_leave_in_one_message(stack: ExitStack) -> None:
    path = Path(stack)
    clients = [Address(CLIENT_V4.host, 1000 + flow) for flow in range(40)]
    for number, client in enumerate(clients):
        path.connect((CALL, OTHER_CALL)[number % 2], client)
    sent = path.from_clients(*((MEDIA, client) for client in clients))
    trains = Counter((each.message, each.destination) for each in sent)
    assert sorted(trains.values()) == [20, 20]


@pytest.mark.parametrize(
    ("count", "size", "trains"),
    [
        pytest.param(64, 100, [64], id="64 segments"),
        pytest.param(65, 100, [64, 1], id="65"),
        pytest.param(200, 1200, [52, 52, 52, 44], id="65,000 bytes"),
        pytest.param(33, 2048, [31, 2], id="of 2048 bytes"),
    ],
)
def test_train_is_no_longer_than_the_kernel_takes(
    stack: ExitStack, count: int, size: int, trains: list[int]
) -> None:
    path = Path(stack)
    path.connect()
    sent = path.from_clients(*[(RTP.ljust(size), CLIENT_V4)] * count)
    assert list(Counter(each.message for each in sent).values()) == trains


def test_both_families_of_clients_and_transceivers_in_one_batch(stack: ExitStack) -> None:
    path = Path(stack)
    path.connect(CALL, CLIENT_V4)
    path.connect(CALL_V6, OTHER_CLIENT_V4)
    sent = path.from_clients(*[(MEDIA, CLIENT_V4), (MEDIA, OTHER_CLIENT_V4)] * 4)
    assert Counter((each.fd, each.destination) for each in sent) == {
        (path.fleet[0].fileno(), CALL.transceiver): 4,
        (path.fleet[1].fileno(), CALL_V6.transceiver): 4,
    }


def test_packets_for_clients_of_several_vips_leave_each_by_its_own(stack: ExitStack) -> None:
    path = Path(stack)
    path.connect(CALL, CLIENT_V4, 0)
    path.connect(CALL, CLIENT_V6, 1)
    path.connect(CALL, OTHER_CLIENT_V4, 2)
    clients = [CLIENT_V4, CLIENT_V6, OTHER_CLIENT_V4]
    packets = [
        (spp(client, POLICY.vips[index].address, MEDIA), CALL.transceiver)
        for index, client in enumerate(clients)
    ]
    sent = path.from_fleet(*packets * 3)
    assert Counter(each[:3] for each in sent) == {
        (path.public[index].fileno(), client, MEDIA): 3 for index, client in enumerate(clients)
    }


# what the kernel refuses

REFUSALS = [
    pytest.param(errno.EAGAIN, Verdict.DROP_SEND_FULL, id="EAGAIN"),
    pytest.param(errno.ENOBUFS, Verdict.DROP_SEND_FULL, id="ENOBUFS"),
    pytest.param(errno.EMSGSIZE, Verdict.DROP_SEND_OVERSIZE, id="EMSGSIZE"),
    pytest.param(errno.EHOSTUNREACH, Verdict.DROP_SEND_FAILED, id="EHOSTUNREACH"),
    pytest.param(errno.EPERM, Verdict.DROP_SEND_FAILED, id="EPERM, of a firewall"),
]


def connected_clients(path: Path, count: int) -> list[Address]:
    """Of CALL and OTHER_CALL in turns."""
    clients = [Address(CLIENT_V4.host, 1000 + flow) for flow in range(count)]
    for number, client in enumerate(clients):
        path.connect((CALL, OTHER_CALL)[number % 2], client)
    return clients


@pytest.mark.parametrize(("error", "verdict"), REFUSALS)
def test_transceiver_that_cannot_be_sent_to_holds_nobody_up(
    stack: ExitStack, error: int, verdict: Verdict
) -> None:
    path = Path(stack)
    clients = connected_clients(path, 10)
    before = path.counters.gauges()["bytes_up"]
    path.calls.refuse = lambda destination, _: error if destination == CALL.transceiver else 0
    sent = path.from_clients(*[(MEDIA, client) for client in clients])
    assert [each.destination for each in sent] == [OTHER_CALL.transceiver] * 5
    assert path.counted()[verdict.label] == 5
    assert path.counters.gauges()["bytes_up"] == before + 5 * len(MEDIA)


@pytest.mark.parametrize(("error", "verdict"), REFUSALS)
def test_client_that_cannot_be_sent_to_holds_nobody_up(
    stack: ExitStack, error: int, verdict: Verdict
) -> None:
    path = Path(stack)
    clients = connected_clients(path, 10)
    path.calls.refuse = lambda destination, _: error if destination == clients[4] else 0
    sent = path.from_fleet(*[(spp(client, VIP_V4, MEDIA), CALL.transceiver) for client in clients])
    assert [each.destination for each in sent] == [*clients[:4], *clients[5:]]
    assert path.counted()[verdict.label] == 1


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT])
def test_train_that_is_refused_as_such_leaves_as_single_packets(stack: ExitStack, error: int) -> None:
    path = Path(stack)
    clients = connected_clients(path, 20)
    path.calls.refuse = lambda _, datagrams: error if len(datagrams) > 1 else 0
    for _ in range(2):
        sent = path.from_clients(*[(MEDIA, client) for client in clients])
        assert len({each.message for each in sent}) == len(sent) == 20
    assert not {"drop_send_failed", "drop_send_oversize"} & path.counted().keys()


def test_error_of_an_earlier_packet_costs_no_later_one(stack: ExitStack) -> None:
    """A socket with IP_RECVERR tells of an ICMP error in place of sending."""
    path = Path(stack)
    clients = connected_clients(path, 10)
    pending = [errno.ECONNREFUSED]
    path.calls.refuse = lambda *_: pending.pop() if pending else 0
    assert len(path.from_clients(*[(MEDIA, client) for client in clients])) == 10


@pytest.mark.parametrize("most", [1, 3])
def test_kernel_that_takes_a_part_is_asked_again(stack: ExitStack, most: int) -> None:
    path = Path(stack)
    clients = connected_clients(path, 10)
    path.calls.most_a_call = most
    sent = path.from_fleet(*[(spp(client, VIP_V4, MEDIA), CALL.transceiver) for client in clients])
    assert [each.destination for each in sent] == clients


def test_transceiver_of_a_family_without_a_fleet_socket_is_counted(stack: ExitStack) -> None:
    path = Path(stack, fleet=(4,))
    path.from_clients((check(CALL_V6), CLIENT_V4))
    path.connect(CALL, OTHER_CLIENT_V4)
    sent = path.from_clients(*[(check(CALL_V6), CLIENT_V4), (MEDIA, OTHER_CLIENT_V4)] * 3)
    assert len(sent) == 3
    assert path.counted()["drop_send_failed"] == 4


# sources that loopback cannot have


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("scope", [0, 1])
def test_link_local_client_is_a_martian_with_a_scope_or_without(stack: ExitStack, scope: int) -> None:
    path = Path(stack)
    source = pack_sockaddr(Address.parse("[fe80::1]:40000"), scope=scope)
    path.calls.arrived[path.public[1].fileno()].append((RTP, source))
    path.path.receive(path.public[1], NOW)
    assert path.counted() == {"drop_martian": 1}


# other system calls


class Refused:
    """A system call that fails, as a sandbox has it."""

    def __init__(self, error: int) -> None:
        self.error = error

    def __call__(self, fd: int, messages: int, count: int) -> int:
        ctypes.set_errno(self.error)
        return -1


@pytest.mark.parametrize(
    ("error", "found"),
    [
        pytest.param(errno.ENOSYS, ONE_A_CALL, id="none such"),
        pytest.param(errno.EPERM, ONE_A_CALL, id="forbidden"),
        pytest.param(errno.EBADF, None, id="there"),
    ],
)
def test_calls_for_many_are_done_without_where_there_are_none(error: int, found: SystemCalls | None) -> None:
    calls = SystemCalls(Refused(error), Refused(error))
    assert find_system_calls(calls) is (found or calls)


def test_this_kernel_has_the_calls_for_many() -> None:
    assert find_system_calls() is MANY_A_CALL
