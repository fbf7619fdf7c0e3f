"""Clients that the relay does not know while the cache is asked: what each of them, the cache and a transceiver can do to a held packet."""

from collections.abc import Callable

import pytest

from relay.core import recall
from relay.core.flow import Flow
from relay.core.recall import MAX_CLIENTS, MAX_PACKETS, Departure
from relay.core.verdict import FlowEvent, Verdict
from tests.relay.harness import MemoryStore, Relay
from tests.relay.network import (
    BINDING_INDICATION,
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    POLICY,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    answer,
    check,
    spp,
    stun,
)
from wire.address import Address
from wire.flow_record import FlowRecord

HOME, AWAY = CALL.transceiver, OTHER_CALL.transceiver
V = Verdict
PACKETS = [RTP + bytes((number,)) for number in range(40)]


class Asking(Relay):
    """A relay with a cache that the test plays."""

    def __init__(self, store: MemoryStore | None = None, **changes: object) -> None:
        super().__init__(store, has_cache=True, **changes)
        assert self.core.recall is not None
        self.recall = self.core.recall

    def record(
        self, transceiver: Address = HOME, client: Address = CLIENT_V4, vip_index: int = 0
    ) -> FlowRecord:
        return FlowRecord(*self.key_of(client, vip_index), transceiver, CALL.tag)

    def asked(self) -> list[bytes]:
        return self.recall.next_questions()

    def finds(self, transceiver: Address = HOME, client: Address = CLIENT_V4) -> None:
        self.recall.receive_found(self.record(transceiver, client), self.now)

    def finds_nothing(self) -> None:
        self.recall.receive_not_found(self.record().name, self.now)

    def is_away(self) -> None:
        self.recall.receive_unavailable(self.record().name, self.now)

    def confirms(self, source: Address = HOME, client: Address = CLIENT_V4, vip_index: int = 0) -> Verdict:
        return self.transceiver_sends(b"", source, client, vip_index).verdict

    def let_pass(self, seconds: float) -> None:
        super().let_pass(seconds)
        self.recall.handle_timer(self.now)

    def departed(self) -> list[Departure]:
        return self.recall.take_departures()

    def went(self, client: Address = CLIENT_V4) -> list[tuple[bytes, Address | None]]:
        """Packets of the client, and where to; questions left out."""
        return [(d.datagram, d.transceiver) for d in self.departed() if d.datagram and d.key.client == client]

    def probed(self) -> list[Address | None]:
        return [d.transceiver for d in self.departed() if not d.datagram]

    def counted(self) -> dict[str, int]:
        return {event.label: self.count(event) for event in FlowEvent if self.count(event)}


@pytest.fixture
def relay() -> Asking:
    return Asking()


def test_found_and_confirmed_all_held_packets_leave_in_order(relay: Asking) -> None:
    for packet in PACKETS[:3]:
        assert relay.client_sends(packet).verdict is V.HOLD
    assert relay.asked() == [relay.record().name]
    assert relay.asked() == []
    relay.finds()
    assert relay.client_sends(PACKETS[3]).verdict is V.HOLD
    assert relay.departed() == [Departure(relay.key_of(), b"", HOME)]
    assert relay.confirms() is V.CONFIRM_FLOW
    assert relay.departed() == [Departure(relay.key_of(), packet, HOME) for packet in PACKETS[:4]]
    assert relay.client_sends(PACKETS[4]) == (V.FORWARD_FLOW, HOME, -1)
    assert (relay.asked(), relay.departed()) == ([], [])
    flow = relay.flow_of()
    assert (flow.assured, flow.transceiver, flow.ufrag_tag) == (True, HOME, CALL.tag)
    assert (flow.packets_up, flow.bytes_up) == (5, sum(map(len, PACKETS[:5])))
    assert relay.counted() == {"flow_recalled": 1}


def test_dtls_is_held_as_rtp_is(relay: Asking) -> None:
    assert relay.client_sends(CLIENT_HELLO, CLIENT_V6, 1).verdict is V.HOLD
    relay.recall.receive_found(relay.record(CALL_V6.transceiver, CLIENT_V6, 1), relay.now)
    assert relay.probed() == [CALL_V6.transceiver]
    assert relay.confirms(CALL_V6.transceiver, CLIENT_V6, 1) is V.CONFIRM_FLOW
    assert relay.went(CLIENT_V6) == [(CLIENT_HELLO, CALL_V6.transceiver)]


