"""Workers that share their flows by a store: any of them goes on with a client's packets, by the same rules.

Worker A makes a flow, the store has it, and then packets come to worker B, or to A again.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from relay.core.flow import Flow, FlowKey
from relay.core.forwarding import Outcome
from relay.core.verdict import FlowEvent, Verdict
from tests.relay.harness import MemoryStore, Relay
from tests.relay.network import (
    BINDING_INDICATION,
    CALL,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    DTLS_ALERT,
    FLEET_SOCKET_V4,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    VIP_V4,
    answer,
    check,
    stun,
)
from wire.address import Address

HOME, AWAY = CALL.transceiver, OTHER_CALL.transceiver
KEY = FlowKey(CLIENT_V4, VIP_V4)


class Workers:
    """Two workers over one store, with one clock; what they tell is stored after each step."""

    def __init__(self, **changes: Any) -> None:
        self.store = MemoryStore()
        self.a, self.b = (Relay(self.store, **changes) for _ in range(2))

    def settle(self) -> None:
        """Follow the notices, then write the flows that carried packets just now, as workers do."""
        for worker in (self.a, self.b):
            for notice in iter(worker.core.next_notice, None):
                self.store.note(notice)
                worker.core.flows.save(notice.flow)
            for flow in list(worker.core.flows):
                if flow.stored and flow.last_seen == worker.now:
                    self.store.write(flow)
                    worker.core.flows.save(flow)

    def let_pass(self, seconds: float) -> None:
        self.settle()
        for worker in (self.a, self.b):
            worker.let_pass(seconds)

    def make_flow(self, *, assured: bool = True) -> Flow:
        """A flow of CALL in worker A and the store."""
        if assured:
            self.a.connect()
        else:
            self.a.client_sends(check(CALL))
        self.settle()
        return self.a.flow_of()


Packet = Callable[[Relay], Outcome]


def up(datagram: bytes) -> Packet:
    return lambda relay: relay.client_sends(datagram)


def down(payload: bytes, transceiver: Address = HOME) -> Packet:
    return lambda relay: relay.transceiver_sends(payload, transceiver)


BOTH_STATES = [pytest.param(False, id="provisional"), pytest.param(True, id="assured")]


# going on with a flow


@pytest.mark.parametrize("assured", BOTH_STATES)
@pytest.mark.parametrize(
    ("packet", "verdict", "destination", "counted_up", "counted_down"),
    [
        pytest.param(up(RTP), Verdict.FORWARD_FLOW, HOME, 1, 0, id="RTP"),
        pytest.param(up(CLIENT_HELLO), Verdict.FORWARD_FLOW, HOME, 1, 0, id="DTLS"),
        pytest.param(up(check(CALL)), Verdict.FORWARD_STUN, HOME, 1, 0, id="its own check"),
        pytest.param(
            up(stun(message_type=BINDING_INDICATION)), Verdict.FORWARD_FLOW, HOME, 1, 0, id="indication"
        ),
        pytest.param(down(RTP), Verdict.FORWARD_CLIENT, CLIENT_V4, 0, 1, id="from its transceiver"),
        pytest.param(down(RTP, AWAY), Verdict.FORWARD_CLIENT, CLIENT_V4, 0, 0, id="from another transceiver"),
    ],
)
def test_packet_of_another_worker_s_flow_is_forwarded_and_counted_on(
    packet: Packet,
    verdict: Verdict,
    destination: Address,
    counted_up: int,
    counted_down: int,
    assured: bool,
) -> None:
    workers = Workers()
    before = workers.make_flow(assured=assured)
    outcome = packet(workers.b)
    assert (outcome.verdict, outcome.destination) == (verdict, destination)
    after = workers.b.flow_of()
    assert after is not before
    assert after.assured is assured
    assert after.packets_up == before.packets_up + counted_up
    assert after.packets_down == before.packets_down + counted_down
    assert (after.created_at, after.ufrag_tag) == (before.created_at, before.ufrag_tag)
    assert sum(workers.b.core.events) == 0, "nothing happened to the flow"
    assert workers.b.notices() == []


def test_flow_turns_assured_though_each_direction_came_to_another_worker() -> None:
    workers = Workers()
    workers.make_flow(assured=False)
    workers.a.client_sends(CLIENT_HELLO)
    workers.settle()
    workers.b.transceiver_sends(SERVER_HELLO, HOME)
    assert workers.b.flow_of().assured
    workers.settle()
    assert workers.store.flows[KEY].assured
    assert workers.b.count(FlowEvent.FLOW_ASSURED) == 1


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(lambda b: b.client_sends(RTP, OTHER_CLIENT_V4), id="other client"),
        pytest.param(lambda b: b.client_sends(RTP, Address(CLIENT_V4.host, 40001)), id="other port"),
        pytest.param(lambda b: b.client_sends(RTP, vip_index=2), id="other VIP"),
        pytest.param(lambda b: b.client_sends(RTP, CLIENT_V6, 1), id="other family"),
    ],
)
def test_packet_that_no_worker_has_a_flow_for_is_dropped(packet: Packet) -> None:
    workers = Workers()
    workers.make_flow()
    assert packet(workers.b).verdict is Verdict.DROP_UNKNOWN_FLOW
    assert len(workers.b.core.flows) == 0


def test_client_with_an_address_of_ours_is_reached_by_its_flow_alone() -> None:
    """On one machine: whether there is a flow must not depend on the worker that is asked."""
    fleet_host = Address(FLEET_SOCKET_V4.host, 41_000)
    workers = Workers(transceiver_networks=(ip_network("10.1.0.0/16"),))
    workers.a.connect(CALL, fleet_host)
    workers.settle()
    stranger = Address(FLEET_SOCKET_V4.host, 41_001)
    assert workers.b.transceiver_sends(RTP, HOME, fleet_host).verdict is Verdict.FORWARD_CLIENT
    assert workers.b.transceiver_sends(RTP, HOME, stranger).verdict is Verdict.DROP_SPP_CLIENT


# whom to believe, the own table or the store

CHANGES = [
    pytest.param({"transceiver": AWAY, "ufrag_tag": OTHER_CALL.tag}, AWAY, id="moved"),
    pytest.param({"ufrag_tag": RESTARTED_CALL.tag}, HOME, id="another ufrag"),
    pytest.param({"assured": False, "media_down": False}, HOME, id="made anew"),
]


@pytest.mark.parametrize(("change", "destination"), CHANGES)
def test_silent_flow_is_replaced_by_what_others_made_of_it(
    change: dict[str, Any], destination: Address
) -> None:
    workers = Workers()
    old = workers.make_flow()
    workers.let_pass(1)
    workers.store.flows[KEY] = replace(old, last_seen=workers.a.now, packets_up=77, **change)
    assert workers.a.client_sends(RTP).destination == destination
    flow = workers.a.flow_of()
    assert (flow.packets_up, flow.ufrag_tag) == (78, change.get("ufrag_tag", CALL.tag))
    assert flow.assured is change.get("assured", True)
    assert len(workers.a.core.flows) == 1
    assert workers.a.notices() == []


def test_silent_flow_that_others_ended_is_dropped() -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(1)
    del workers.store.flows[KEY]
    assert workers.a.client_sends(RTP).verdict is Verdict.DROP_UNKNOWN_FLOW
    assert len(workers.a.core.flows) == 0
    assert workers.a.notices() == []


def test_silent_flow_that_nobody_changed_is_kept() -> None:
    workers = Workers()
    flow = workers.make_flow()
    workers.let_pass(5)
    workers.a.client_sends(RTP)
    assert workers.a.flow_of().created_at == flow.created_at


@pytest.mark.parametrize("assured", BOTH_STATES)
def test_silent_flow_that_was_never_stored_is_kept(assured: bool) -> None:
    """The store is full: then a flow is the worker's that has it."""
    workers = Workers()
    flow = workers.make_flow(assured=assured)
    flow.stored = False
    workers.a.core.flows.save(flow)
    del workers.store.flows[KEY]
    workers.a.let_pass(5)
    assert workers.a.client_sends(RTP).destination == HOME
    assert workers.a.flow_of().created_at == flow.created_at


