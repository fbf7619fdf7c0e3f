"""Times in buckets, as ``c/sink.c`` counts them: one nanosecond wide at first, then less than 1 % of the time."""

from collections.abc import Sequence

import numpy as np

SUB_BUCKETS_LOG2 = 8
BUCKETS = 4096
_LINEAR = 1 << SUB_BUCKETS_LOG2
_A_DOUBLING = _LINEAR // 2


def middle_of(bucket: int) -> float:
    """The time in the middle of a bucket, in nanoseconds."""
    if bucket < _LINEAR:
        return float(bucket)
    doubling, place = divmod(bucket - _LINEAR, _A_DOUBLING)
    shift = doubling + 1
    return float((place + _A_DOUBLING << shift) + ((1 << shift) - 1) / 2)


def percentile(counts: Sequence[int], percent: float) -> float:
    """The time, in nanoseconds, that this part of the packets did not exceed. Raises ValueError if there is none."""
    sums = np.cumsum(np.asarray(counts, dtype=np.int64))
    if not len(sums) or not sums[-1]:
        raise ValueError("no packet was counted")
    # at least one packet, and never more than all
    wanted = max(1, min(int(sums[-1]), int(np.ceil(sums[-1] * percent / 100))))
    return middle_of(int(np.searchsorted(sums, wanted)))