@pytest.mark.parametrize(
    ("datagram", "verdict"),
    [
        (stun(message_type=BINDING_INDICATION), V.DROP_STUN_UNKNOWN_FLOW),
        (answer(CALL), V.DROP_STUN_UNKNOWN_FLOW),
        (b"\x10", V.DROP_NOT_WEBRTC),
        (b"", V.DROP_MALFORMED),
        (RTP.ljust(2049), V.DROP_OVERSIZE),
    ],
    ids=["indication", "answer", "ZRTP", "empty", "oversize"],
)
def test_nothing_else_is_held_or_asked_for(relay: Asking, datagram: bytes, verdict: Verdict) -> None:
    assert relay.client_sends(datagram).verdict is verdict
    assert relay.asked() == []


def test_without_a_cache_nothing_is_held() -> None:
    relay = Relay()
    assert relay.core.recall is None
    assert relay.client_sends(RTP).verdict is V.DROP_UNKNOWN_FLOW
    assert relay.transceiver_sends(b"", HOME).verdict is V.DROP_SPP_MALFORMED


Event = Callable[[Asking], object]


@pytest.mark.parametrize(
    ("says_no", "silent_s", "event"),
    [
        pytest.param(Asking.finds_nothing, 2.0, "recall_missed", id="not found"),
        pytest.param(
            lambda r: r.finds(Address.parse("10.2.0.1:5000")), 2.0, "recall_missed", id="out of network"
        ),
        pytest.param(lambda r: r.finds(Address.parse("127.0.0.1:5000")), 2.0, "recall_missed", id="loopback"),
        pytest.param(lambda r: r.finds(Address(HOME.host, 0)), 2.0, "recall_missed", id="port 0"),
        pytest.param(Asking.is_away, 0.5, "recall_unavailable", id="cache away"),
        pytest.param(lambda r: r.let_pass(0.5), 0.5, "recall_unavailable", id="no answer"),
        pytest.param(
            lambda r: (r.finds(), r.let_pass(0.1), r.let_pass(0.2)),
            2.0,
            "recall_unconfirmed",
            id="unconfirmed",
        ),
    ],
)
def test_who_is_not_recalled_is_dropped_and_not_asked_for_again_soon(
    relay: Asking, says_no: Event, silent_s: float, event: str
) -> None:
    relay.client_sends(PACKETS[0])
    relay.client_sends(PACKETS[1])
    assert len(relay.asked()) == 1
    says_no(relay)
    assert relay.went() == [(PACKETS[0], None), (PACKETS[1], None)]
    assert relay.counted() == {event: 1}
    for passed_s in (0.0, silent_s - 0.01):
        relay.now += passed_s
        assert relay.client_sends(RTP).verdict is V.DROP_UNKNOWN_FLOW
    assert relay.asked() == []
    relay.now += 0.02
    assert relay.client_sends(RTP).verdict is V.HOLD
    assert len(relay.asked()) == 1


@pytest.mark.parametrize("late", [Asking.finds, Asking.finds_nothing, Asking.is_away])
@pytest.mark.parametrize(
    "before",
    [
        lambda r: None,
        lambda r: (r.client_sends(RTP), r.finds_nothing()),
        lambda r: (r.client_sends(RTP), r.finds()),
    ],
    ids=["never asked", "missed", "found"],
)
def test_finding_that_nobody_waits_for_is_passed_over(relay: Asking, before: Event, late: Event) -> None:
    before(relay)
    relay.departed()
    counted = relay.counted()
    late(relay)
    assert (relay.departed(), relay.counted()) == ([], counted)


def test_transceiver_is_asked_twice(relay: Asking) -> None:
    relay.client_sends(RTP)
    relay.finds()
    assert relay.probed() == [HOME]
    relay.let_pass(0.099)
    assert relay.probed() == []
    relay.let_pass(0.002)
    assert relay.probed() == [HOME]
    relay.let_pass(0.198)
    assert relay.departed() == []
    assert relay.confirms() is V.CONFIRM_FLOW
    assert relay.went() == [(RTP, HOME)]
    assert relay.confirms() is V.CONFIRM_FLOW, "it was asked twice, and answers twice"
    assert relay.departed() == []


