"""A client that goes from worker to worker and back: no old copy wins over what happened elsewhere."""

from relay.core.verdict import FlowEvent, Verdict
from tests.relay.network import (
    CALL,
    CLIENT_HELLO,
    DTLS_ALERT,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    RTP,
    SERVER_HELLO,
    check,
)
from tests.relay.test_shared_flows import AWAY, HOME, KEY, Workers


def test_client_that_comes_back_is_protected_by_what_happened_elsewhere() -> None:
    """A's copy is old; the flow has lived on at B. A stranger's check at A must not take it."""
    workers = Workers()
    workers.make_flow()
    for _ in range(10):
        workers.let_pass(1)
        workers.b.client_sends(check(CALL))
        workers.b.transceiver_sends(RTP, HOME)
    workers.let_pass(1)
    workers.a.client_sends(check(OTHER_CALL))
    assert workers.a.count(FlowEvent.FLOW_CONTESTED) == 1
    assert workers.a.client_sends(RTP).destination == HOME


def test_goodbye_that_another_worker_saw_counts_when_the_client_comes_back() -> None:
    workers = Workers()
    workers.make_flow()
    workers.let_pass(2)
    workers.b.transceiver_sends(DTLS_ALERT, HOME)
    workers.let_pass(1)
    workers.a.client_sends(check(OTHER_CALL))
    assert workers.a.client_sends(CLIENT_HELLO).destination == AWAY


def test_counts_never_go_back_when_the_client_comes_back() -> None:
    workers = Workers()
    workers.make_flow()
    for _ in range(10):
        workers.let_pass(1)
        workers.b.client_sends(RTP)
    workers.let_pass(1)
    before = workers.b.flow_of().packets_up
    workers.a.client_sends(RTP)
    assert workers.a.flow_of().packets_up == before + 1


def test_media_that_the_other_worker_saw_counts_towards_assurance() -> None:
    workers = Workers()
    workers.make_flow(assured=False)
    workers.let_pass(1)
    workers.b.client_sends(CLIENT_HELLO)
    workers.let_pass(1)
    workers.a.transceiver_sends(SERVER_HELLO, HOME)
    assert workers.a.flow_of().assured


def test_full_table_does_not_give_up_another_worker_s_assured_flow() -> None:
    workers = Workers(max_assured_flows=1)
    workers.make_flow()
    workers.b.connect(OTHER_CALL, OTHER_CLIENT_V4)
    workers.settle()
    workers.b.client_sends(check(OTHER_CALL))  # from the victim's address, with a call of one's own
    workers.settle()
    assert workers.store.flows[KEY].assured
    assert workers.b.client_sends(CLIENT_HELLO).destination == HOME


def test_flow_past_its_life_is_not_recalled() -> None:
    workers = Workers()
    workers.make_flow()
    workers.settle()
    workers.b.let_pass(75)  # A has died
    assert workers.b.client_sends(RTP).verdict is Verdict.DROP_UNKNOWN_FLOW


def test_recall_that_evicts_is_counted() -> None:
    workers = Workers(max_provisional_flows=1)
    workers.make_flow(assured=False)
    workers.b.client_sends(check(CALL), OTHER_CLIENT_V4)
    workers.b.client_sends(RTP)
    assert workers.b.count(FlowEvent.FLOW_EVICTED) == 1


def test_old_copy_that_is_evicted_does_not_end_the_flow_of_another_worker() -> None:
    workers = Workers(max_provisional_flows=1)
    workers.make_flow(assured=False)
    workers.b.client_sends(CLIENT_HELLO)
    workers.b.transceiver_sends(SERVER_HELLO, HOME)
    workers.settle()
    assert workers.store.flows[KEY].assured
    workers.a.client_sends(check(OTHER_CALL), OTHER_CLIENT_V4)  # evicts the copy in A
    for notice in workers.a.notices():
        workers.store.note(notice)
    assert KEY in workers.store.flows
