"""The line between a relay's processes and the agent: what goes through, and what an untrusted end may do to the other."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.line import MAX_ENTRIES, AgentLine, Finding, Found, RelayLine, open_line
from tests.fleet.bench import flow
from wire.errors import WireError
from wire.flow_record import RECORD_BYTES
from wire.spp import FLOW_NAME_BYTES

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = open_line()
    yield ends
    for end in ends:
        end.close()


def test_flows_are_told_and_asked_in_order(ends: Ends) -> None:
    relay, agent = RelayLine(ends[0]), AgentLine(ends[1])
    records = [flow(index) for index in range(2 * MAX_ENTRIES + 1)]
    assert relay.tell(record.pack() for record in records) == 0
    assert relay.ask([records[0].name, records[1].name]) == 0
    told, asked = [], []
    for _ in range(3):
        some_told, some_asked = agent.receive_untrusted()
        told += some_told
        asked += some_asked
    assert told == records
    assert asked == [records[0].name, records[1].name]


def test_findings_and_the_wish_for_everything_come_back(ends: Ends) -> None:
    relay, agent = RelayLine(ends[0]), AgentLine(ends[1])
    findings = [Finding(flow(0).name, Found.HIT, flow(0)), Finding(flow(1).name, Found.MISS)]
    findings += [Finding(flow(2).name, found) for found in (Found.UNAVAILABLE, Found.FORGED)]
    assert agent.answer(findings) == 0
    assert agent.want_everything()
    assert relay.receive() == (findings, True)
    assert relay.receive() == ([], False)


def test_a_side_that_does_not_read_keeps_nobody(ends: Ends) -> None:
    relay = RelayLine(ends[0])
    records = [flow(index).pack() for index in range(10_000)]
    assert 0 < relay.tell(records) < len(records)
    assert relay.tell(records) == len(records)


def test_nobody_there_any_more(ends: Ends) -> None:
    relay, agent = RelayLine(ends[0]), AgentLine(ends[1])
    assert not relay.is_closed
    ends[0].send(b"")  # no end, though it reads like one
    assert agent.receive_untrusted() == ([], [])
    assert not agent.is_closed
    ends[1].close()
    assert [relay.is_closed] == [True]
    assert relay.receive() == ([], False)
    assert relay.ask([flow().name]) == 1


_MESSAGES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, body: kind + body,
        st.sampled_from([b"T", b"A", b"F", b"R", b"X"]),
        st.one_of(
            st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES),
            st.binary(min_size=FLOW_NAME_BYTES, max_size=FLOW_NAME_BYTES),
            st.binary(max_size=300),
        ),
    ),
)


@given(st.lists(_MESSAGES, max_size=5))
def test_whatever_a_worker_sends_raises_nothing_but_wire_errors(messages: list[bytes]) -> None:
    ours, theirs = open_line()
    with ours, theirs:
        for message in messages:
            ours.send(message)
        agent = AgentLine(theirs)
        for _ in range(len(messages) + 1):
            with contextlib.suppress(WireError):
                agent.receive_untrusted()
        assert agent.receive_untrusted() == ([], [])