def test_timer_is_due_when_there_is_something_to_do(relay: Asking) -> None:
    began = relay.now
    assert relay.recall.due == float("inf")
    relay.client_sends(RTP)
    assert relay.recall.due == began + 0.5
    relay.now += 0.2
    relay.client_sends(RTP, OTHER_CLIENT_V4)
    assert relay.recall.due == began + 0.5
    relay.finds(client=OTHER_CLIENT_V4)
    assert relay.recall.due == pytest.approx(began + 0.3)
    relay.let_pass(0.1)
    assert relay.recall.due == pytest.approx(began + 0.5)
    relay.let_pass(0.2)
    assert relay.recall.due == float("inf")


@pytest.mark.parametrize(
    ("source", "client", "vip_index", "verdict"),
    [
        pytest.param(AWAY, CLIENT_V4, 0, V.DROP_SPP_MALFORMED, id="another transceiver"),
        pytest.param(Address(HOME.host, 5001), CLIENT_V4, 0, V.DROP_SPP_MALFORMED, id="another process"),
        pytest.param(HOME, OTHER_CLIENT_V4, 0, V.DROP_SPP_MALFORMED, id="another client"),
        pytest.param(HOME, CLIENT_V4, 2, V.DROP_SPP_MALFORMED, id="another VIP"),
        pytest.param(Address.parse("10.2.0.1:5000"), CLIENT_V4, 0, V.DROP_SPP_SOURCE, id="outside the fleet"),
    ],
)
def test_word_of_anybody_else_confirms_nothing(
    relay: Asking, source: Address, client: Address, vip_index: int, verdict: Verdict
) -> None:
    relay.client_sends(RTP)
    relay.finds()
    assert relay.confirms(source, client, vip_index) is verdict
    assert (relay.went(), len(relay.core.flows)) == ([], 0)
    assert relay.confirms() is V.CONFIRM_FLOW


def test_word_before_the_cache_has_answered_confirms_nothing(relay: Asking) -> None:
    relay.client_sends(RTP)
    assert relay.confirms() is V.DROP_SPP_MALFORMED
    assert relay.core.flows.get(relay.key_of()) is None


def test_late_word_confirms_nothing(relay: Asking) -> None:
    relay.client_sends(RTP)
    relay.finds()
    relay.let_pass(0.1)
    relay.let_pass(0.2)
    assert relay.confirms() is V.DROP_SPP_MALFORMED
    assert relay.went() == [(RTP, None)]


def test_flow_of_a_check_takes_along_what_was_held(relay: Asking) -> None:
    """A check names its transceiver, whatever the cache would."""
    relay.client_sends(RTP)
    assert relay.client_sends(check(OTHER_CALL)).verdict is V.FORWARD_STUN
    assert relay.went() == [(RTP, AWAY)]
    assert (relay.flow_of().packets_up, relay.flow_of().media_up) == (2, True)
    relay.finds()
    assert (relay.departed(), relay.flow_of().transceiver) == ([], AWAY)


@pytest.mark.parametrize(("found", "went"), [(HOME, HOME), (AWAY, None)], ids=["the same", "another"])
def test_flow_of_a_check_takes_along_what_was_found_for_its_transceiver(
    relay: Asking, found: Address, went: Address | None
) -> None:
    relay.client_sends(RTP)
    relay.finds(found)
    relay.departed()
    relay.client_sends(check(CALL))
    assert relay.went() == [(RTP, went)]
    assert relay.confirms(AWAY) is V.DROP_SPP_MALFORMED
    assert relay.flow_of().transceiver == HOME
    assert relay.client_sends(RTP) == (V.FORWARD_FLOW, HOME, -1)


def test_flow_that_is_adopted_takes_along_what_was_held(relay: Asking) -> None:
    relay.client_sends(RTP)
    assert relay.core.adopt(relay.key_of(), HOME, CALL.tag, relay.now)
    assert relay.went() == [(RTP, HOME)]
    assert relay.flow_of().packets_up == 1


@pytest.mark.parametrize("comes", [lambda r: r.client_sends(RTP), Asking.confirms], ids=["packet", "word"])
def test_flow_that_another_worker_stored_takes_along_what_was_held(comes: Event) -> None:
    store = MemoryStore()
    relay = Asking(store)
    relay.client_sends(PACKETS[0])
    store.write(Flow(relay.key_of(), HOME, CALL.tag, relay.now, relay.now, relay.now, assured=True))
    comes(relay)
    assert relay.went() == [(PACKETS[0], HOME)]
    assert relay.client_sends(PACKETS[1]).verdict is V.FORWARD_FLOW


