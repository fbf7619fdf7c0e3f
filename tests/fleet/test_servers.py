"""Who has what, as nodes of a Cluster and Sentinels tell; either may tell anything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.redis_client import Node
from fleet.servers import _read_slots_untrusted

ASKED = Node("10.0.0.1", 7000)


def test_slots() -> None:
    slots = _read_slots_untrusted(
        [
            [0, 99, [b"10.0.0.2", 7000, b"id"], [b"10.0.0.3", 7000, b"a replica"]],
            [100, 16_383, [b"", 7001, b"id", []]],
        ],
        ASKED,
    )
    assert slots[0] == slots[99] == Node("10.0.0.2", 7000)
    assert slots[100] == slots[16_383] == Node("10.0.0.1", 7001)
    assert str(slots[0]) == "10.0.0.2:7000"


def test_a_node_that_does_not_know_its_address_has_no_slots() -> None:
    assert set(_read_slots_untrusted([[0, 16_383, [b"?", 7000]]], ASKED)) == {None}


@pytest.mark.parametrize(
    "reply",
    [
        None,
        5,
        b"OK",
        [],
        [5],
        [[0, 5]],
        [[0, 16_384, [b"a", 1]]],
        [[-1, 5, [b"a", 1]]],
        [[5, 0, [b"a", 1]]],
        [[0, 5, [b"a", 0]]],
        [[0, 5, [b"a", 65_536]]],
        [[0, 5, [b"\xff", 1]]],
        [[0, 5, [5, 1]]],
        [[b"0", 5, [b"a", 1]]],
        [[index, index, [b"%d" % index, 1]] for index in range(1001)],
    ],
)
def test_what_is_no_answer(reply: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, IndexError)):
        _read_slots_untrusted(reply, ASKED)


_REPLIES = st.recursive(
    st.integers(-1, 20_000) | st.binary(max_size=5) | st.none(), lambda inner: st.lists(inner, max_size=4)
)


@given(_REPLIES)
def test_whatever_is_told(reply: Any) -> None:
    try:
        slots = _read_slots_untrusted(reply, ASKED)
    except (ValueError, TypeError, AttributeError, IndexError):
        return
    assert len(slots) == 16_384
