"""The ICE-lite agent: how much an address gets, through which relay, for how long, and under which credentials."""

from collections.abc import Callable

import pytest

from tests.transceiver.checks import CREDENTIAL, OTHER_RELAY, RELAY, write_check
from tests.transceiver.ice_call import ATTACKER, HOME, MOBILE, Call
from transceiver.ice import CheckRefusal, Credential
from wire.stun import parse_stun_untrusted, verify_integrity

# rule 7: amplification


def test_unproven_address_gets_at_most_three_times_what_it_sent() -> None:
    call = Call()
    datagram = write_check()
    answer = call.receive(datagram, HOME).answer
    sent = len(answer)
    while call.sends_to(50, dtls=True):
        sent += 50
        assert sent <= 3 * len(datagram)
    assert sent > 3 * len(datagram) - 50


def test_each_datagram_of_an_unproven_address_raises_its_allowance() -> None:
    call = Call()
    call.check(HOME)
    while call.sends_to(50, dtls=True):
        pass
    assert call.agent.receive_datagram(100, HOME)
    allowed = sum(call.sends_to(50, dtls=True) is not None for _ in range(20))
    assert 6 <= allowed <= 7


@pytest.mark.parametrize(
    "prove",
    [
        pytest.param(lambda call: call.agent.complete_handshake(), id="handshake"),
        pytest.param(lambda call: call.media(HOME), id="authenticated packet"),
    ],
)
def test_proven_address_gets_everything(prove: Callable[[Call], None]) -> None:
    call = Call()
    call.check(HOME)
    while call.sends_to(50, dtls=True):
        pass
    prove(call)
    assert all(call.sends_to(1200) == HOME for _ in range(1000))


def test_nominated_address_is_limited_until_it_has_sent_something_authentic() -> None:
    call = Call()
    call.connect()
    call.wait(7)
    call.check(MOBILE, use_candidate=True)
    assert call.agent.selected == MOBILE
    assert call.sends_to(1200) is None
    call.media(MOBILE)
    assert call.sends_to(1200) == MOBILE


def test_replays_raise_no_allowance() -> None:
    call = Call()
    captured = write_check()
    call.receive(captured, HOME)
    while call.sends_to(50, dtls=True):
        pass
    for _ in range(100):
        call.receive(captured, HOME)
    assert call.sends_to(50, dtls=True) is None


# the relay


def test_replies_go_through_the_relay_of_the_last_authentic_packet() -> None:
    call = Call()
    call.connect()
    call.media(HOME, newest=False, relay=OTHER_RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (HOME, OTHER_RELAY)
    call.check(HOME, relay=RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (HOME, RELAY)


def test_replay_through_another_relay_does_not_take_the_replies() -> None:
    call = Call()
    call.connect()
    captured = write_check()
    call.receive(captured, HOME, RELAY)
    call.receive(captured, HOME, OTHER_RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (HOME, RELAY)


def test_unauthenticated_datagram_through_another_relay_does_not_take_the_replies() -> None:
    call = Call()
    call.connect()
    call.dtls(HOME, OTHER_RELAY)
    assert call.agent.destination(100, dtls=False, now=call.now) == (HOME, RELAY)


# rule 8: consent


def test_consent_ends_30_s_after_the_last_check_on_the_selected_address() -> None:
    call = Call()
    call.connect()
    for _ in range(100):
        call.wait(5)
        call.check(HOME)
        assert not call.agent.is_expired(call.now)
    call.wait(29.9)
    assert not call.agent.is_expired(call.now)
    call.wait(0.1)
    assert call.agent.is_expired(call.now)


def test_session_without_any_check_is_expired_after_30_s() -> None:
    call = Call()
    call.wait(29.9)
    assert not call.agent.is_expired(call.now)
    call.wait(0.1)
    assert call.agent.is_expired(call.now)


def test_checks_on_another_address_and_media_give_no_consent() -> None:
    call = Call()
    call.connect()
    for _ in range(30):
        call.wait(1)
        call.media(HOME)
        call.check(MOBILE)
    assert call.agent.is_expired(call.now)


# ICE restart


def generation(number: int) -> Credential:
    return Credential(f"server{number}", f"passwordOfGeneration{number}", f"client{number}")


def test_both_credentials_work_after_a_restart() -> None:
    call = Call()
    call.check(HOME)
    assert call.agent.restart(generation(1), call.now) == []
    assert call.agent.credential == generation(1)
    assert set(call.agent.server_ufrags) == {CREDENTIAL.server_ufrag, "server1"}
    assert call.check(HOME).answer
    answer = call.check(MOBILE, credential=generation(1)).answer
    assert verify_integrity(answer, parse_stun_untrusted(answer), generation(1).ice_pwd.encode())


def test_halves_of_different_generations_are_refused() -> None:
    call = Call()
    call.agent.restart(generation(1), call.now)
    mixed = CREDENTIAL._replace(client_ufrag="client1")
    assert call.check(HOME, credential=mixed).refusal is CheckRefusal.USERNAME
    mixed = CREDENTIAL._replace(ice_pwd=generation(1).ice_pwd)
    assert call.check(HOME, credential=mixed).refusal is CheckRefusal.INTEGRITY


def test_old_credentials_are_over_30_s_after_a_restart() -> None:
    call = Call()
    call.check(HOME)
    call.agent.restart(generation(1), call.now)
    call.wait(29.9)
    assert call.agent.expire_credentials(call.now) == []
    assert call.check(HOME).answer
    call.wait(0.1)
    assert call.agent.expire_credentials(call.now) == [CREDENTIAL.server_ufrag]
    assert call.check(HOME).refusal is CheckRefusal.USERNAME
    assert call.check(HOME, credential=generation(1)).answer


def test_current_credentials_never_expire() -> None:
    call = Call()
    call.agent.restart(generation(1), call.now)
    call.wait(86_400)
    call.agent.expire_credentials(call.now)
    assert call.agent.server_ufrags == ("server1",)


def test_restart_keeps_the_path_and_the_memory_of_replays() -> None:
    call = Call()
    call.connect()
    captured = write_check(use_candidate=True)
    call.receive(captured, HOME)
    call.agent.restart(generation(1), call.now)
    call.wait(10)
    call.receive(captured, ATTACKER)
    assert call.agent.paths == (HOME,)
    assert call.sends_to() == HOME


def test_credentials_of_restart_upon_restart_are_bounded() -> None:
    call = Call()
    over: list[str] = []
    for number in range(100):
        over += call.agent.restart(generation(number), call.now)
        assert len(call.agent.server_ufrags) <= 4
        assert generation(number).server_ufrag in call.agent.server_ufrags
    assert len(over) == 97
    assert call.check(HOME).refusal is CheckRefusal.USERNAME


# whether another session may take an address


def test_path_is_active_for_6_s_after_the_last_sign_of_life() -> None:
    call = Call()
    call.connect()
    for sign_of_life in (lambda: call.check(HOME), lambda: call.media(HOME)):
        sign_of_life()
        call.wait(5.9)
        assert call.agent.is_active_on(HOME, call.now)
        call.wait(0.1)
        assert not call.agent.is_active_on(HOME, call.now)
    assert not call.agent.is_active_on(MOBILE, call.now)
