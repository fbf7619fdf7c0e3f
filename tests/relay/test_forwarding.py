"""Where packets go: the table of packets, then what a sequence of them does to a flow."""

from collections.abc import Callable

import pytest

from relay.core.forwarding import Outcome
from relay.core.verdict import FlowEvent, Verdict
from tests.relay.harness import Relay
from tests.relay.network import (
    BINDING_INDICATION,
    CALL,
    CLIENT_HELLO,
    CLIENT_V4,
    DTLS_ALERT,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    Call,
    answer,
    check,
    stun,
)
from tests.relay.packets import ROWS, PacketRow
from wire.address import Address

HOME, AWAY = CALL.transceiver, OTHER_CALL.transceiver


def make_known_flow(relay: Relay, row: PacketRow) -> None:
    if row.known_flow == "none":
        return
    client = row.client
    relay.connect(row.call, client, row.vip_index)
    if row.known_flow == "provisional":
        relay.core.flows.remove(relay.key_of(client, row.vip_index))
        relay.client_sends(check(row.call), client, row.vip_index)
    assert relay.flow_of(client, row.vip_index).assured is (row.known_flow == "assured")


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.side}: {row.description}") for row in ROWS])
def test_packet(row: PacketRow) -> None:
    relay = Relay()
    make_known_flow(relay, row)
    flows = len(relay.core.flows)
    if row.side == "public":
        outcome = relay.client_sends(row.datagram, row.source, row.vip_index)
    else:
        outcome = relay.core.receive_from_fleet(row.datagram, row.source, relay.now)
    assert outcome.verdict is row.verdict
    assert outcome.destination == row.destination
    leaves_from_vip = row.side == "fleet" and row.forwarded is not None
    assert outcome.vip_index == (row.vip_index if leaves_from_vip else -1)
    if row.verdict is not Verdict.FORWARD_STUN:
        assert len(relay.core.flows) == flows


def test_table_has_every_verdict_of_a_decision() -> None:
    of_the_socket = {Verdict.DROP_SEND_FAILED, Verdict.DROP_SEND_FULL, Verdict.DROP_SEND_OVERSIZE}
    of_a_flood = {Verdict.DROP_RATE_LIMITED, Verdict.DROP_OVERLOAD}
    of_xdp = {Verdict.HAND_UP, Verdict.DROP_FRAGMENT, Verdict.DROP_NO_WORKER}
    of_a_cache = {Verdict.HOLD, Verdict.DROP_HOLD_FULL, Verdict.CONFIRM_FLOW}
    assert {row.verdict for row in ROWS} == set(Verdict) - of_the_socket - of_a_flood - of_xdp - of_a_cache


