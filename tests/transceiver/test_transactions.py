"""Transaction ids that were seen: none of the last 65,536 is forgotten, and they stay small."""

import tracemalloc

from transceiver.transactions import Transactions

_REMEMBERED = 65_536


def transaction_id(number: int) -> bytes:
    """As of a client that counts."""
    return number.to_bytes(12, "big")


def test_last_65536_are_remembered_and_no_others() -> None:
    seen = Transactions()
    for number in range(3 * _REMEMBERED):
        if number % 97 == 0:  # it was never seen
            assert transaction_id(number) not in seen
        seen.add(transaction_id(number))
        assert transaction_id(number) in seen
    for number in range(2 * _REMEMBERED, 3 * _REMEMBERED, 13):
        assert transaction_id(number) in seen
    for number in range(0, 2 * _REMEMBERED - 1024, 13):
        assert transaction_id(number) not in seen


def test_a_day_of_them_takes_less_than_a_megabyte() -> None:
    tracemalloc.start()
    try:
        seen = Transactions()
        most = 0
        for number in range(2 * _REMEMBERED):
            seen.add(transaction_id(number))
            if number % 512 == 511:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert transaction_id(2 * _REMEMBERED - 1) in seen
    assert most < 1_000_000
