"""Token buckets: burst, rate, and a bound on how many there are."""

import pytest

from relay.core.rates import TokenBuckets
from relay.core.verdict import FlowEvent, Verdict
from tests.relay.harness import Relay
from tests.relay.network import CALL, CLIENT_V4, OTHER_CALL, Call, call_at, check
from wire.address import Address


def taken(buckets: TokenBuckets, name: str, now: float, tries: int) -> int:
    return sum(buckets.take(name, now) for _ in range(tries))


def test_burst_at_first_and_the_rate_from_then_on() -> None:
    buckets = TokenBuckets(per_s=10, burst=5, capacity=100)
    assert taken(buckets, "a", 0.0, 20) == 5
    assert taken(buckets, "a", 0.25, 20) == 2
    assert taken(buckets, "b", 0.25, 20) == 5, "each name has its own"
    assert taken(buckets, "a", 1000.0, 20) == 5, "no more than the burst gathers"


def test_asking_takes_none() -> None:
    buckets = TokenBuckets(per_s=10, burst=1, capacity=100)
    assert buckets.has("a", 0.0)
    assert buckets.has("a", 0.0)
    assert buckets.take("a", 0.0)
    assert not buckets.has("a", 0.05)
    assert buckets.has("a", 0.1)


def test_names_are_bounded_and_the_least_recently_used_goes() -> None:
    buckets = TokenBuckets(per_s=1, burst=1, capacity=3)
    for name in ("a", "b", "c", "d"):
        assert buckets.take(name, 0.0)
    assert len(buckets) == 3
    assert buckets.take("a", 0.0), "forgotten, and so new"
    assert not buckets.take("d", 0.0)


# in the relay


def client(number: int) -> Address:
    return Address((0x0A000000 + number).to_bytes(4, "big"), 40000)


def test_ufrag_from_ever_new_addresses_is_limited_and_its_own_flow_is_not() -> None:
    relay = Relay(ufrag_per_s=10, ufrag_burst=20)
    relay.connect()
    verdicts = [relay.client_sends(check(CALL), client(number)).verdict for number in range(100)]
    # the call itself has taken one
    assert verdicts == [Verdict.FORWARD_STUN] * 19 + [Verdict.DROP_RATE_LIMITED] * 81
    assert relay.client_sends(check(CALL)).verdict is Verdict.FORWARD_STUN
    assert relay.client_sends(check(OTHER_CALL), client(1)).verdict is Verdict.FORWARD_STUN
    relay.now += 1
    assert relay.client_sends(check(CALL), client(200)).verdict is Verdict.FORWARD_STUN
    assert relay.count(FlowEvent.FLOW_CREATED) == 22


def test_who_does_not_know_the_password_uses_up_no_tokens_of_a_ufrag() -> None:
    relay = Relay(ufrag_per_s=10, ufrag_burst=20)
    for number in range(100):
        forged = relay.client_sends(check(CALL, pwd=b"guessed"), client(number))
        assert forged.verdict is Verdict.DROP_STUN_INTEGRITY
    assert relay.client_sends(check(CALL)).verdict is Verdict.FORWARD_STUN


@pytest.mark.parametrize("call", [CALL, call_at("10.1.2.3:5000", cluster_id=1)], ids=["genuine", "refused"])
def test_source_that_asks_for_too_many_flows_is_limited_and_its_flows_are_not(call: Call) -> None:
    relay = Relay(unknown_per_s=10, unknown_burst=20, ufrag_per_s=10_000, ufrag_burst=10_000)
    relay.connect()
    verdicts = []
    for number in range(100):
        session = call_at("10.1.2.3:5000", session=number.to_bytes(5, "big")) if call is CALL else call
        verdicts.append(relay.client_sends(check(session), Address(CLIENT_V4.host, 1024 + number)).verdict)
    assert verdicts.count(Verdict.DROP_RATE_LIMITED) == 81
    assert relay.client_sends(check(CALL)).verdict is Verdict.FORWARD_STUN
    assert relay.client_sends(check(OTHER_CALL), client(1)).verdict is Verdict.FORWARD_STUN