def test_rows_of_the_table_say_what_forwarding_needs() -> None:
    assert len({(row.side, row.description) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.verdict.is_drop == (row.forwarded is None) == (row.destination is None), row.description


Packet = Callable[[Relay], Outcome]


def up(datagram: bytes, vip_index: int = 0) -> Packet:
    return lambda relay: relay.client_sends(datagram, vip_index=vip_index)


def down(
    payload: bytes, transceiver: Address = HOME, client: Address = CLIENT_V4, vip_index: int = 0
) -> Packet:
    return lambda relay: relay.transceiver_sends(payload, transceiver, client, vip_index)


@pytest.mark.parametrize(
    ("packets", "assured"),
    [
        pytest.param([], False, id="check alone"),
        pytest.param([down(answer(CALL))], False, id="check answered"),
        pytest.param([down(answer(CALL)), up(check(CALL)), down(answer(CALL))], False, id="check replayed"),
        pytest.param([up(CLIENT_HELLO)], False, id="DTLS up"),
        pytest.param([down(SERVER_HELLO)], False, id="DTLS down"),
        pytest.param([up(CLIENT_HELLO), down(answer(CALL))], False, id="DTLS up, STUN success down"),
        pytest.param([down(SERVER_HELLO), up(check(CALL))], False, id="DTLS down, check up"),
        pytest.param(
            [down(SERVER_HELLO), up(stun(message_type=BINDING_INDICATION))],
            False,
            id="DTLS down, indication up",
        ),
        pytest.param([down(SERVER_HELLO), up(b"\x10")], False, id="DTLS down, ZRTP dropped"),
        pytest.param(
            [up(CLIENT_HELLO), down(SERVER_HELLO, AWAY)], False, id="DTLS down from another transceiver"
        ),
        pytest.param(
            [up(CLIENT_HELLO), down(SERVER_HELLO, Address(HOME.host, HOME.port + 1))],
            False,
            id="DTLS down from another process of its transceiver",
        ),
        pytest.param(
            [up(CLIENT_HELLO), down(SERVER_HELLO, client=OTHER_CLIENT_V4)],
            False,
            id="DTLS down to another client",
        ),
        pytest.param([up(CLIENT_HELLO), down(SERVER_HELLO, vip_index=2)], False, id="DTLS down, other VIP"),
        pytest.param([up(CLIENT_HELLO, vip_index=2), down(SERVER_HELLO)], False, id="DTLS up, other VIP"),
        pytest.param([up(CLIENT_HELLO), down(SERVER_HELLO)], True, id="DTLS up, DTLS down"),
        pytest.param([down(SERVER_HELLO), up(CLIENT_HELLO)], True, id="DTLS down, DTLS up"),
        pytest.param([up(RTP), down(RTP)], True, id="RTP both ways"),
        pytest.param([up(CLIENT_HELLO), down(answer(CALL)), down(RTP)], True, id="DTLS up, later RTP down"),
    ],
)
def test_flow_is_assured_by_more_than_stun_both_ways(packets: list[Packet], assured: bool) -> None:
    relay = Relay()
    relay.client_sends(check(CALL))
    for packet in packets:
        packet(relay)
    assert relay.flow_of().assured is assured
    assert len(relay.core.flows.assured) == relay.count(FlowEvent.FLOW_ASSURED) == assured
    assert relay.told() == [(CLIENT_V4, CALL.tag, False)] * (1 + assured)  # as it was made, as it was assured


def test_downlink_from_another_transceiver_is_delivered_but_is_not_the_flow() -> None:
    relay = Relay()
    relay.connect()
    relay.now += 5
    outcome = relay.transceiver_sends(RTP, AWAY)
    assert outcome == (Verdict.FORWARD_CLIENT, CLIENT_V4, 0)
    flow = relay.flow_of()
    assert (flow.packets_down, flow.last_seen) == (1, 1000.0)


def test_flow_counts_payload_both_ways() -> None:
    relay = Relay()
    relay.connect()
    relay.client_sends(RTP)
    relay.transceiver_sends(answer(CALL), HOME)
    flow = relay.flow_of()
    assert (flow.packets_up, flow.bytes_up) == (3, len(check(CALL)) + len(CLIENT_HELLO) + len(RTP))
    assert (flow.packets_down, flow.bytes_down) == (2, len(SERVER_HELLO) + len(answer(CALL)))


def test_clients_of_one_address_on_two_vips_have_two_flows() -> None:
    relay = Relay()
    relay.connect(CALL)
    relay.connect(OTHER_CALL, vip_index=2)
    assert relay.client_sends(RTP).destination == HOME
    assert relay.client_sends(RTP, vip_index=2).destination == AWAY
    assert relay.count(FlowEvent.FLOW_CONTESTED) == 0


def test_newest_check_takes_a_provisional_flow() -> None:
    relay = Relay()
    relay.client_sends(check(CALL))
    relay.client_sends(CLIENT_HELLO)
    assert relay.client_sends(check(OTHER_CALL)).destination == AWAY
    assert relay.client_sends(CLIENT_HELLO).destination == AWAY
    assert len(relay.core.flows) == 1
    assert relay.count(FlowEvent.FLOW_CREATED) == 2
    assert relay.count(FlowEvent.FLOW_CONTESTED) == relay.count(FlowEvent.FLOW_EVICTED) == 0


def test_downlink_of_the_replaced_call_does_not_assure_the_new_flow() -> None:
    relay = Relay()
    relay.client_sends(check(CALL))
    relay.transceiver_sends(SERVER_HELLO, HOME)
    relay.client_sends(check(OTHER_CALL))
    relay.client_sends(CLIENT_HELLO)
    assert not relay.flow_of().assured


def test_stranger_with_a_call_of_his_own_does_not_pull_away_media() -> None:
    relay = Relay()
    flow = relay.connect()
    relay.notices()
    for second in range(1, 8):
        relay.let_pass(1)
        if second % 5 == 0:
            relay.client_sends(check(CALL))
        theirs = relay.client_sends(check(OTHER_CALL))
        assert theirs == (Verdict.FORWARD_STUN, AWAY, -1)
        assert relay.count(FlowEvent.FLOW_CONTESTED) == second
        assert relay.client_sends(RTP).destination == HOME
    assert relay.flow_of().created_at == flow.created_at
    assert relay.count(FlowEvent.FLOW_MOVED) == 0
    assert relay.notices() == []


def test_refused_check_does_not_contest() -> None:
    relay = Relay()
    relay.connect()
    relay.client_sends(check(OTHER_CALL, pwd=b"guess"))
    relay.let_pass(10)
    relay.client_sends(check(OTHER_CALL, pwd=b"guess"))
    assert relay.client_sends(RTP).destination == HOME
    assert relay.count(FlowEvent.FLOW_CONTESTED) == relay.count(FlowEvent.FLOW_MOVED) == 0


@pytest.mark.parametrize(
    ("ufrag_silent_s", "transceiver_silent_s", "last_from_transceiver", "moved"),
    [
        pytest.param(5.99, 5.99, RTP, False, id="just before contest_s"),
        pytest.param(6.0, 6.0, RTP, True, id="both silent for contest_s"),
        pytest.param(60.0, 0.02, RTP, False, id="a lost check while the transceiver talks"),
        pytest.param(1.0, 0.5, DTLS_ALERT, True, id="the transceiver said goodbye"),
    ],
)
def test_reused_address_moves_when_the_old_session_is_over(
    ufrag_silent_s: float, transceiver_silent_s: float, last_from_transceiver: bytes, moved: bool
) -> None:
    relay = Relay()
    old = relay.connect()
    relay.let_pass(3)
    relay.client_sends(check(CALL))
    relay.notices()
    relay.now += ufrag_silent_s - transceiver_silent_s
    relay.transceiver_sends(last_from_transceiver, HOME)
    relay.now += transceiver_silent_s
    relay.client_sends(RTP)  # media keeps no ufrag
    assert relay.client_sends(check(OTHER_CALL)).destination == AWAY
    assert relay.client_sends(CLIENT_HELLO).destination == (AWAY if moved else HOME)
    assert relay.count(FlowEvent.FLOW_MOVED) == moved
    assert relay.count(FlowEvent.FLOW_CONTESTED) == (not moved)
    told = [(notice.flow.is_same_session(old), notice.ended) for notice in relay.notices()]
    assert told == ([(True, True), (False, False)] if moved else [])
    assert relay.flow_of().assured is not moved


def test_session_that_talks_on_after_an_alert_is_not_over() -> None:
    relay = Relay()
    relay.connect()
    relay.transceiver_sends(DTLS_ALERT, HOME)
    relay.transceiver_sends(RTP, HOME)
    relay.client_sends(check(OTHER_CALL))
    assert relay.client_sends(RTP).destination == HOME


def test_moved_flow_is_assured_anew() -> None:
    relay = Relay()
    relay.connect()
    relay.let_pass(6)
    relay.client_sends(check(OTHER_CALL))
    relay.client_sends(CLIENT_HELLO)
    relay.transceiver_sends(SERVER_HELLO, AWAY)
    assert relay.told() == [
        *[(CLIENT_V4, CALL.tag, False)] * 2,
        (CLIENT_V4, CALL.tag, True),
        *[(CLIENT_V4, OTHER_CALL.tag, False)] * 2,
    ]


def test_check_of_a_provisional_flow_shows_its_ufrag_alive() -> None:
    relay = Relay()
    relay.client_sends(check(CALL))
    relay.let_pass(5)
    relay.client_sends(check(CALL))
    relay.client_sends(CLIENT_HELLO)
    relay.transceiver_sends(SERVER_HELLO, HOME)
    relay.let_pass(5)
    relay.client_sends(check(OTHER_CALL))
    assert relay.client_sends(RTP).destination == HOME


@pytest.mark.parametrize(
    ("silent_s", "holder"),
    [
        pytest.param(1, CALL, id="old ufrag still seen"),
        pytest.param(6, RESTARTED_CALL, id="old ufrag silent"),
    ],
)
def test_ice_restart_keeps_the_flow(silent_s: float, holder: Call) -> None:
    relay = Relay()
    flow = relay.connect()
    relay.notices()
    relay.let_pass(silent_s)
    assert relay.client_sends(check(RESTARTED_CALL)).destination == HOME
    assert relay.flow_of().created_at == flow.created_at
    assert relay.flow_of().assured
    assert relay.flow_of().ufrag_tag == holder.tag
    assert relay.count(FlowEvent.FLOW_CONTESTED) == relay.count(FlowEvent.FLOW_MOVED) == 0
    # whoever mirrors flows must adopt them under the ufrag that will be checked
    told = [notice.flow.ufrag_tag for notice in relay.notices()]
    assert told == ([RESTARTED_CALL.tag] if holder is RESTARTED_CALL else [])


def test_restarted_ufrag_holds_the_flow_once_the_old_one_is_silent() -> None:
    relay = Relay()
    relay.connect()
    relay.let_pass(6)
    relay.client_sends(check(RESTARTED_CALL))
    relay.let_pass(5)
    relay.client_sends(check(OTHER_CALL))
    assert relay.count(FlowEvent.FLOW_CONTESTED) == 1
    assert relay.client_sends(RTP).destination == HOME


def test_check_of_the_assured_flow_is_not_judged_again() -> None:
    """The transceiver does it; a call keeps its ufrag for longer than max_session_s if need be."""
    relay = Relay()
    relay.connect()
    for _ in range(3):
        relay.let_pass(50)
        relay.client_sends(RTP)
    relay.core.handle_timer(relay.now, relay.policy.max_session_s + 2e9)
    assert relay.client_sends(check(CALL)).verdict is Verdict.FORWARD_STUN
    assert relay.client_sends(check(RESTARTED_CALL)).verdict is Verdict.DROP_UFRAG_EXPIRED


def test_silent_flows_end_and_are_told_of() -> None:
    relay = Relay()
    relay.connect()
    relay.client_sends(check(OTHER_CALL), OTHER_CLIENT_V4)
    relay.notices()
    relay.let_pass(10)
    assert relay.find_flow(OTHER_CLIENT_V4) is None
    assert relay.count(FlowEvent.FLOW_EXPIRED) == 1
    assert relay.told() == [(OTHER_CLIENT_V4, OTHER_CALL.tag, True)]
    relay.let_pass(49.9)
    assert relay.find_flow() is not None
    relay.let_pass(0.1)
    assert relay.find_flow() is None
    assert (relay.count(FlowEvent.FLOW_EXPIRED), relay.told()) == (2, [(CLIENT_V4, CALL.tag, True)])
    assert relay.client_sends(RTP).verdict is Verdict.DROP_UNKNOWN_FLOW


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(up(check(CALL)), id="check"),
        pytest.param(up(RTP), id="media up"),
        pytest.param(down(RTP), id="media down"),
        pytest.param(down(answer(CALL)), id="STUN down"),
    ],
)
@pytest.mark.parametrize(
    ("assured", "life_s"), [pytest.param(False, 10, id="provisional"), pytest.param(True, 60, id="assured")]
)
def test_any_packet_of_a_flow_keeps_it(packet: Packet, assured: bool, life_s: float) -> None:
    relay = Relay()
    relay.client_sends(check(CALL))
    if assured:
        relay.connect()
    relay.let_pass(life_s - 1)
    packet(relay)
    relay.let_pass(life_s - 1)
    assert relay.find_flow() is not None
    relay.let_pass(1)
    assert relay.find_flow() is None


