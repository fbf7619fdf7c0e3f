"""Transceivers of other hosts: which leases are usable, and in which order they are tried."""

from typing import Any

import pytest

from transceiver.signaling.elsewhere import MAX_TRANSCEIVERS, Elsewhere, Transceiver, usable
from wire.address import Address

HERE = "0c5b7e0e-6c3f-4a0e-9d1c-1f6c7f0f8a11"
LEASE = {
    "kind": "transceiver",
    "internal_http": "10.0.1.7:4000",
    "state": "ready",
    "sessions": 3,
    "max_sessions": 10,
    "expires_s": 4.0,
    "name": "transceiver-0",
}


def lease(**changes: Any) -> dict[str, Any]:
    return {**LEASE, **changes}


def at(port: int) -> Address:
    return Address.parse(f"10.0.1.7:{port}")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "relay"},
        {"kind": None},
        {"state": "draining"},
        {"state": "hung"},
        {"sessions": 10},
        {"sessions": -1},
        {"expires_s": 0},
        {"internal_http": "elsewhere"},
        {"internal_http": None},
        {"max_sessions": "many"},
        {"sessions": None},
        {"expires_s": None},
        {"state": None},
    ],
    ids=str,
)
def test_lease_that_cannot_take_a_session_is_left_out(changes: dict[str, Any]) -> None:
    assert usable([lease()], HERE) == [Transceiver(at(4000), 3, 10)]
    assert usable([lease(**changes)], HERE) == []
    assert usable([{key: value for key, value in LEASE.items() if key not in changes}], HERE) == []


@pytest.mark.parametrize("full", ["sessions", "memory", "cpu"])
def test_full_one_is_left_out_though_it_has_few_sessions(full: str) -> None:
    assert usable([lease(full=full), lease(full=None, internal_http="10.0.1.8:4000")], HERE) == [
        Transceiver(Address.parse("10.0.1.8:4000"), 3, 10)
    ]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:4000",
        "127.0.0.2:4000",
        "0.0.0.0:4000",
        "[::1]:4000",
        "[::]:4000",
        "[::ffff:127.0.0.1]:4000",
        "[::ffff:0.0.0.0]:4000",
    ],
)
def test_address_of_each_machine_itself_is_used_on_the_same_machine_only(address: str) -> None:
    """On another it is not the transceiver that listens there, and it would be shown the fleet's credential."""
    there = "a2d6cb21-2f0a-4d7e-8f43-5b1b9d5c2e77"
    ours = lease(internal_http=address, machine=HERE)
    assert [t.internal_http for t in usable([ours], HERE)] == [Address.parse(address)]
    for machine in (there, "", None, [HERE]):
        assert usable([ours | {"machine": machine}], HERE) == []
    assert usable([lease(internal_http=address)], HERE) == []
    for lost in ({}, {"machine": ""}):
        assert usable([lease(internal_http=address, **lost)], "") == []


def test_address_that_others_reach_is_used_on_any_machine() -> None:
    assert len(usable([lease(machine="another"), lease()], HERE)) == 2
    assert len(usable([lease(machine="another"), lease()], "")) == 2


def test_least_loaded_come_first_and_only_so_many() -> None:
    leases = [
        lease(internal_http=str(at(4000 + load)), sessions=load, max_sessions=100) for load in range(99)
    ]
    found = usable(reversed(leases), HERE)
    assert [t.internal_http for t in found] == [at(4000 + load) for load in range(MAX_TRANSCEIVERS)]


def test_they_cross_the_channel() -> None:
    transceiver = Transceiver(Address.parse("[2001:db8::1]:9"), 1, 2)
    assert Transceiver.from_message(transceiver.to_message()) == transceiver


def test_sessions_that_were_given_count_until_the_next_word() -> None:
    elsewhere = Elsewhere()
    assert elsewhere.best(0.0) is None
    two = [Transceiver(at(1), 0, 4), Transceiver(at(2), 2, 4)]
    elsewhere.update(two)
    given = []
    while (best := elsewhere.best(0.0)) is not None:
        given.append(best.port)
        elsewhere.note_given(best, 0.0)
    assert given == [1, 1, 1, 2, 1, 2]
    elsewhere.update(two)
    assert elsewhere.best(0.0) == at(1)


def test_sessions_that_were_given_lapse_without_another_word() -> None:
    """Where they end before the next lease, it is the same as the one before, and nobody hears of it."""
    elsewhere = Elsewhere()
    elsewhere.update([Transceiver(at(1), 0, 2)])
    elsewhere.note_given(at(1), 0.0)
    elsewhere.note_given(at(1), 3.0)
    assert elsewhere.best(4.9) is None
    assert elsewhere.best(5.1) == at(1)
    elsewhere.note_given(at(1), 5.1)
    assert elsewhere.best(7.9) is None
    assert elsewhere.best(8.1) == at(1)


def test_one_that_failed_is_left_alone_for_a_while_whatever_its_lease_says() -> None:
    elsewhere = Elsewhere()
    two = [Transceiver(at(1), 0, 4), Transceiver(at(2), 2, 4)]
    elsewhere.update(two)
    elsewhere.note_failed(at(1), 0.0)
    elsewhere.update(two)
    assert elsewhere.best(4.9) == at(2)
    assert elsewhere.best(4.9, tried=[at(2)]) is None
    assert elsewhere.best(5.1) == at(1)
