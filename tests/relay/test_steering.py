"""The steering table: equal shares, and few clients that change their worker."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.steering import hash_address, maglev_table
from wire.address import Address

SIZE = 16_381


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 64])
def test_slots_get_equal_shares(count: int) -> None:
    shares = Counter(maglev_table(range(count), SIZE))
    assert set(shares) == set(range(count))
    assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 5), (8, 9), (5, 4), (9, 8)])
def test_one_slot_more_or_less_moves_little_but_its_own_share(before: int, after: int) -> None:
    old, new = (maglev_table(range(count), SIZE) for count in (before, after))
    moved = sum(a != b for a, b in zip(old, new, strict=True)) / SIZE
    assert 1 / max(before, after) - 0.01 <= moved < 1.25 / max(before, after) + 0.02


def test_slots_need_not_be_consecutive() -> None:
    assert set(maglev_table([0, 3, 17], SIZE)) == {0, 3, 17}


def test_table_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        maglev_table([], SIZE)


@given(st.binary(min_size=4, max_size=4), st.integers(0, 65535), st.tuples(*[st.integers(0, 2**64 - 1)] * 2))
def test_hash_is_64_bits_and_depends_on_the_key(host: bytes, port: int, key: tuple[int, int]) -> None:
    address = Address(host, port)
    assert 0 <= hash_address(address, key) < 2**64
    assert hash_address(address, key) != hash_address(address, (key[0] ^ 1, key[1]))
