"""The ICE-lite agent: rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transceiver.checks import (
    CREDENTIAL,
    OTHER_RELAY,
    RELAY,
    client,
    error_code,
    mapped_address,
    write_check,
)
from tests.transceiver.ice_call import ATTACKER, HOME, MOBILE, Call
from transceiver.ice import CONSENT_S, MAX_PATHS, CheckRefusal, CheckResult
from wire.stun import StunClass, parse_stun_untrusted, verify_integrity

# rule 1: who is answered


def test_check_is_answered_with_the_client_address() -> None:
    result = Call().check(HOME)
    answer = parse_stun_untrusted(result.answer)
    assert answer.message_class is StunClass.SUCCESS
    assert mapped_address(result.answer) == HOME.client
    assert verify_integrity(result.answer, answer, CREDENTIAL.ice_pwd.encode())


@pytest.mark.parametrize(
    ("datagram", "refusal"),
    [
        pytest.param(write_check(username="other:clientUfrag"), CheckRefusal.USERNAME, id="server ufrag"),
        pytest.param(write_check(username="serverUfrag:other"), CheckRefusal.USERNAME, id="client ufrag"),
        pytest.param(
            write_check(username="clientUfrag:serverUfrag"), CheckRefusal.USERNAME, id="ufrags swapped"
        ),
        pytest.param(
            write_check(username="serverUfrag:clientUfrag:x"), CheckRefusal.USERNAME, id="a third part"
        ),
        pytest.param(
            write_check(username="serverUfrag:clientufrag"), CheckRefusal.USERNAME, id="case of a letter"
        ),
        pytest.param(write_check(password="guessed"), CheckRefusal.INTEGRITY, id="wrong password"),
        pytest.param(write_check(password=""), CheckRefusal.INTEGRITY, id="empty password"),
    ],
)
def test_check_of_a_stranger_is_refused_and_leaves_nothing(datagram: bytes, refusal: CheckRefusal) -> None:
    call = Call()
    assert call.receive(datagram, HOME) == CheckResult(refusal=refusal)
    assert call.agent.selected is None
    assert call.agent.paths == ()
    assert call.sends_to() is None


def test_check_without_integrity_is_refused() -> None:
    call = Call()
    whole = write_check()
    bare = whole[:2] + (len(whole) - 20 - 32).to_bytes(2, "big") + whole[4:-32]
    assert call.receive(bare, HOME).refusal is CheckRefusal.INTEGRITY
    assert call.agent.paths == ()


@pytest.mark.parametrize("known", [False, True], ids=["unknown path", "known path"])
def test_role_conflict_is_answered_487_and_validates_nothing(known: bool) -> None:
    call = Call()
    if known:
        call.check(HOME)
    call.wait(CONSENT_S - 1)
    answer = call.receive(write_check(controlled=True, use_candidate=True), HOME).answer
    message = parse_stun_untrusted(answer)
    assert (message.message_class, error_code(message)) == (StunClass.ERROR, 487)
    assert verify_integrity(answer, message, CREDENTIAL.ice_pwd.encode())
    assert call.agent.paths == ((HOME,) if known else ())
    call.wait(1)
    assert call.agent.is_expired(call.now)


# rule 2: replays


def test_replayed_check_is_answered_but_validates_moves_and_renews_nothing() -> None:
    call = Call()
    call.connect()
    captured = write_check(use_candidate=True)
    call.receive(captured, HOME)
    call.wait(10)
    result = call.receive(captured, ATTACKER, OTHER_RELAY)
    assert mapped_address(result.answer) == ATTACKER.client
    assert (result.validated, result.removed) == (False, None)
    assert call.agent.paths == (HOME,)
    assert call.agent.selected == HOME
    assert call.agent.destination(100, dtls=False, now=call.now) == (HOME, RELAY)
    call.wait(20)
    assert call.agent.is_expired(call.now)


def test_replay_from_the_selected_address_does_not_renew_consent() -> None:
    call = Call()
    captured = write_check()
    call.receive(captured, HOME)
    call.wait(CONSENT_S - 1)
    assert call.receive(captured, HOME).answer
    call.wait(1)
    assert call.agent.is_expired(call.now)


def test_replay_from_a_validated_address_does_not_move_the_path() -> None:
    call = Call()
    call.connect()
    captured = write_check(use_candidate=True)
    call.receive(captured, HOME)
    call.check(MOBILE)
    call.wait(10)
    call.receive(captured, MOBILE)
    assert call.agent.selected == HOME


def test_check_is_remembered_through_thousands_of_others_and_replays() -> None:
    call = Call()
    call.connect()
    captured = write_check(use_candidate=True)
    call.receive(captured, HOME)
    for index in range(3000):
        call.wait(1.3)
        call.check(HOME)
        call.receive(captured, client(1000 + index))
    assert call.agent.paths == (HOME,)
    assert call.agent.selected == HOME


def test_check_of_a_stranger_does_not_use_up_its_transaction_id() -> None:
    call = Call()
    genuine = write_check()
    forged = bytearray(genuine)
    forged[-12] ^= 1  # in the digest; FINGERPRINT goes, or it would be noticed first
    bare = bytes(forged[:2]) + (len(forged) - 28).to_bytes(2, "big") + bytes(forged[4:-8])
    assert call.receive(bare, ATTACKER).refusal is CheckRefusal.INTEGRITY
    assert call.receive(genuine, HOME).validated


# rule 3: the latch


def test_first_check_is_latched_without_use_candidate() -> None:
    call = Call()
    assert call.sends_to(dtls=True) is None
    result = call.check(HOME, use_candidate=False)
    assert result.validated
    assert call.sends_to(dtls=True) == HOME


def test_second_address_does_not_take_the_latch() -> None:
    call = Call()
    call.check(HOME)
    call.check(MOBILE, use_candidate=True)
    assert call.sends_to() == HOME


# at most 8 paths


def test_ninth_address_takes_the_place_of_the_stalest_that_is_not_selected() -> None:
    call = Call()
    for index in range(MAX_PATHS):
        call.check(client(index))
        call.wait(0.1)
    call.check(client(1))  # now 2 is the stalest; 0 is older, but selected
    ninth = call.check(client(100))
    assert (ninth.validated, ninth.removed) == (True, client(2))
    assert len(call.agent.paths) == MAX_PATHS == 8
    assert client(2) not in call.agent.paths
    assert call.agent.selected == client(0)


def test_address_with_recent_media_is_not_the_stalest() -> None:
    call = Call()
    call.connect(client(0))
    for index in range(1, MAX_PATHS):
        call.check(client(index))
        call.wait(0.1)
    call.media(client(1), newest=False)
    assert call.check(client(100)).removed == client(2)


@given(st.lists(st.integers(0, 40), max_size=80))
def test_paths_are_bounded_whatever_checks_come(addresses: list[int]) -> None:
    call = Call()
    for address in addresses:
        call.check(client(address))
        assert len(call.agent.paths) <= MAX_PATHS
        assert call.agent.selected == client(addresses[0])


def test_packet_of_a_removed_path_is_dropped() -> None:
    call = Call()
    for index in range(MAX_PATHS + 1):
        call.check(client(index))
        call.wait(0.1)
    assert not call.agent.receive_datagram(100, client(1))
    assert call.agent.receive_datagram(100, client(0))


# rule 4: while the handshake runs


def test_handshake_follows_the_address_that_dtls_comes_from() -> None:
    call = Call()
    call.check(HOME)
    call.check(MOBILE)
    call.dtls(MOBILE)
    assert call.sends_to(dtls=True) == MOBILE
    call.dtls(HOME)
    assert call.sends_to(dtls=True) == HOME


def test_dtls_from_an_address_without_check_is_dropped() -> None:
    call = Call()
    call.check(HOME)
    assert not call.agent.receive_datagram(500, ATTACKER)
    call.agent.receive_dtls(ATTACKER, OTHER_RELAY)
    assert call.agent.destination(100, dtls=True, now=call.now) == (HOME, RELAY)


def test_handshake_answers_through_the_relay_that_delivered_dtls() -> None:
    call = Call()
    call.check(HOME, relay=RELAY)
    call.dtls(HOME, OTHER_RELAY)
    assert call.agent.destination(100, dtls=True, now=call.now) == (HOME, OTHER_RELAY)


def test_unanswered_flight_is_tried_on_the_next_address_in_turn() -> None:
    call = Call()
    for path in (HOME, MOBILE, client(3)):
        call.check(path)
    tried = []
    for _ in range(4):
        tried.append(call.sends_to(10, dtls=True))
        call.wait(0.5)
    assert tried == [HOME, MOBILE, client(3), HOME]


def test_datagrams_of_one_flight_stay_together() -> None:
    call = Call()
    call.check(HOME)
    call.check(MOBILE)
    for _ in range(3):
        assert call.sends_to(10, dtls=True) == HOME
        call.wait(0.1)


def test_answered_flight_is_not_tried_elsewhere() -> None:
    call = Call()
    call.check(HOME)
    call.check(MOBILE)
    assert call.sends_to(10, dtls=True) == HOME
    call.dtls(HOME)
    call.wait(5)
    assert call.sends_to(10, dtls=True) == HOME


def test_lone_address_gets_every_flight() -> None:
    call = Call()
    call.check(HOME)
    for _ in range(3):
        assert call.sends_to(10, dtls=True) == HOME
        call.wait(1)


def test_dtls_after_the_handshake_moves_nothing_by_itself() -> None:
    call = Call()
    call.connect()
    call.check(MOBILE)
    call.dtls(MOBILE, OTHER_RELAY)
    assert call.agent.selected == HOME


# rule 5: following authenticated packets


def test_newest_media_moves_the_path() -> None:
    call = Call()
    call.connect()
    call.check(MOBILE)
    call.media(MOBILE, relay=OTHER_RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (MOBILE, OTHER_RELAY)
    assert call.agent.moves == 1


def test_reordered_media_does_not_move_the_path() -> None:
    call = Call()
    call.connect()
    call.check(MOBILE)
    call.media(MOBILE, newest=False)
    assert call.agent.selected == HOME


def test_media_from_an_address_without_check_does_not_move_the_path() -> None:
    call = Call()
    call.connect()
    call.agent.authenticate(ATTACKER, OTHER_RELAY, newest=True, now=call.now)
    assert call.agent.selected == HOME
    assert call.agent.paths == (HOME,)


def test_late_packet_of_an_address_left_behind_does_not_bring_its_relay_back() -> None:
    call = Call()
    call.connect()
    call.check(MOBILE, relay=OTHER_RELAY)
    call.media(MOBILE, relay=OTHER_RELAY)
    call.media(HOME, newest=False, relay=RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (MOBILE, OTHER_RELAY)


@pytest.mark.parametrize(
    ("sequence_numbers", "newest"),
    [
        pytest.param([10, 11, 12], [True, True, True], id="in order"),
        pytest.param([10, 12, 11, 13], [True, True, False, True], id="reordered"),
        pytest.param([10, 10], [True, False], id="doubled"),
        pytest.param([65534, 65535, 0, 1], [True, True, True, True], id="wraparound"),
        pytest.param([65535, 1, 0, 65534, 2], [True, True, False, False, True], id="reordered at the wrap"),
        pytest.param([0, 65535], [True, False], id="one before zero"),
        pytest.param([0, 0x7FFF], [True, True], id="half the space ahead"),
        pytest.param([0, 0x8000], [True, False], id="half the space behind"),
        pytest.param([5, 300, 299, 301], [True, True, False, True], id="after loss"),
    ],
)
def test_newest_rtp_by_sequence_number(sequence_numbers: list[int], newest: list[bool]) -> None:
    agent = Call().agent
    assert [agent.is_newest_rtp(0xABCD, number) for number in sequence_numbers] == newest


def test_each_ssrc_has_its_own_sequence_numbers() -> None:
    agent = Call().agent
    assert agent.is_newest_rtp(1, 60_000)
    assert agent.is_newest_rtp(2, 5)
    assert not agent.is_newest_rtp(1, 59_999)
    assert agent.is_newest_rtp(2, 6)


def test_ten_rounds_of_sequence_numbers_in_order_are_all_newest() -> None:
    agent = Call().agent
    assert all(agent.is_newest_rtp(1, number & 0xFFFF) for number in range(0, 10 * 65536, 7))


@given(st.integers(0, 0xFFFF), st.lists(st.integers(0, 400), min_size=1, max_size=60))
def test_newest_rtp_agrees_with_unbounded_numbers(start: int, offsets: list[int]) -> None:
    agent = Call().agent
    highest = -1
    for offset in offsets:
        assert agent.is_newest_rtp(9, (start + offset) & 0xFFFF) is (offset > highest)
        highest = max(highest, offset)


def test_streams_whose_order_is_kept_are_bounded() -> None:
    agent = Call().agent
    assert [agent.is_newest_rtp(ssrc, 1) for ssrc in range(40)] == [True] * 32 + [False] * 8
    assert [agent.is_newest_rtcp(ssrc, 1) for ssrc in range(40)] == [True] * 32 + [False] * 8
    assert agent.is_newest_rtp(0, 2)
    assert agent.is_newest_rtcp(0, 2)


def test_newest_rtcp_by_index_of_each_sender() -> None:
    agent = Call().agent
    arrived = [(1, 0), (1, 1), (1, 1), (1, 5), (1, 4), (2, 0), (2, 1), (1, 6)]
    newest = [True, True, False, True, False, True, True, True]
    assert [agent.is_newest_rtcp(ssrc, index) for ssrc, index in arrived] == newest


@pytest.mark.parametrize(
    ("records", "newest"),
    [
        pytest.param([1 << 48 | 1, 1 << 48 | 2], [True, True], id="in order"),
        pytest.param([1 << 48 | 2, 1 << 48 | 1], [True, False], id="reordered"),
        pytest.param([1 << 48 | 2, 1 << 48 | 2], [True, False], id="doubled"),
        pytest.param([1 << 48 | 900, 2 << 48], [True, True], id="next epoch starts at zero"),
        pytest.param([2 << 48, 1 << 48 | 900], [True, False], id="late record of the epoch before"),
        pytest.param([0], [True], id="very first"),
    ],
)
def test_newest_dtls_record_by_epoch_and_sequence_number(records: list[int], newest: list[bool]) -> None:
    agent = Call().agent
    assert [agent.is_newest_record(record) for record in records] == newest


# rule 6: USE-CANDIDATE


@pytest.mark.parametrize(
    ("talked", "silence_s", "moves"),
    [
        pytest.param(True, 0.0, False, id="media flows"),
        pytest.param(True, 0.9, False, id="media paused for 0.9 s"),
        pytest.param(True, 1.0, True, id="media silent for 1 s"),
        pytest.param(False, 1.0, False, id="idle for 1 s"),
        pytest.param(False, 5.9, False, id="idle for 5.9 s"),
        pytest.param(False, 6.0, True, id="idle for 6 s"),
    ],
)
def test_use_candidate_moves_only_off_a_silent_address(talked: bool, silence_s: float, moves: bool) -> None:
    call = Call()
    call.connect()
    call.check(MOBILE)
    if talked:
        call.talk(HOME)
    call.check(HOME)
    call.wait(silence_s + 1e-6)
    call.check(MOBILE, use_candidate=True)
    assert call.agent.selected == (MOBILE if moves else HOME)


def test_check_without_use_candidate_never_moves() -> None:
    call = Call()
    call.connect()
    call.wait(10)
    call.check(MOBILE, use_candidate=False)
    assert call.agent.selected == HOME


def test_use_candidate_does_not_interrupt_the_handshake() -> None:
    call = Call()
    call.check(HOME)
    call.wait(10)
    call.check(MOBILE, use_candidate=True)
    assert call.agent.selected == HOME


def test_use_candidate_does_not_move_while_checks_of_an_idle_client_keep_coming() -> None:
    call = Call()
    call.connect()
    for _ in range(10):
        call.wait(2.5)
        call.check(HOME)
        call.check(MOBILE, use_candidate=True)
    assert call.agent.selected == HOME


def test_media_brings_the_path_back_from_a_nomination() -> None:
    call = Call()
    call.connect()
    call.talk(HOME)
    call.wait(1.1)
    call.check(MOBILE, use_candidate=True)
    assert call.agent.selected == MOBILE
    call.media(HOME)
    assert call.agent.selected == HOME


def test_address_that_was_nominated_is_idle_until_its_media_flows() -> None:
    call = Call()
    call.connect()
    call.talk(HOME)
    call.wait(1.1)
    call.check(MOBILE, use_candidate=True)
    call.wait(1.1)
    call.check(HOME, use_candidate=True)
    assert call.agent.selected == MOBILE