@pytest.mark.parametrize(
    ("silent_s", "reads"), [pytest.param(0.9, 0, id="fresh"), pytest.param(1.0, 1, id="silent for 1 s")]
)
@pytest.mark.parametrize("packet", [up(RTP), down(RTP)], ids=["RTP", "down"])
def test_store_is_not_asked_for_every_packet(packet: Packet, silent_s: float, reads: int) -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(silent_s)
    workers.store.reads = 0
    packet(workers.a)
    assert workers.store.reads == reads
    for _ in range(10):
        packet(workers.a)
    assert workers.store.reads == reads


def test_session_that_xdp_carries_is_not_given_away() -> None:
    """A spoofer's indications reach a worker and keep its copy of the flow fresh, while XDP alone sees that the session lives."""
    workers = Workers()
    workers.make_flow()
    for _ in range(10):
        workers.let_pass(0.9)
        carried = workers.store.flows[KEY]
        carried.last_seen = carried.ufrag_seen_at = carried.down_seen_at = workers.a.now
        assert workers.a.client_sends(stun(message_type=BINDING_INDICATION)).destination == HOME
        assert workers.a.client_sends(check(OTHER_CALL)).destination == AWAY
    assert workers.a.client_sends(RTP).destination == HOME
    assert workers.a.count(FlowEvent.FLOW_CONTESTED) == 10
    assert workers.a.count(FlowEvent.FLOW_MOVED) == 0


