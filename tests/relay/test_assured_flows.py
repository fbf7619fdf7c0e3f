"""Assured flows in rows: what is written is read, rows are used again, and expiry looks at a part at a time."""

import string
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.core import assured_flows, transceivers
from relay.core.assured_flows import AssuredFlows
from relay.core.flow import Flow, FlowKey
from relay.core.transceivers import Transceivers
from tests.relay.harness import Relay
from tests.relay.network import CALL, CLIENT_V4, POLICY, VIP_V4, call_at
from wire.address import Address
from wire.flow_record import FlowRecord
from wire.spp import flow_name, parse_flow_name

VIPS = [vip.address for vip in POLICY.vips]
PORTS = st.integers(0, 2**16 - 1)
ADDRESSES = st.builds(Address.from_mapped, st.binary(min_size=16, max_size=16), PORTS) | st.builds(
    Address, st.binary(min_size=4, max_size=4), PORTS
)
KEYS = st.builds(FlowKey, ADDRESSES, st.sampled_from(VIPS))
TIMES = st.floats(min_value=0, max_value=3e8)
COUNTS = st.integers(0, 2**64 - 1)
TAGS = st.text(string.ascii_letters + string.digits + "+/", min_size=8, max_size=8)
FLOWS = st.builds(
    Flow,
    key=KEYS,
    transceiver=ADDRESSES,
    ufrag_tag=TAGS,
    ufrag_seen_at=TIMES,
    created_at=TIMES,
    last_seen=TIMES,
    assured=st.just(True),
    media_up=st.booleans(),
    media_down=st.booleans(),
    released=st.booleans(),
    stored=st.booleans(),
    down_seen_at=TIMES | st.just(float("-inf")),
    packets_up=COUNTS,
    bytes_up=COUNTS,
    packets_down=COUNTS,
    bytes_down=COUNTS,
    stored_counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
)


def flows_of(capacity: int = 8) -> AssuredFlows:
    return AssuredFlows(capacity, Transceivers(), VIPS)


@given(
    st.lists(FLOWS, unique_by=lambda each: each.key, max_size=8), TIMES, st.integers(0, 9), st.integers(0, 9)
)
def test_records_are_those_of_living_flows_in_these_rows(
    flows: list[Flow], since: float, begin: int, length: int
) -> None:
    table = flows_of()
    for each in flows:
        assert table.insert(each)
    gone = flows[:1]
    for each in gone:
        table.remove(each.key)
    assert table.row_count == len(flows)
    # A row that is free takes the next one.
    rows = [None, *flows[1:]]
    expected = [
        FlowRecord(*each.key, each.transceiver, each.ufrag_tag)
        for each in rows[begin : begin + length]
        if each is not None and each.last_seen >= since
    ]
    records = table.records(begin, begin + length, since)
    assert [FlowRecord.unpack_untrusted(record) for record in records] == expected
    assert records == [record.pack() for record in expected]


def flow(number: int, last_seen: float = 0.0) -> Flow:
    key = FlowKey(Address(CLIENT_V4.host, number), VIP_V4)
    return Flow(key, CALL.transceiver, CALL.tag, last_seen, last_seen, last_seen, assured=True)


@given(FLOWS)
def test_flow_is_read_as_it_was_written(written: Flow) -> None:
    flows = flows_of()
    assert flows.insert(written)
    assert flows.get(written.key) == written
    assert list(flows) == [written]
    assert flows.expire(1e9) == [written]


@given(KEYS)
def test_name_is_the_key(key: FlowKey) -> None:
    assert FlowKey(*parse_flow_name(flow_name(*key))) == key


@given(st.lists(KEYS, max_size=8, unique=True), st.lists(KEYS, max_size=8))
def test_rows_are_found_for_known_names_alone(known: list[FlowKey], asked: list[FlowKey]) -> None:
    flows = flows_of()
    for key in known:
        flows.insert(Flow(key, CALL.transceiver, CALL.tag, 0, 0, 0, assured=True))
    names = [flow_name(*key) for key in [*asked, *known]]
    rows = flows.find(names)
    assert [int(row) >= 0 for row in rows] == [key in known for key in [*asked, *known]]
    assert len(set(rows[rows >= 0].tolist())) == len(known)