def test_full_table_refuses_a_flow_and_still_carries_it() -> None:
    relay = Relay(max_assured_flows=1)
    relay.connect()
    refused = relay.connect(OTHER_CALL, OTHER_CLIENT_V4)
    assert not refused.assured
    assert relay.count(FlowEvent.FLOW_REFUSED) == 1
    assert relay.client_sends(RTP, OTHER_CLIENT_V4).destination == AWAY
    assert relay.transceiver_sends(RTP, AWAY, OTHER_CLIENT_V4).destination == OTHER_CLIENT_V4
    assert [client for client, _, _ in relay.told()] == [CLIENT_V4, CLIENT_V4, OTHER_CLIENT_V4]


def test_refused_flow_is_counted_once_and_not_its_packets() -> None:
    relay = Relay(max_assured_flows=1)
    relay.connect()
    relay.connect(OTHER_CALL, OTHER_CLIENT_V4)
    for _ in range(3):
        relay.client_sends(RTP, OTHER_CLIENT_V4)
    assert relay.count(FlowEvent.FLOW_REFUSED) == 1


def test_refused_flow_is_assured_when_there_is_room() -> None:
    relay = Relay(max_assured_flows=1)
    relay.connect()
    refused = relay.connect(OTHER_CALL, OTHER_CLIENT_V4)
    for _ in range(7):
        relay.let_pass(9)
        relay.client_sends(RTP, OTHER_CLIENT_V4)
    assert relay.find_flow() is None
    assert refused.assured
    assert relay.count(FlowEvent.FLOW_ASSURED) == 2


def test_oldest_flows_are_evicted_counted_and_told_of() -> None:
    relay = Relay(max_provisional_flows=2)
    for port in (1, 2, 3, 4):
        relay.client_sends(check(CALL), Address(CLIENT_V4.host, port))
    assert [flow.key.client.port for flow in relay.core.flows] == [3, 4]
    assert relay.count(FlowEvent.FLOW_EVICTED) == 2
    told = [(client.port, ended) for client, _, ended in relay.told()]
    assert told == [(1, False), (2, False), (1, True), (3, False), (2, True), (4, False)]


def test_flow_that_takes_the_place_of_a_provisional_one_is_told_of_alone() -> None:
    """Whoever mirrors flows writes the new one over the old one."""
    relay = Relay()
    relay.client_sends(check(CALL))
    relay.client_sends(check(OTHER_CALL))
    assert relay.told() == [(CLIENT_V4, CALL.tag, False), (CLIENT_V4, OTHER_CALL.tag, False)]
