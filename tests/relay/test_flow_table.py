"""The flow table: lives to the tick, bounded in every direction, and what expiry costs."""

from collections import defaultdict
from typing import Any
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.core.flow import Flow, FlowKey
from relay.core.flow_table import FlowTable
from relay.core.policy import RelayPolicy
from relay.core.verdict import FlowEvent
from tests.relay.harness import Relay
from tests.relay.network import (
    CALL,
    CLIENT_HELLO,
    OTHER_CALL,
    POLICY,
    RESTARTED_CALL,
    SERVER_HELLO,
    VIP_V4,
    VIP_V6,
    Call,
    check,
)
from wire.address import Address

HOME = CALL.transceiver


def table_of(**caps: Any) -> FlowTable:
    return FlowTable(RelayPolicy(cluster_id=1, vips=POLICY.vips, transceiver_networks=(), **caps))


def key(client: str) -> FlowKey:
    return FlowKey(Address.parse(client), VIP_V6 if client.startswith("[") else VIP_V4)


def tag(ufrag: str) -> str:
    """As long as that of a sealed ufrag."""
    return f"{crc32(ufrag.encode()):08x}"


def put(table: FlowTable, client: str, now: float = 0, *, ufrag: str = "", assured: bool = False) -> Flow:
    """A flow of its own ufrag, unless one is named."""
    table.create(key(client), HOME, tag(ufrag or client), now)
    flow = table.get(key(client))
    assert flow is not None
    if assured:
        assert table.assure(flow)
    return flow


def clients(table: FlowTable) -> list[str]:
    return [str(flow.key.client) for flow in table]


@pytest.mark.parametrize(
    ("assured", "life_s"), [pytest.param(False, 10, id="provisional"), pytest.param(True, 60, id="assured")]
)
@pytest.mark.parametrize("touched_at", [100, 101, 109.5])
def test_life_after_the_last_packet(assured: bool, life_s: float, touched_at: float) -> None:
    table = table_of()
    flow = put(table, "198.51.100.7:1", 100, assured=assured)
    table.touch(flow, touched_at)
    assert table.expire(touched_at + life_s - 0.001) == []
    assert len(table) == 1
    assert table.expire(touched_at + life_s) == [flow]
    assert len(table) == 0
    assert table.get(flow.key) is None
    assert table.expire(1e9) == []


def test_lives_are_the_policy_s() -> None:
    table = table_of(provisional_s=1, assured_s=3)
    provisional, assured = put(table, "198.51.100.7:1"), put(table, "198.51.100.7:2", assured=True)
    assert [table.expire(now) for now in (0.9, 1, 2.9, 3)] == [[], [provisional], [], [assured]]


def test_flow_that_turned_assured_lives_on() -> None:
    table = table_of()
    flow = put(table, "198.51.100.7:1", 0)
    table.touch(flow, 9)
    table.assure(flow)
    assert table.expire(68.9) == []
    assert table.expire(69) == [flow]


def test_removed_flow_does_not_expire_and_its_successor_lives_its_own_life() -> None:
    table = table_of()
    put(table, "198.51.100.7:1", 0, assured=True)
    table.remove(key("198.51.100.7:1"))
    assert len(table) == 0
    flow = put(table, "198.51.100.7:1", 50, assured=True)
    assert table.expire(60) == []
    assert table.expire(110) == [flow]


def test_refreshed_flow_outlives_those_that_are_newer() -> None:
    table = table_of()
    flows = [put(table, f"198.51.100.7:{port}", port) for port in (1, 2, 3)]
    table.touch(flows[0], 4)
    assert table.expire(13) == flows[1:]
    assert clients(table) == ["198.51.100.7:1"]


PORTS = range(1, 7)


@pytest.mark.parametrize(
    ("caps", "others", "same_group", "ufrag"),
    [
        pytest.param(
            {"max_provisional_flows": 4},
            [],
            ["198.51.100.7:1", "198.51.100.8:1", "[2001:db8::1]:1", "198.51.100.9:1", "[2001:db8::2]:1"],
            "",
            id="total",
        ),
        pytest.param(
            {"max_provisional_per_prefix": 4},
            ["198.51.100.8:1", "[2001:db8::1]:1"],
            [f"198.51.100.7:{port}" for port in PORTS],
            "",
            id="IPv4 /32",
        ),
        pytest.param(
            {"max_provisional_per_prefix": 4},
            ["[2001:db8:0:1::7]:1", "198.51.100.7:1"],
            [f"[2001:db8::7:0:0:{port}]:1" for port in PORTS],
            "",
            id="IPv6 /64",
        ),
        pytest.param(
            {"max_provisional_per_prefix": 4, "ipv4_source_bits": 24},
            ["198.51.101.7:1", "[2001:db8::1]:1"],
            [f"198.51.100.{port}:1" for port in PORTS],
            "",
            id="IPv4 /24",
        ),
        pytest.param(
            {"max_provisional_per_prefix": 4, "ipv6_source_bits": 48},
            ["[2001:db8:1::7]:1", "198.51.100.7:1"],
            [f"[2001:db8:0:{port}::]:1" for port in PORTS],
            "",
            id="IPv6 /48",
        ),
        pytest.param(
            {"max_addresses_per_ufrag": 4},
            ["192.0.2.1:1", "192.0.2.2:1"],
            [f"198.51.100.{port}:1" for port in PORTS],
            "same",
            id="ufrag",
        ),
    ],
)
def test_at_a_cap_the_oldest_of_the_same_group_goes(
    caps: dict[str, int], others: list[str], same_group: list[str], ufrag: str
) -> None:
    table = table_of(**caps)
    for client in others:  # older than all of the group
        put(table, client)
    for client in same_group[:4]:
        assert table.create(key(client), HOME, tag(ufrag or client), 1) == []
    for number, client in enumerate(same_group[4:]):
        evicted = table.create(key(client), HOME, tag(ufrag or client), 2)
        assert [str(flow.key.client) for flow in evicted] == [same_group[number]]
    assert clients(table) == others + same_group[len(same_group) - 4 :]


