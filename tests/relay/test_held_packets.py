"""What was held of unknown clients, as it leaves by the fleet sockets: in its turn, with its header, and counted twice."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from relay.core.recall import Recall
from relay.dataplane import userspace
from tests.relay.network import (
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    POLICY,
    RTP,
    VIP_V4,
    VIP_V6,
    Call,
    check,
    spp,
)
from tests.relay.test_batches import NOW, Path
from wire.address import Address
from wire.flow_record import FlowRecord
from wire.spp import HEADER_BYTES

HOME = CALL.transceiver
# Of sizes that would be sorted into trains.
PACKETS = [
    RTP.ljust(size, bytes((number,))) for number, size in enumerate((40, 80, 40, 1200, 80, 80, 40, 40))
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=[pytest.param(0, id="together"), pytest.param(10_000, id="one by one")])
def path(request: pytest.FixtureRequest, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(userspace, "_FEW", request.param)
    return Path(stack, has_cache=True)


def recall_of(path: Path) -> Recall:
    assert path.core.recall is not None
    return path.core.recall


def finds(path: Path, call: Call = CALL, client: Address = CLIENT_V4, vip: Address = VIP_V4) -> list[bytes]:
    """The cache does; what is sent to the transceiver."""
    before = len(path.calls.sent)
    recall_of(path).receive_found(FlowRecord(client, vip, call.transceiver, call.tag), NOW)
    path.path.send_held()
    return [each.datagram for each in path.calls.sent[before:] if each.destination == call.transceiver]


def test_held_packets_leave_in_their_order_and_before_any_other(path: Path) -> None:
    assert path.from_clients(*((packet, CLIENT_V4) for packet in PACKETS)) == []
    assert path.counted() == {"hold": 8}
    assert finds(path) == [spp(CLIENT_V4, VIP_V4)]
    assert path.counted() == {"hold": 8}, "a question is no packet"
    sent = path.from_fleet((spp(CLIENT_V4, VIP_V4), HOME))
    assert [each[:3] for each in sent] == [
        (path.fleet[0].fileno(), HOME, spp(CLIENT_V4, VIP_V4, packet)) for packet in PACKETS
    ]
    sent = path.from_clients((RTP, CLIENT_V4))
    assert [each.datagram for each in sent] == [spp(CLIENT_V4, VIP_V4, RTP)]
    assert path.counted() == {"hold": 8, "forward_flow": 9, "confirm_flow": 1}
    assert path.counters.gauges()["bytes_up"] == sum(map(len, [*PACKETS, RTP]))


def test_held_packets_leave_before_what_follows_the_check_of_their_client(path: Path) -> None:
    """All in one batch; the check itself came later than they did."""
    sent = path.from_clients(
        *((data, CLIENT_V4) for data in (PACKETS[0], PACKETS[1], check(CALL), PACKETS[3]))
    )
    assert [each.datagram[HEADER_BYTES:] for each in sent][:2] == PACKETS[:2]
    assert [each.datagram[HEADER_BYTES:] for each in sent][2:] in (
        [check(CALL), PACKETS[3]],
        [PACKETS[3], check(CALL)],
    )
    assert path.counted() == {"hold": 2, "forward_stun": 1, "forward_flow": 3}


@pytest.mark.parametrize(
    ("client", "vip", "vip_index", "call", "way"),
    [
        (CLIENT_V4, VIP_V4, 0, CALL, 0),
        (CLIENT_V4, VIP_V4, 0, CALL_V6, 1),
        (CLIENT_V6, VIP_V6, 1, CALL, 0),
        (CLIENT_V6, VIP_V6, 1, CALL_V6, 1),
    ],
    ids=["4 to 4", "4 to 6", "6 to 4", "6 to 6"],
)
def test_they_leave_by_the_socket_of_the_transceiver_s_family(
    path: Path, client: Address, vip: Address, vip_index: int, call: Call, way: int
) -> None:
    path.from_clients((CLIENT_HELLO, client), vip_index=vip_index)
    assert finds(path, call, client, vip) == [spp(client, vip)]
    sent = path.from_fleet((spp(client, vip), call.transceiver))
    assert [each[:3] for each in sent] == [
        (path.fleet[way].fileno(), call.transceiver, spp(client, vip, CLIENT_HELLO))
    ]


def test_clients_of_several_transceivers_leave_together(path: Path) -> None:
    clients = [Address(bytes((198, 51, 100, number)), 40000) for number in range(1, 201)]
    for client in clients:
        path.from_clients((RTP, client), (CLIENT_HELLO, client))
    for number, client in enumerate(clients):
        finds(path, (CALL, OTHER_CALL)[number % 2], client)
    for call, own in ((CALL, clients[::2]), (OTHER_CALL, clients[1::2])):
        sent = path.from_fleet(*((spp(client, VIP_V4), call.transceiver) for client in own))
        for client in own:
            header = spp(client, VIP_V4)
            mine = [s.datagram[HEADER_BYTES:] for s in sent if s.datagram.startswith(header)]
            assert mine == [RTP, CLIENT_HELLO]
        assert {each.destination for each in sent} == {call.transceiver}
        assert len(sent) == 200


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (errno.EMSGSIZE, "drop_send_oversize"),
        (errno.ENOBUFS, "drop_send_full"),
        (errno.ENETUNREACH, "drop_send_failed"),
    ],
)
def test_what_the_kernel_refuses_is_counted_as_any_other_packet(path: Path, error: int, verdict: str) -> None:
    path.from_clients((RTP, CLIENT_V4))
    finds(path)
    path.calls.refuse = lambda destination, datagrams: error
    assert path.from_fleet((spp(CLIENT_V4, VIP_V4), HOME)) == []
    assert path.counted() == {"hold": 1, "confirm_flow": 1, verdict: 1}


def test_transceiver_of_a_family_that_the_fleet_has_no_socket_for(stack: ExitStack) -> None:
    path = Path(stack, fleet=(4,), has_cache=True)
    path.from_clients((RTP, CLIENT_V4))
    assert finds(path, CALL_V6) == []
    recall_of(path).handle_timer(NOW + 0.1)
    recall_of(path).handle_timer(NOW + 0.31)
    path.path.send_held()
    assert path.counted() == {"hold": 1, "drop_unknown_flow": 1}


def test_what_is_not_found_is_dropped_and_counted(path: Path) -> None:
    path.from_clients((RTP, CLIENT_V4), (RTP, CLIENT_V4), (RTP, OTHER_CLIENT_V4))
    recall_of(path).receive_not_found(FlowRecord(CLIENT_V4, VIP_V4, HOME, "").name, NOW)
    path.path.send_held()
    assert path.counted() == {"hold": 3, "drop_unknown_flow": 2}
    assert path.counters.gauges()["bytes_up"] == 0


def test_many_departures_take_several_batches(path: Path) -> None:
    clients = [Address(bytes((198, 51, 100, 1 + number % 250)), 40000 + number) for number in range(600)]
    for client in clients:
        path.from_clients((RTP, client), (RTP, client), (RTP, client))
    recall_of(path).handle_timer(NOW + POLICY.contest_s)
    path.path.send_held()
    counted = path.counted()
    assert counted["hold"] == counted["drop_unknown_flow"] == 1800