def test_full_table_takes_no_other_flow_and_writes_those_it_has() -> None:
    flows = flows_of(2)
    assert [flows.insert(flow(number)) for number in range(3)] == [True, True, False]
    changed = flow(1, 7.0)
    assert flows.insert(changed)
    assert flows.get(changed.key) == changed
    flows.update(flow(2))
    assert len(flows) == 2
    assert flows.remove(flow(0).key)
    assert not flows.remove(flow(0).key)
    assert flows.insert(flow(2))


def test_expiry_looks_at_a_part_of_the_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assured_flows, "_EXPIRY_STEP", 10)
    flows = flows_of(100)
    for number in range(35):
        flows.insert(flow(number, last_seen=number % 2))
    assert [len(flows.expire(0.5)) for _ in range(5)] == [5, 5, 5, 3, 0]
    assert len(flows) == 17
    assert sum(len(flows.expire(1)) for _ in range(4)) == 17


class Rows(RuleBasedStateMachine):
    """Flows come and go, beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.flows, self.model = flows_of(6), dict[FlowKey, Flow]()

    @rule(number=st.integers(0, 9), seen=st.integers(0, 20))
    def insert(self, number: int, seen: int) -> None:
        one = flow(number, seen)
        if self.flows.insert(one):
            self.model[one.key] = one
        else:
            assert len(self.model) == 6

    @rule(number=st.integers(0, 9))
    def remove(self, number: int) -> None:
        key = flow(number).key
        assert self.flows.remove(key) == (self.model.pop(key, None) is not None)

    @rule(before=st.integers(0, 20))
    def expire(self, before: int) -> None:
        gone = {one.key for one in self.flows.expire(before)}
        assert gone == {key for key, one in self.model.items() if one.last_seen <= before}
        for key in gone:
            del self.model[key]

    @invariant()
    def is_as_the_model(self) -> None:
        assert {one.key: one for one in self.flows} == self.model
        assert len(self.flows) == len(self.model)
        assert set(self.flows.changed(10)) <= self.model.keys()
        rows = self.flows.find([flow_name(*key) for key in self.model])
        assert [self.flows.last_seen[row] for row in rows] == [one.last_seen for one in self.model.values()]


Rows.TestCase.settings = settings(deadline=None, stateful_step_count=40, max_examples=100)
TestRows = Rows.TestCase


# numbers of transceivers


def test_numbers_are_kept_given_up_and_given_anew() -> None:
    known = Transceivers()
    addresses = [Address.parse(f"10.1.0.1:{port}") for port in range(1, 7)]
    numbers = [known.number(address) for address in addresses]
    assert numbers == [known.number(address) for address in addresses] == list(range(6))
    changes = known.changes
    known.forget_all_but([1, 4])
    newcomer = Address.parse("10.1.0.2:1")
    assert known.number(newcomer) == 0
    assert known.addresses[0] == newcomer
    assert known.changes > changes
    assert [known.number(addresses[index]) for index in (1, 4)] == [1, 4]


def test_relay_that_has_met_very_many_transceivers_forgets_those_without_flows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transceivers, "_MANY", 20)
    relay = Relay(max_provisional_flows=100)
    met: dict[Address, int] = defaultdict(int)
    for number in range(50):
        call = call_at(f"10.1.2.3:{5000 + number}", session=number.to_bytes(5, "big"))
        met[call.transceiver] = number
        relay.connect(call, Address(CLIENT_V4.host, 1000 + number % 5))
        assert (
            relay.client_sends(b"\x80" * 20, Address(CLIENT_V4.host, 1000 + number % 5)).destination
            == call.transceiver
        )
        relay.let_pass(7)
    assert len(met) == 50
    assert len(relay.core.flows.transceivers.addresses) <= 21
    assert len(relay.core.flows) == 5