def test_oldest_is_the_least_recently_refreshed() -> None:
    table = table_of(max_provisional_flows=2)
    first = put(table, "198.51.100.7:1")
    put(table, "198.51.100.8:1")
    table.touch(first, 1)
    put(table, "198.51.100.9:1", 2)
    assert clients(table) == ["198.51.100.7:1", "198.51.100.9:1"]


def test_one_eviction_makes_room_in_every_group_of_its_flow() -> None:
    table = table_of(max_provisional_flows=2, max_provisional_per_prefix=2, max_addresses_per_ufrag=2)
    for port in (1, 2):
        put(table, f"198.51.100.7:{port}", ufrag="same")
    assert len(table.create(key("198.51.100.7:3"), HOME, tag("same"), 1)) == 1


def test_replaced_flow_needs_no_room() -> None:
    table = table_of(max_provisional_flows=2)
    put(table, "198.51.100.7:1")
    put(table, "198.51.100.8:1")
    assert table.create(key("198.51.100.8:1"), HOME, "another", 1) == []
    assert len(table) == 2


def test_flood_evicts_no_assured_flow() -> None:
    table = table_of(max_provisional_flows=4, max_provisional_per_prefix=2, max_addresses_per_ufrag=2)
    assured = [put(table, f"198.51.100.7:{port}", assured=True) for port in (1, 2, 3)]
    for port in range(10, 60):
        put(table, f"198.51.100.7:{port}", 1, ufrag="198.51.100.7:1")
    assert list(table)[:3] == assured
    assert len(table) == 3 + 2


def test_full_assured_table_refuses() -> None:
    table = table_of(max_assured_flows=2)
    flows = [put(table, f"198.51.100.7:{port}") for port in (1, 2, 3)]
    assert [table.assure(flow) for flow in flows] == [True, True, False]
    assert (len(table.assured), len(table)) == (2, 3)
    assert not flows[2].assured
    assert table.get(flows[2].key) == flows[2]
    table.remove(flows[0].key)
    assert table.assure(flows[2])


CLIENTS = [
    Address.parse(text)
    for text in (
        *(f"198.51.100.7:{port}" for port in (1, 2, 3, 4)),
        *(f"198.51.100.8:{port}" for port in (1, 2)),
        "198.51.100.9:1",
    )
]
CALLS = [CALL, OTHER_CALL, RESTARTED_CALL]
CHECKS = {call.ufrag: check(call) for call in CALLS}
CAPS: dict[str, Any] = {
    "max_assured_flows": 3,
    "max_provisional_flows": 4,
    "max_provisional_per_prefix": 3,
    "max_addresses_per_ufrag": 2,
}
ANY_CLIENT, ANY_CALL = st.sampled_from(CLIENTS), st.sampled_from(CALLS)