def test_recall_keeps_to_the_caps() -> None:
    workers = Workers(max_provisional_flows=2)
    ports = [40001, 40002, 40003]
    for port in ports:
        workers.a.client_sends(check(CALL), Address(CLIENT_V4.host, port))
        workers.settle()
    assert len(workers.store.flows) == 2, "one was evicted, and so ended"
    kept = replace(workers.store.flows[KEY._replace(client=Address(CLIENT_V4.host, 40003))])
    for port in ports:
        key = KEY._replace(client=Address(CLIENT_V4.host, port))
        workers.store.flows[key] = replace(kept, key=key)
        workers.b.client_sends(CLIENT_HELLO, key.client)
    assert [flow.key.client.port for flow in workers.b.core.flows] == ports[1:]


# ends


@pytest.mark.parametrize(
    ("assured", "life_s"), [pytest.param(False, 10, id="provisional"), pytest.param(True, 60, id="assured")]
)
def test_flow_that_another_worker_carries_on_leaves_the_table_in_silence(assured: bool, life_s: int) -> None:
    workers = Workers()
    workers.make_flow(assured=assured)
    for _ in range(life_s):
        workers.let_pass(1)
        workers.b.client_sends(RTP)
    assert workers.a.find_flow() is None
    assert workers.b.find_flow() is not None
    assert workers.a.count(FlowEvent.FLOW_EXPIRED) == 0
    workers.settle()
    assert KEY in workers.store.flows
    workers.let_pass(life_s)
    assert workers.b.count(FlowEvent.FLOW_EXPIRED) == 1
    assert workers.b.told() == [(CLIENT_V4, CALL.tag, True)]


def test_flow_that_nobody_carries_on_ends_and_is_told_of() -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(60)
    assert workers.a.count(FlowEvent.FLOW_EXPIRED) == 1
    assert workers.a.told() == [(CLIENT_V4, CALL.tag, True)]


def test_flow_that_ended_in_the_store_expires_like_any_other() -> None:
    workers = Workers()
    workers.make_flow()
    workers.settle()
    workers.store.flows.clear()
    workers.let_pass(60)
    assert workers.a.count(FlowEvent.FLOW_EXPIRED) == 1


# an assured flow is nobody else's, whichever worker is asked


@pytest.mark.parametrize(
    ("silent_s", "last_from_transceiver", "verdict"),
    [
        pytest.param(5.9, RTP, FlowEvent.FLOW_CONTESTED, id="just before contest_s"),
        pytest.param(6.0, RTP, FlowEvent.FLOW_MOVED, id="both silent for contest_s"),
        pytest.param(2.0, DTLS_ALERT, FlowEvent.FLOW_MOVED, id="the transceiver said goodbye"),
        pytest.param(2.0, answer(CALL), FlowEvent.FLOW_CONTESTED, id="an answer is a sign of life"),
    ],
)
def test_recalled_flow_is_contested_by_the_same_rules(
    silent_s: float, last_from_transceiver: bytes, verdict: FlowEvent
) -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(8)  # the ufrag alone has been silent for long
    workers.a.transceiver_sends(last_from_transceiver, HOME)
    workers.let_pass(silent_s)
    assert workers.b.client_sends(check(OTHER_CALL)).destination == AWAY
    moved = verdict is FlowEvent.FLOW_MOVED
    assert workers.b.client_sends(CLIENT_HELLO).destination == (AWAY if moved else HOME)
    assert workers.b.count(FlowEvent.FLOW_MOVED) == moved
    assert workers.b.count(FlowEvent.FLOW_CONTESTED) == (not moved)
    told = [(CLIENT_V4, CALL.tag, True), (CLIENT_V4, OTHER_CALL.tag, False)]
    assert workers.b.told() == (told if moved else [])


def test_recalled_flow_is_held_by_its_ufrag() -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(5)
    workers.a.client_sends(check(CALL))
    workers.let_pass(5)
    workers.b.client_sends(check(OTHER_CALL))
    assert workers.b.count(FlowEvent.FLOW_CONTESTED) == 1
    assert workers.b.client_sends(RTP).destination == HOME


def test_ice_restart_at_another_worker_keeps_the_flow() -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(6)
    assert workers.b.client_sends(check(RESTARTED_CALL)).destination == HOME
    workers.settle()
    stored = workers.store.flows[KEY]
    assert (stored.ufrag_tag, stored.assured) == (RESTARTED_CALL.tag, True)
    assert workers.a.client_sends(RTP).destination == HOME
    assert workers.a.flow_of().ufrag_tag == RESTARTED_CALL.tag


@pytest.mark.parametrize("packet", [up(RTP), up(check(CALL)), down(RTP)], ids=["RTP", "check", "down"])
def test_full_table_forwards_another_worker_s_flow_without_taking_it_up(packet: Packet) -> None:
    workers = Workers(max_assured_flows=1)
    workers.make_flow()
    other = workers.b.connect(OTHER_CALL, OTHER_CLIENT_V4)
    expected = packet(workers.a)
    workers.store.reads = 0
    for _ in range(3):
        assert packet(workers.b) == expected
    assert workers.store.reads == 3
    assert list(workers.b.core.flows) == [other]
