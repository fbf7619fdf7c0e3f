"""Flows that a worker goes on with after another of the userspace path has ended."""

from typing import Any

import pytest

from relay.core.flow import FlowKey
from relay.core.verdict import FlowEvent
from tests.relay.harness import Relay
from tests.relay.network import (
    CALL,
    CALL_V6,
    CLIENT_V4,
    CLIENT_V6,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    RTP,
    VIP_V4,
    Call,
    check,
)
from wire.address import Address

HOME, AWAY = CALL.transceiver, OTHER_CALL.transceiver
KEY = FlowKey(CLIENT_V4, VIP_V4)


def test_adopted_flow_carries_media_at_once_and_is_no_news() -> None:
    relay = Relay()
    assert relay.core.adopt(KEY, HOME, CALL.tag, relay.now)
    assert relay.client_sends(RTP).destination == HOME
    assert relay.flow_of().assured
    assert relay.count(FlowEvent.FLOW_ADOPTED) == 1
    assert relay.count(FlowEvent.FLOW_CREATED) == relay.count(FlowEvent.FLOW_ASSURED) == 0
    assert relay.notices() == []
    relay.client_sends(check(OTHER_CALL))
    assert relay.count(FlowEvent.FLOW_CONTESTED) == 1
    relay.let_pass(60)
    assert relay.told() == [(CLIENT_V4, CALL.tag, True)]


@pytest.mark.parametrize("call", [pytest.param(CALL, id="IPv4"), pytest.param(CALL_V6, id="IPv6")])
def test_both_families_are_adopted(call: Call) -> None:
    relay = Relay()
    assert relay.core.adopt(relay.key_of(CLIENT_V6, 1), call.transceiver, call.tag, relay.now)
    assert relay.client_sends(RTP, CLIENT_V6, 1).destination == call.transceiver


@pytest.mark.parametrize(
    ("key", "transceiver"),
    [
        pytest.param(FlowKey(CLIENT_V4, Address.parse("203.0.113.12:3478")), HOME, id="foreign VIP"),
        pytest.param(FlowKey(CLIENT_V4, Address(VIP_V4.host, 3479)), HOME, id="other port of our VIP"),
        pytest.param(KEY, Address.parse("10.2.0.1:5000"), id="transceiver out of network"),
    ],
)
def test_flow_that_is_not_ours_is_not_adopted(key: FlowKey, transceiver: Address) -> None:
    relay = Relay()
    assert not relay.core.adopt(key, transceiver, CALL.tag, relay.now)
    assert len(relay.core.flows) == 0
    assert sum(relay.core.events) == 0


def test_flow_that_is_there_already_is_not_replaced_by_an_adopted_one() -> None:
    relay = Relay()
    flow = relay.connect(OTHER_CALL)
    assert not relay.core.adopt(KEY, HOME, CALL.tag, relay.now)
    assert relay.flow_of() == flow
    assert relay.count(FlowEvent.FLOW_ADOPTED) == 0


def test_full_table_adopts_nothing() -> None:
    relay = Relay(max_assured_flows=1)
    assert relay.core.adopt(KEY, HOME, CALL.tag, relay.now)
    assert not relay.core.adopt(FlowKey(OTHER_CLIENT_V4, VIP_V4), AWAY, OTHER_CALL.tag, relay.now)
    assert (len(relay.core.flows.assured), relay.count(FlowEvent.FLOW_ADOPTED)) == (1, 1)


@pytest.mark.parametrize(
    "cap",
    [
        pytest.param({"max_assured_flows": 1}, id="assured table full"),
        pytest.param({"max_provisional_flows": 1}, id="provisional table full"),
    ],
)
def test_every_flow_that_comes_or_goes_by_adoption_is_counted(cap: dict[str, Any]) -> None:
    relay = Relay(**cap)
    relay.connect()
    relay.client_sends(check(OTHER_CALL), OTHER_CLIENT_V4)
    relay.core.adopt(relay.key_of(vip_index=2), HOME, CALL.tag, relay.now)
    came = relay.count(FlowEvent.FLOW_CREATED) + relay.count(FlowEvent.FLOW_ADOPTED)
    assert len(relay.core.flows) == came - relay.count(FlowEvent.FLOW_EVICTED)