@pytest.mark.parametrize("talks", [False, True])
def test_check_of_another_call_takes_a_recalled_flow_over_unless_its_transceiver_talks(
    relay: Asking, talks: bool
) -> None:
    relay.client_sends(RTP)
    relay.finds()
    relay.confirms()
    if talks:
        relay.transceiver_sends(SERVER_HELLO, HOME)
    relay.client_sends(check(OTHER_CALL))
    assert relay.flow_of().transceiver == (HOME if talks else AWAY)


def test_recalled_flow_is_told_of_but_is_no_news_to_the_cache(relay: Asking) -> None:
    relay.client_sends(RTP)
    relay.finds()
    relay.confirms()
    ((flow, ended, is_news),) = relay.notices()
    assert (flow.key, flow.assured, ended, is_news) == (relay.key_of(), True, False, False)


def test_news_to_the_cache_is_what_turned_assured_or_took_another_ufrag(relay: Asking) -> None:
    relay.client_sends(check(CALL))
    relay.client_sends(CLIENT_HELLO)
    assert [notice.is_news for notice in relay.notices()] == [False]
    relay.transceiver_sends(SERVER_HELLO, HOME)
    assert [(n.flow.assured, n.is_news) for n in relay.notices()] == [(True, True)]
    relay.let_pass(POLICY.contest_s)
    relay.client_sends(check(RESTARTED_CALL))
    assert [(n.flow.ufrag_tag, n.is_news) for n in relay.notices()] == [(RESTARTED_CALL.tag, True)]


def test_call_goes_on_where_no_more_flows_can_be_assured() -> None:
    relay = Asking(max_assured_flows=1)
    relay.connect(CALL, OTHER_CLIENT_V4)
    relay.client_sends(RTP)
    relay.finds()
    assert relay.confirms() is V.CONFIRM_FLOW
    assert relay.went() == [(RTP, HOME)]
    assert relay.client_sends(RTP) == (V.FORWARD_FLOW, HOME, -1)
    assert (relay.flow_of().assured, relay.count(FlowEvent.FLOW_REFUSED)) == (False, 1)
    relay.transceiver_sends(SERVER_HELLO, HOME)
    assert relay.count(FlowEvent.FLOW_REFUSED) == 1


# bounds


def client(number: int) -> Address:
    """Each of a source of its own."""
    return Address(bytes((198, 51, number >> 8, number & 255)), 40000)


def test_packets_of_a_client_are_bounded_and_the_first_stay(relay: Asking) -> None:
    verdicts = [relay.client_sends(packet).verdict for packet in PACKETS]
    assert verdicts == [V.HOLD] * MAX_PACKETS + [V.DROP_HOLD_FULL] * (len(PACKETS) - MAX_PACKETS)
    relay.finds()
    relay.confirms()
    assert relay.went() == [(packet, HOME) for packet in PACKETS[:MAX_PACKETS]]


def test_clients_are_bounded(relay: Asking) -> None:
    for number in range(MAX_CLIENTS):
        assert relay.client_sends(RTP, client(number)).verdict is V.HOLD
    assert relay.client_sends(RTP, client(MAX_CLIENTS)).verdict is V.DROP_HOLD_FULL
    assert relay.client_sends(RTP, client(0)).verdict is V.HOLD
    assert len(relay.asked()) == MAX_CLIENTS
    relay.finds(client=client(5))
    relay.confirms(client=client(5))
    assert relay.client_sends(RTP, client(MAX_CLIENTS)).verdict is V.HOLD


