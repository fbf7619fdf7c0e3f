"""A run of several scenarios, those of one data path with the same hosts and calls."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from random import Random
from typing import Any

from bench.chromium import CHROMIUM
from bench.conditions import machine, output
from bench.errors import BenchError
from bench.progress import Progress
from bench.recovery.prober import INTERVAL_S
from bench.recovery.results import Recovery
from bench.recovery.rounds import PHASE_S, Played, Scenario, play_rounds
from bench.recovery.stage import stage
from host.errors import OperatorError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to run: rounds of each scenario and column, calls of aiortc, tabs of Chromium; seed of the times of kills."""

    scenarios: Sequence[Scenario]
    rounds: int
    calls: int
    tabs: int
    redis: bool
    seed: int

    @property
    def columns(self) -> Sequence[bool]:
        """Without Redis, then with it."""
        return (False, True) if self.redis else (False,)


def measure_recovery(wanted: Wanted, shown: Progress) -> Recovery:
    """All that is wanted; what could not be run says why."""
    chance = Random(wanted.seed)
    conditions = _describe(wanted)
    shown.expect(len(wanted.scenarios) * wanted.rounds * len(wanted.columns))
    played: list[Played] = []
    for dataplane, group in groupby(wanted.scenarios, key=lambda scenario: scenario.dataplane):
        scenarios = list(group)
        shown.say(f"starting relay, transceivers and {wanted.calls + wanted.tabs} calls, {dataplane}")
        done = len(played)
        try:
            with stage(dataplane=dataplane, calls=wanted.calls, tabs=wanted.tabs, redis=wanted.redis) as made:
                for scenario in scenarios:
                    played.append(play_rounds(made, scenario, wanted.rounds, wanted.columns, chance, shown))
        except (BenchError, OperatorError, OSError) as error:
            missing = scenarios[len(played) - done :]
            played += [Played(scenario, why_not=str(error)) for scenario in missing]
    intervals = _intervals(played)
    return Recovery(conditions={**conditions, "check_intervals_s": intervals}, played=played)


def _describe(wanted: Wanted) -> dict[str, Any]:
    return {
        **machine(),
        "python": platform.python_version(),
        "aiortc": version("aiortc"),
        "aioice": version("aioice"),
        "chromium": output(CHROMIUM, "--version") if wanted.tabs else "",
        "redis": output("redis-server", "--version") if wanted.redis else "",
        "path": "six network namespaces, veth pairs, IPv4; relays with as many workers as cores, 2 transceivers",
        "rounds": wanted.rounds,
        "aiortc_calls": wanted.calls,
        "chromium_tabs": wanted.tabs,
        "seed": wanted.seed,
        "phase_s": f"uniform, 0 to {PHASE_S:g}",
        "probe_interval_ms": INTERVAL_S * 1000,
    }


def _intervals(played: Sequence[Played]) -> dict[str, Any]:
    """Of checks as they were sent, outages among them."""
    found: dict[str, list[float]] = {}
    for one in played:
        for kind, intervals in one.check_intervals_s.items():
            found.setdefault(kind, []).extend(intervals)
    return {
        kind: {"median": round(statistics.median(intervals), 2), "longest": round(max(intervals), 2)}
        for kind, intervals in found.items()
        if intervals
    }
