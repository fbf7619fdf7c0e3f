"""Admission: what a remembered ufrag is spared, and what it is not."""

from typing import Any

import pytest

import relay.core.admission
from relay.core.admission import Admission, RefusedError
from relay.core.policy import AddressRules, RelayPolicy
from relay.core.verdict import Verdict
from tests.relay.network import (
    CALL,
    CLUSTER_ID,
    KEYS,
    NEW_KEY,
    OLD_KEY,
    OTHER_CALL,
    POLICY,
    RESTARTED_CALL,
    UNIX_S,
    Call,
    call_at,
    check,
)
from wire.keys import FleetKey, KeyRing
from wire.stun import parse_stun_untrusted
from wire.ufrag import RouteHint, open_session_untrusted


def admission(keys: KeyRing = KEYS, policy: RelayPolicy = POLICY) -> Admission:
    return Admission(keys, policy, AddressRules(policy))


def verdict_of(door: Admission, call: Call, unix_s: float = UNIX_S, pwd: bytes | None = None) -> Verdict:
    """FORWARD_STUN where the request is admitted to the call's transceiver."""
    datagram = check(call, pwd=pwd)
    message = parse_stun_untrusted(datagram)
    try:
        hint = door.admit(datagram, message, message.ufrags_untrusted[0], unix_s)
    except RefusedError as refused:
        return refused.verdict
    assert hint.transceiver == call.transceiver
    return Verdict.FORWARD_STUN


def test_remembered_ufrag_still_ages() -> None:
    door, end = admission(), UNIX_S - 60 + POLICY.max_session_s
    assert verdict_of(door, CALL) is Verdict.FORWARD_STUN
    assert verdict_of(door, CALL, end) is Verdict.FORWARD_STUN
    assert verdict_of(door, CALL, end + 1) is Verdict.DROP_UFRAG_EXPIRED


def test_remembered_ufrag_still_needs_integrity() -> None:
    door = admission()
    assert verdict_of(door, CALL) is Verdict.FORWARD_STUN
    assert verdict_of(door, CALL, pwd=b"guess") is Verdict.DROP_STUN_INTEGRITY
    assert verdict_of(door, CALL) is Verdict.FORWARD_STUN


def test_forged_request_with_a_genuine_ufrag_opens_the_door_to_no_other() -> None:
    door = admission()
    assert verdict_of(door, CALL, pwd=b"guess") is Verdict.DROP_STUN_INTEGRITY
    assert verdict_of(door, CALL, pwd=OTHER_CALL.pwd) is Verdict.DROP_STUN_INTEGRITY
    assert verdict_of(door, CALL) is Verdict.FORWARD_STUN


@pytest.mark.parametrize(
    ("issued_at", "verdict"),
    [
        pytest.param(UNIX_S - 3600, Verdict.FORWARD_STUN, id="max_session_s old"),
        pytest.param(UNIX_S - 3601, Verdict.DROP_UFRAG_EXPIRED, id="a second older"),
        pytest.param(UNIX_S, Verdict.FORWARD_STUN, id="issued now"),
        pytest.param(UNIX_S + 5, Verdict.FORWARD_STUN, id="clock_skew_s ahead"),
        pytest.param(UNIX_S + 6, Verdict.DROP_UFRAG_EXPIRED, id="a second further ahead"),
        pytest.param(0, Verdict.DROP_UFRAG_EXPIRED, id="1970"),
        pytest.param(0xFFFFFFFF, Verdict.DROP_UFRAG_EXPIRED, id="2106"),
    ],
)
def test_age(issued_at: int, verdict: Verdict) -> None:
    policy = RelayPolicy(
        cluster_id=CLUSTER_ID,
        vips=POLICY.vips,
        transceiver_networks=POLICY.transceiver_networks,
        max_session_s=3600,
        clock_skew_s=5,
    )
    assert verdict_of(admission(policy=policy), call_at("10.1.2.3:5000", issued_at=issued_at)) is verdict


