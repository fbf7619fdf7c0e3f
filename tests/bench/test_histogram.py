"""Buckets of time, and percentiles from them."""

import pytest

from bench.histogram import BUCKETS, SUB_BUCKETS_LOG2, middle_of, percentile

LINEAR = 1 << SUB_BUCKETS_LOG2
A_DOUBLING = LINEAR // 2


def bucket_of(ns: int) -> int:
    """The bucket of a time, as c/sink.c has it."""
    shift = (ns >> SUB_BUCKETS_LOG2).bit_length()
    if not shift:
        return ns
    return min(LINEAR + (shift - 1) * A_DOUBLING + (ns >> shift) - A_DOUBLING, BUCKETS - 1)


@pytest.mark.parametrize(
    ("ns", "bucket"),
    [(0, 0), (255, 255), (256, 256), (257, 256), (258, 257), (511, 383), (512, 384), (2**60, BUCKETS - 1)],
)
def test_bucket(ns: int, bucket: int) -> None:
    assert bucket_of(ns) == bucket


@pytest.mark.parametrize("ns", [1, 300, 999, 12_345, 1_000_000, 33_333_333, 5_000_000_000])
def test_a_bucket_is_narrow(ns: int) -> None:
    assert middle_of(bucket_of(ns)) == pytest.approx(ns, rel=0.005)


def test_buckets_are_in_order() -> None:
    middles = [middle_of(bucket) for bucket in range(3000)]
    assert middles == sorted(middles)
    assert [bucket_of(int(middle)) for middle in middles] == list(range(3000))


@pytest.mark.parametrize(
    ("description", "counts", "percent", "ns"),
    [
        ("one packet", {100: 1}, 50, 100),
        ("one packet, the last percentile", {100: 1}, 99.9, 100),
        ("half and half", {10: 50, 20: 50}, 50, 10),
        ("just beyond half", {10: 50, 20: 50}, 51, 20),
        ("the slowest of a hundred", {10: 99, 200: 1}, 99, 10),
        ("the slowest of a thousand", {10: 998, 200: 2}, 99.9, 200),
    ],
)
def test_percentile(description: str, counts: dict[int, int], percent: float, ns: float) -> None:
    buckets = [counts.get(bucket, 0) for bucket in range(BUCKETS)]
    assert percentile(buckets, percent) == ns


def test_no_packet_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no packet"):
        percentile([0] * BUCKETS, 50)
