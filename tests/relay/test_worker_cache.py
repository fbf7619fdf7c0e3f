"""A worker's end of the line to the fleet's cache: what is asked, told and told again, and when."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fleet.line import MAX_ENTRIES, AgentLine, Finding, Found, open_line
from relay.core.flow import Flow, FlowKey
from relay.core.verdict import FlowEvent, Verdict
from relay.worker_cache import RefreshRounds, WorkerCache
from tests.relay.harness import Relay
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, OTHER_CLIENT_V4, RTP, Call
from wire.address import Address
from wire.flow_record import FlowRecord

ROUND_S = 60.0


class Line:
    """A worker's cache, whose agent the test plays."""

    def __init__(self, stack: ExitStack, *, refreshes: bool = True) -> None:
        self.relay = Relay(has_cache=True, max_assured_flows=200_000)
        ours, self.theirs = open_line()
        stack.callback(ours.close)
        stack.callback(self.theirs.close)
        # As much as a line takes by default, whatever this machine was told.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        self.agent = AgentLine(self.theirs)
        self.sent = 0
        core = self.relay.core
        assert core.recall is not None
        self.rounds = RefreshRounds(core.flows.assured, ROUND_S, self.relay.now) if refreshes else None
        self.cache = WorkerCache(ours, core.recall, core.events, self.rounds, self._send_held)

    def _send_held(self) -> None:
        self.sent += 1

    def turn(self) -> None:
        self.cache.end_turn(self.relay.now)

    def hears(self) -> None:
        assert self.cache.receive(self.relay.now)

    def told(self) -> list[FlowRecord]:
        return self.agent.receive_untrusted()[0]

    def add(
        self, client: Address, call: Call = CALL, *, vip_index: int = 0, silent_s: float = 0.0
    ) -> FlowRecord:
        """An assured flow."""
        key = self.relay.key_of(client, vip_index)
        seen = self.relay.now - silent_s
        assert self.relay.core.flows.assure(Flow(key, call.transceiver, call.tag, seen, seen, seen))
        return FlowRecord(*key, call.transceiver, call.tag)

    def add_many(self, count: int) -> set[FlowRecord]:
        return {
            self.add(Address(bytes((198, 18, n >> 8 & 255, n & 255)), 1 + (n >> 16))) for n in range(count)
        }


@pytest.fixture
def line() -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(stack)


def test_questions_of_a_turn_are_one_message(line: Line) -> None:
    for number in range(MAX_ENTRIES):
        assert (
            line.relay.client_sends(RTP, Address(bytes((198, 18, number >> 8, number & 255)), 1)).verdict
            is Verdict.HOLD
        )
    line.turn()
    assert len(line.theirs.recv(1 << 20)) == 1 + 36 * MAX_ENTRIES
    line.turn()
    with pytest.raises(BlockingIOError):
        line.theirs.recv(1)


@pytest.mark.parametrize(
    ("found", "event"),
    [
        (Found.MISS, FlowEvent.RECALL_MISSED),
        (Found.FORGED, FlowEvent.RECALL_MISSED),
        (Found.UNAVAILABLE, FlowEvent.RECALL_UNAVAILABLE),
        (Found.HIT, FlowEvent.FLOW_RECALLED),
    ],
)
def test_findings_go_to_the_core(line: Line, found: Found, event: FlowEvent) -> None:
    line.relay.client_sends(RTP)
    line.turn()
    told, (name,) = line.agent.receive_untrusted()
    assert told == []
    record = FlowRecord(*line.relay.key_of(), CALL.transceiver, CALL.tag)
    assert name == record.name
    line.agent.answer([Finding(name, found, record if found is Found.HIT else None)])
    line.hears()
    line.relay.transceiver_sends(b"", CALL.transceiver)
    assert [line.relay.count(each) for each in FlowEvent] == [each is event for each in FlowEvent]


def test_question_that_the_line_does_not_take_is_answered_at_once(line: Line) -> None:
    filler = [bytes(36)] * MAX_ENTRIES
    while not line.cache._line.ask(filler):
        pass
    line.relay.client_sends(RTP)
    line.turn()
    assert line.relay.count(FlowEvent.RECALL_UNAVAILABLE) == 1
    assert line.relay.client_sends(RTP).verdict is Verdict.DROP_UNKNOWN_FLOW


def test_time_passes_in_the_core_when_something_is_due(line: Line) -> None:
    line.turn()
    line.relay.client_sends(RTP)
    line.turn()
    assert line.cache.due == line.relay.now + 0.5
    line.relay.now += 0.5
    line.turn()
    assert line.relay.count(FlowEvent.RECALL_UNAVAILABLE) == 1
    assert line.sent == 3


def test_flows_of_a_turn_are_told_in_one_message(line: Line) -> None:
    line.turn()
    records = [line.add(CLIENT_V4), line.add(CLIENT_V6, CALL_V6, vip_index=1)]
    for record in records:
        flow = line.relay.core.flows.get(FlowKey(record.client, record.vip))
        assert flow is not None
        line.cache.note(flow)
    line.turn()
    line.turn()
    assert line.told() == records