OF_OLD_KEY, OF_NEW_KEY = call_at("10.1.2.3:5000", key=OLD_KEY), call_at("10.1.2.3:5000", key=NEW_KEY)


@pytest.mark.parametrize(
    ("ring", "old", "new"),
    [
        pytest.param(
            KeyRing([OLD_KEY], 1), Verdict.FORWARD_STUN, Verdict.DROP_UFRAG_UNKNOWN_KEY, id="before"
        ),
        pytest.param(
            KeyRing([OLD_KEY, NEW_KEY], 1), Verdict.FORWARD_STUN, Verdict.FORWARD_STUN, id="relays have it"
        ),
        pytest.param(
            KeyRing([OLD_KEY, NEW_KEY], 2), Verdict.FORWARD_STUN, Verdict.FORWARD_STUN, id="new one seals"
        ),
        pytest.param(
            KeyRing([NEW_KEY], 2), Verdict.DROP_UFRAG_UNKNOWN_KEY, Verdict.FORWARD_STUN, id="old one is gone"
        ),
        pytest.param(
            KeyRing([OLD_KEY, FleetKey(2, bytes(32))], 1),
            Verdict.FORWARD_STUN,
            Verdict.DROP_UFRAG_FORGED,
            id="same id, another secret",
        ),
    ],
)
def test_key_rotation(ring: KeyRing, old: Verdict, new: Verdict) -> None:
    door = admission(ring)
    assert (verdict_of(door, OF_OLD_KEY), verdict_of(door, OF_NEW_KEY)) == (old, new)


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        pytest.param(
            {"transceiver": "10.2.0.1:5000", "cluster_id": 8, "issued_at": 0},
            Verdict.DROP_UFRAG_CLUSTER,
            id="cluster first: its networks and clocks are not ours",
        ),
        pytest.param({"transceiver": "10.2.0.1:5000", "issued_at": 0}, Verdict.DROP_UFRAG_NETWORK, id="network"),
        pytest.param({"transceiver": "10.1.2.3:5000", "issued_at": 0}, Verdict.DROP_UFRAG_EXPIRED, id="age"),
    ],
)  # fmt: skip
def test_the_costly_check_comes_last(wrong: dict[str, Any], verdict: Verdict) -> None:
    assert verdict_of(admission(), call_at(**wrong), pwd=b"guess") is verdict


@pytest.fixture
def unsealed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every ufrag that admission unseals."""
    ufrags: list[str] = []

    def open_session(keys: KeyRing, ufrag: str) -> tuple[RouteHint, str]:
        ufrags.append(ufrag)
        return open_session_untrusted(keys, ufrag)

    monkeypatch.setattr(relay.core.admission, "open_session_untrusted", open_session)
    return ufrags


def test_ufrag_is_unsealed_once_and_the_longest_unused_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, unsealed: list[str]
) -> None:
    monkeypatch.setattr(relay.core.admission, "_CACHED_UFRAGS", 2)
    door = admission()
    a, b, c = CALL, OTHER_CALL, RESTARTED_CALL
    for call in (a, b, a, c, a, b):
        assert verdict_of(door, call) is Verdict.FORWARD_STUN
    assert unsealed == [call.ufrag for call in (a, b, c, b)]


def test_ufrag_that_does_not_open_pushes_none_out(
    monkeypatch: pytest.MonkeyPatch, unsealed: list[str]
) -> None:
    monkeypatch.setattr(relay.core.admission, "_CACHED_UFRAGS", 1)
    door = admission(KeyRing([NEW_KEY], 2))
    for call in (OF_NEW_KEY, OF_OLD_KEY, OF_OLD_KEY, OF_NEW_KEY):
        verdict_of(door, call)
    assert unsealed == [OF_NEW_KEY.ufrag, OF_OLD_KEY.ufrag, OF_OLD_KEY.ufrag]