class FlowsOfARelay(RuleBasedStateMachine):
    """Any traffic of a few clients and calls, with a model of the assured flows beside the relay."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay(**CAPS)
        self.packet_at: dict[Address, float] = {}
        self.own_check_at: dict[Address, float] = {}
        self.down_at: dict[FlowKey, float] = {}
        self.assured: dict[Address, Flow] = {}
        self.mirror: dict[Address, Flow] = {}

    @rule(client=ANY_CLIENT, call=ANY_CALL)
    def check_arrives(self, client: Address, call: Call) -> None:
        flow = self.relay.find_flow(client)
        now = self.relay.now
        if flow is not None and flow.assured and flow.ufrag_tag != call.tag:
            silent = now - self.own_check_at[client] >= self.relay.policy.contest_s
            if flow.transceiver != call.transceiver:
                if silent and now - self.down_at.get(flow.key, 0.0) >= self.relay.policy.contest_s:
                    self.ends(client)
                else:
                    self.relay.client_sends(CHECKS[call.ufrag], client)
                    return
            elif not silent:
                self.packet_at[client] = now
                self.relay.client_sends(CHECKS[call.ufrag], client)
                return
        self.packet_at[client] = self.own_check_at[client] = now
        self.relay.client_sends(CHECKS[call.ufrag], client)

    @rule(client=ANY_CLIENT)
    def media_goes_up(self, client: Address) -> None:
        self.packet_at[client] = self.relay.now
        self.relay.client_sends(CLIENT_HELLO, client)
        self.note_assured(client)

    @rule(client=ANY_CLIENT, call=ANY_CALL)
    def media_comes_down(self, client: Address, call: Call) -> None:
        flow = self.relay.find_flow(client)
        if flow is not None and flow.transceiver == call.transceiver:
            self.packet_at[client] = self.down_at[flow.key] = self.relay.now
        self.relay.transceiver_sends(SERVER_HELLO, call.transceiver, client)
        self.note_assured(client)

    @rule(client=ANY_CLIENT, call=ANY_CALL)
    def call_connects(self, client: Address, call: Call) -> None:
        self.check_arrives(client, call)
        self.media_goes_up(client)
        self.media_comes_down(client, call)

    @rule(seconds=st.sampled_from([1.0, 5.0, 6.0, 9.0, 10.0, 59.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.relay.let_pass(seconds)
        for client in list(self.assured):
            if self.packet_at[client] + self.relay.policy.assured_s <= self.relay.now:
                self.ends(client)

    def note_assured(self, client: Address) -> None:
        flow = self.relay.find_flow(client)
        if flow is not None and flow.assured:
            self.assured[client] = flow

    def ends(self, client: Address) -> None:
        del self.assured[client]

    @invariant()
    def assured_flows_leave_by_silence_or_contest_alone(self) -> None:
        flows = {flow.key.client: flow for flow in self.relay.core.flows if flow.assured}
        assert flows.keys() == self.assured.keys()
        made = {client: flow.created_at for client, flow in self.assured.items()}
        assert {client: flow.created_at for client, flow in flows.items()} == made

    @invariant()
    def notices_mirror_the_flows(self) -> None:
        for flow, ended, _ in self.relay.notices():
            if ended:
                assert self.mirror.pop(flow.key.client).is_same_session(flow)
            else:
                replaced = self.mirror.get(flow.key.client, flow)
                assert not replaced.assured or replaced.created_at == flow.created_at, (
                    "an assured flow is told to have ended"
                )
                self.mirror[flow.key.client] = flow
        flows = {flow.key.client: flow for flow in self.relay.core.flows}
        assert self.mirror.keys() == flows.keys()
        assert all(flow.is_same_session(self.mirror[client]) for client, flow in flows.items())

    @invariant()
    def sizes_are_within_their_caps(self) -> None:
        flows = list(self.relay.core.flows)
        assured = [flow for flow in flows if flow.assured]
        assert len(flows) == len(self.relay.core.flows)
        assert len(assured) == len(self.relay.core.flows.assured) <= CAPS["max_assured_flows"]
        provisional = [flow for flow in flows if not flow.assured]
        assert len(provisional) <= CAPS["max_provisional_flows"]
        by_prefix, by_ufrag = groups(provisional)
        assert all(len(keys) <= CAPS["max_provisional_per_prefix"] for keys in by_prefix.values())
        assert all(len(keys) <= CAPS["max_addresses_per_ufrag"] for keys in by_ufrag.values())

    @invariant()
    def flows_are_the_ones_that_were_not_silent(self) -> None:
        for flow in self.relay.core.flows:
            assert flow.last_seen == self.packet_at[flow.key.client]
            life_s = self.relay.policy.assured_s if flow.assured else self.relay.policy.provisional_s
            assert self.relay.now < flow.last_seen + life_s

    @invariant()
    def every_index_fits_the_flows(self) -> None:
        table = self.relay.core.flows
        flows = list(table)
        assert len({flow.key for flow in flows}) == len(flows)
        assert all(table.get(flow.key) == flow for flow in flows)
        provisional = [flow for flow in flows if not flow.assured]
        indexes = table._provisional
        by_prefix, by_ufrag = groups(provisional)
        assert {prefix: set(group) for prefix, group in indexes._by_prefix.items()} == by_prefix
        assert {ufrag: set(group) for ufrag, group in indexes._by_ufrag.items()} == by_ufrag
        ages = [flow.last_seen for flow in provisional]
        assert ages == sorted(ages)

    @invariant()
    def counts_add_up(self) -> None:
        count = self.relay.count
        assured = count(FlowEvent.FLOW_ASSURED) - count(FlowEvent.FLOW_MOVED)
        assert len(self.relay.core.flows.assured) <= assured
        assert len(self.relay.core.flows) <= count(FlowEvent.FLOW_CREATED)


def groups(flows: list[Flow]) -> tuple[dict[tuple[int, int], set[FlowKey]], dict[str, set[FlowKey]]]:
    by_prefix: dict[tuple[int, int], set[FlowKey]] = defaultdict(set)
    by_ufrag: dict[str, set[FlowKey]] = defaultdict(set)
    for flow in flows:
        by_prefix[POLICY.source_prefix(flow.key.client.host)].add(flow.key)
        by_ufrag[flow.ufrag_tag].add(flow.key)
    return by_prefix, by_ufrag


FlowsOfARelay.TestCase.settings = settings(deadline=None, stateful_step_count=60, max_examples=150)
TestFlowsOfARelay = FlowsOfARelay.TestCase