def test_flow_that_the_line_does_not_take_is_counted_and_told_in_the_next_round(line: Line) -> None:
    line.turn()
    record = line.add(CLIENT_V4)
    while not line.cache._line.ask([bytes(36)] * MAX_ENTRIES):
        pass
    line.cache.note(line.relay.flow_of())
    line.turn()
    assert line.relay.count(FlowEvent.FLOW_UNTOLD) == 1
    while line.agent.receive_untrusted()[1]:
        pass
    line.relay.now += ROUND_S
    line.relay.client_sends(RTP)
    line.turn()
    assert line.told() == [record]


# rounds


def test_round_tells_of_each_living_flow_once(line: Line) -> None:
    silent = line.add(CLIENT_V4, silent_s=ROUND_S)
    living = {
        silent,
        line.add(OTHER_CLIENT_V4),
        line.add(CLIENT_V6, CALL_V6, vip_index=1),
        line.add(CLIENT_V4, vip_index=2),
    }
    line.add(Address(CLIENT_V4.host, 1), silent_s=ROUND_S + 1)
    gone = line.add(Address(CLIENT_V4.host, 2))
    line.relay.core.flows.remove(FlowKey(gone.client, gone.vip))
    line.relay.client_sends(RTP, Address(CLIENT_V4.host, 3))  # no flow
    line.turn()
    told = line.told()
    assert (set(told), len(told)) == (living, len(living))
    line.relay.now += ROUND_S - 1
    line.turn()
    assert line.told() == []
    line.relay.now += 1
    line.turn()
    assert set(line.told()) == living - {silent}


@pytest.mark.parametrize("is_hurried", [False, True])
def test_large_table_is_told_in_slices_within_the_round(line: Line, is_hurried: bool) -> None:
    records = line.add_many(10_250)
    if is_hurried:
        line.turn()
        line.told()
        line.relay.now += 10
        line.agent.want_everything()
        line.hears()
    began, told = line.relay.now, []
    for _ in range(50):
        line.turn()
        heard = line.told()
        assert len(heard) <= MAX_ENTRIES
        told += heard
        if len(told) >= len(records):
            break
        line.relay.now = line.cache.due
    assert (set(told), len(told)) == (records, len(records))
    took = line.relay.now - began
    # 100,000 flows are ten times as many.
    assert took <= 0.5 + 0.1 if is_hurried else ROUND_S * 0.9 <= took <= ROUND_S
    line.relay.now = line.cache.due
    assert (line.relay.now - began) == pytest.approx(took + (0.025 if is_hurried else ROUND_S / 21), abs=0.01)


def test_round_that_is_wanted_goes_once_around(line: Line) -> None:
    records = line.add_many(1200)
    line.turn()
    first = set(line.told())
    assert len(first) == 500
    line.agent.want_everything()
    line.hears()
    told: list[FlowRecord] = []
    for _ in range(3):
        line.turn()
        told += line.told()
        line.relay.now = line.cache.due
    assert (set(told), len(told)) == (records, len(records))
    assert set(told[-500:]) == first
    line.turn()
    assert set(line.told()) == set(told[:500])
    assert line.cache.due - line.relay.now == pytest.approx(ROUND_S / 3), "at its usual pace"


def test_rounds_that_are_wanted_often_reach_the_end_of_the_table(line: Line) -> None:
    records = line.add_many(5200)
    told: set[FlowRecord] = set()
    for _ in range(11):
        line.agent.want_everything()
        line.hears()
        line.turn()
        told.update(line.told())
        line.relay.now = line.cache.due
    assert told == records


def test_where_others_tell_of_flows_again_nothing_is_refreshed() -> None:
    with ExitStack() as stack:
        line = Line(stack, refreshes=False)
        line.add(CLIENT_V4)
        line.agent.want_everything()
        line.hears()
        line.turn()
        assert line.told() == []
        assert line.cache.due == float("inf")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"?",
        b"F" + bytes(62),
        b"F" + bytes(36) + b"\x09" + bytes(26),
        b"F" + bytes(36) + b"\x01" + b"\xff" * 26,
    ],
    ids=["empty", "unknown", "cut short", "no finding", "tag that is no text"],
)
def test_nonsense_of_an_agent_is_passed_over(line: Line, message: bytes) -> None:
    line.relay.client_sends(RTP)
    line.turn()
    line.theirs.send(message)
    line.hears()
    line.agent.answer([Finding(line.agent.receive_untrusted()[1][0], Found.MISS)])
    line.hears()
    assert line.relay.count(FlowEvent.RECALL_MISSED) == 1


def test_agent_that_is_gone_for_good_is_noticed(line: Line) -> None:
    assert line.cache.receive(line.relay.now), "there was nothing to read"
    line.theirs.close()
    assert not line.cache.receive(line.relay.now)
