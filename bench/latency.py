"""Time on the way at half load: from the generator's clock in the payload to the sink's, packets paced singly."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.histogram import BUCKETS, middle_of, percentile
from bench.progress import Progress
from bench.results import FLOWS, PAYLOAD, ROUTE, UP, XDP, LatencyRow
from bench.rig import Rig
from bench.stage import AT_ONCE, Player, Stage, stage

DEFAULT_PEERS = (ROUTE, XDP, "go-reference", "userspace")
_CAPACITY_S = 0.3
_CAPACITY_ROUNDS = 3
_CDF_POINTS = 200


@dataclass
class _Taken:
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BUCKETS, dtype=np.int64))
    lost: int = 0


def measure_latency(
    rig: Rig, names: Sequence[str], *, rounds: int, seconds: float, progress: Progress
) -> list[LatencyRow]:
    """Each at half of what it delivers; what the kernel routes and XDP at half of what the kernel routes."""
    with stage(rig, names, FLOWS, progress) as made:
        progress.expect(len(made.players) * (_CAPACITY_ROUNDS + rounds))
        capacities = _capacities(made, progress)
        taken: dict[str, _Taken] = defaultdict(_Taken)
        errors = dict(made.why_not)
        rates = half_loads(capacities)
        for number in range(rounds):
            for name, rate in rates.items():
                progress.advance(f"round {number + 1} of {rounds}, {name} at {rate} packets/s")
                try:
                    counts, lost = _play(made, made.players[name], rate, seconds)
                except BenchError as error:
                    errors[name] = str(error)
                    continue
                if number or rounds == 1:
                    taken[name].counts += counts
                    taken[name].lost += lost
        return [
            _row(name, rates[name], capacities[name], taken[name])
            if name in taken and taken[name].counts.any()
            else LatencyRow(name=name, rate=0, why_not=errors.get(name, "no packet arrived"))
            for name in names
        ]


def half_loads(capacities: dict[str, int]) -> dict[str, int]:
    """Packets/s for each; those that are to be compared at the same rate, at the lower one's."""
    rates = {name: capacity // 2 for name, capacity in capacities.items()}
    same = [rates[name] for name in (ROUTE, XDP) if name in rates]
    return {name: min(same) if name in (ROUTE, XDP) else rate for name, rate in rates.items()}


def _capacities(made: Stage, progress: Progress) -> dict[str, int]:
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(_CAPACITY_ROUNDS):
        for player in made.players.values():
            progress.advance(f"capacity of {player.name}")
            found[player.name].append(made.play(player, UP, (PAYLOAD,), AT_ONCE, _CAPACITY_S).pps)
    return {name: int(median(rates)) for name, rates in found.items() if median(rates)}


def _play(made: Stage, player: Player, rate: int, seconds: float) -> tuple[npt.NDArray[np.int64], int]:
    load = made.ready(player, UP, (PAYLOAD,), AT_ONCE, seconds)
    sample, counts = made.rig.latency(player.topology, player.way(UP), load, rate)
    return counts, sample.lost


def _row(name: str, rate: int, capacity: int, taken: _Taken) -> LatencyRow:
    counts: Any = taken.counts
    sums = np.cumsum(counts) / counts.sum()
    used = np.flatnonzero(counts)
    step = max(1, len(used) // _CDF_POINTS)
    return LatencyRow(
        name=name,
        rate=rate,
        capacity=capacity,
        packets=int(counts.sum()),
        lost=taken.lost,
        p50_ns=percentile(counts, 50),
        p99_ns=percentile(counts, 99),
        p999_ns=percentile(counts, 99.9),
        cdf=[(middle_of(int(bucket)), round(float(sums[bucket]), 6)) for bucket in used[::step]],
    )