def test_bytes_are_bounded(relay: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MAX_BYTES", 5000)
    large = RTP.ljust(2000)
    for number, verdict in enumerate([V.HOLD, V.HOLD, V.DROP_HOLD_FULL]):
        assert relay.client_sends(large, client(number)).verdict is verdict
    assert relay.client_sends(RTP.ljust(1000), client(3)).verdict is V.HOLD
    assert relay.client_sends(RTP, client(4)).verdict is V.DROP_HOLD_FULL
    relay.let_pass(0.5)
    relay.let_pass(0.5)
    assert [relay.client_sends(large, client(number)).verdict for number in (5, 6)] == [V.HOLD] * 2


def test_questions_are_bounded_in_all(relay: Asking) -> None:
    for number in range(5100):
        verdict = relay.client_sends(RTP, client(number)).verdict
        assert verdict is (V.HOLD if number < 5000 else V.DROP_HOLD_FULL)
        relay.recall.receive_not_found(relay.record(client=client(number)).name, relay.now)
    assert len(relay.asked()) == 5000
    relay.now += 0.0099
    held = [relay.client_sends(RTP, client(60_000 + number)).verdict for number in range(60)]
    assert held == [V.HOLD] * 50 + [V.DROP_HOLD_FULL] * 10


def test_questions_of_a_source_are_bounded_and_cost_others_none() -> None:
    relay = Asking(unknown_per_s=10, unknown_burst=20)
    verdicts = [relay.client_sends(RTP, Address(CLIENT_V4.host, 1024 + n)).verdict for n in range(6000)]
    assert verdicts == [V.HOLD] * 20 + [V.DROP_RATE_LIMITED] * 5980
    assert relay.client_sends(RTP, OTHER_CLIENT_V4).verdict is V.HOLD
    relay.now += 1
    assert [relay.client_sends(RTP, Address(CLIENT_V4.host, 9000 + n)).verdict for n in range(11)] == [
        *[V.HOLD] * 10,
        V.DROP_RATE_LIMITED,
    ]


def test_sources_are_xdp_s_to_limit_where_it_runs() -> None:
    relay = Asking(MemoryStore(), unknown_per_s=1, unknown_burst=1)
    assert {relay.client_sends(RTP, Address(CLIENT_V4.host, 1024 + n)).verdict for n in range(100)} == {
        V.HOLD
    }


def test_tokens_for_checks_are_not_used_up_by_media() -> None:
    relay = Asking(unknown_per_s=1, unknown_burst=1)
    for port in range(1024, 1034):
        relay.client_sends(RTP, Address(CLIENT_V4.host, port))
    assert relay.client_sends(check(CALL), Address(CLIENT_V4.host, 1024)).verdict is V.FORWARD_STUN


def test_what_was_missed_is_forgotten_at_a_bound_and_in_time(
    relay: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "MAX_MISSED", 10)

    def miss(number: int) -> None:
        assert relay.client_sends(RTP, client(number)).verdict is V.HOLD
        relay.recall.receive_not_found(relay.record(client=client(number)).name, relay.now)

    for number in range(11):
        miss(number)
    assert len(relay.recall._missed) == 10
    assert relay.client_sends(RTP, client(1)).verdict is V.DROP_UNKNOWN_FLOW
    assert relay.client_sends(RTP, client(0)).verdict is V.HOLD, "the oldest gave way"
    relay.let_pass(2.0)
    assert len(relay.recall._missed) == 1


def test_who_was_missed_again_is_remembered_for_longer_than_others(
    relay: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "MAX_MISSED", 3)
    for number, passed_s in ((0, 0.0), (1, 2.0), (0, 0.0), (2, 0.0), (3, 0.0)):
        relay.client_sends(RTP, client(number))
        relay.recall.receive_not_found(relay.record(client=client(number)).name, relay.now)
        relay.now += passed_s
    assert [relay.client_sends(RTP, client(number)).verdict for number in (0, 2, 3)] == [
        V.DROP_UNKNOWN_FLOW
    ] * 3


def test_given_up_everything_held_is_dropped(relay: Asking) -> None:
    relay.client_sends(RTP)
    relay.client_sends(RTP, OTHER_CLIENT_V4)
    relay.finds()
    relay.departed()
    relay.recall.give_up()
    assert [(d.datagram, d.transceiver) for d in relay.departed()] == [(RTP, None)] * 2
    assert relay.recall.due == float("inf")


def test_header_of_the_word_may_be_of_any_family(relay: Asking) -> None:
    """An IPv4 client whose transceiver has IPv6 alone."""
    relay.client_sends(RTP)
    relay.finds(CALL_V6.transceiver)
    word = spp(CLIENT_V4, POLICY.vips[0].address)
    assert relay.core.receive_from_fleet(word, CALL_V6.transceiver, relay.now).verdict is V.CONFIRM_FLOW
