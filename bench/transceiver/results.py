"""What a run found, a row a variant."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.transceiver.running_load import Run
from bench.transceiver.variants import STOCK

# Of a search that ended because more calls were not asked for.
NOT_LIMITED = "--max-calls"


@dataclass(kw_only=True)
class CallsRow:
    """Calls of one variant. ``runs``: at the moderate load, of the rounds that count. ``steps``: of the search.

    highest: calls that held; None if not measured. limit: why more did not; is_disturbed: while others had the core, so
    it is no more than a lower bound.
    """

    name: str
    what: str
    calls: int = 0
    runs: list[Run] = field(default_factory=list)
    steps: list[Run] = field(default_factory=list)
    highest: int | None = None
    limit: str = ""
    is_disturbed: bool = False
    why_not: str = ""

    @property
    def cpu_ms(self) -> float | None:
        """Milliseconds a second of a call, the median of the rounds."""
        return statistics.median(run.cpu_ms_per_call for run in self.runs) if self.runs else None

    @property
    def extrapolated(self) -> float | None:
        """Calls that a core would have by the time that one takes at the moderate load."""
        return 1000 / self.cpu_ms if self.cpu_ms else None

    def delay_ms(self, name: str) -> float | None:
        """The median of the rounds' ``delay_p50_ms`` or ``delay_p99_ms``."""
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return statistics.median(values) if values else None

    @property
    def at_highest(self) -> Run | None:
        """The turn of the highest number that held."""
        held = [run for run in self.steps if run.calls == self.highest]
        return held[-1] if held else None

    @property
    def is_lower_bound(self) -> bool:
        """Whether no larger number failed, or others had a part in it."""
        return self.is_disturbed or self.limit == NOT_LIMITED

    def total(self, name: str) -> int:
        """Of all turns at the moderate load."""
        return sum(getattr(run, name) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            **asdict(self),
            "cpu_ms_per_call": self.cpu_ms,
            "extrapolated": self.extrapolated,
            "delay_p50_ms": self.delay_ms("delay_p50_ms"),
            "delay_p99_ms": self.delay_ms("delay_p99_ms"),
        }


@dataclass(kw_only=True)
class SetupRow:
    """Setups one after the other: CPU and wall-clock milliseconds of one, by round."""

    name: str
    made: int = 0
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    why_not: str = ""


@dataclass(kw_only=True)
class PhasesRow:
    """Setup by phase as one kind of client saw it, ms after the POST; by phase a value a call."""

    client: str
    round_trip_ms: float
    phases_ms: dict[str, list[float]] = field(default_factory=dict)
    why_not: str = ""

    def median(self, phase: str) -> float | None:
        """Of the calls that came so far."""
        values = self.phases_ms.get(phase)
        return statistics.median(values) if values else None


@dataclass(kw_only=True)
class MemoryRow:
    """Bytes of a process: what each connected session added; and before and after so many calls came and went.

    rounds_rss: after each hundred of them, as soon as they had hung up.
    """

    name: str
    sessions: int = 0
    empty_pss: int = 0
    full_pss: int = 0
    full_threads: int = 0
    churned: int = 0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    rounds_rss: list[int] = field(default_factory=list)
    why_not: str = ""

    @property
    def per_session(self) -> float | None:
        """PSS."""
        return (self.full_pss - self.empty_pss) / self.sessions if self.sessions else None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit of one phase at one round trip. least_ms: what the round trips that the phase needs take."""

    text: str
    least_ms: float
    limit_ms: float
    measured_ms: float | None

    @property
    def holds(self) -> bool | None:
        """None where it was not measured."""
        return None if self.measured_ms is None else self.measured_ms <= self.limit_ms


# Phases, and how much of the round trip and what besides each may take.
TARGETS = {"dtls": (2.3, 25.0), "audio": (2.3, 120.0)}


# Round trips that a phase needs. Chromium: the check and its answer, with which our ClientHello comes; its hello and
# certificate, and our certificate and Finished, by which it is done; the first packet and its echo. aiortc answers our
# ClientHello only after a second check, which nominates.
LEAST_ROUND_TRIPS = {
    "Chromium": {"answered": 0, "ice": 1, "dtls": 2, "audio": 3},
    "aiortc": {"answered": 0, "ice": 2, "dtls": 3, "audio": 4},
}


@dataclass(kw_only=True)
class Found:
    """Everything of a run."""

    conditions: dict[str, Any]
    calls: Sequence[CallsRow] = ()
    setups: Sequence[SetupRow] = ()
    phases: Sequence[PhasesRow] = ()
    memory: Sequence[MemoryRow] = ()

    def ratios(self) -> dict[str, float]:
        """What stock aiortc takes, or has, over what ours does: more than 1 is better."""
        found: dict[str, float] = {}
        stock_calls = next((row for row in self.calls if row.name == STOCK), None)
        for row in self.calls:
            if stock_calls is None or row is stock_calls:
                continue
            if row.highest and stock_calls.highest and not stock_calls.is_disturbed:
                bound = ", at least" if row.is_lower_bound else ""
                found[f"calls a core{bound}: {row.name}"] = row.highest / stock_calls.highest
            pairs = zip(row.runs, stock_calls.runs, strict=False)
            ratios = [stock.cpu_ms_per_call / ours.cpu_ms_per_call for ours, stock in pairs]
            if ratios:
                found[f"CPU a call: {row.name}"] = statistics.median(ratios)
        stock_setup = next((row for row in self.setups if row.name == STOCK), None)
        for setup in self.setups:
            if stock_setup and setup is not stock_setup and setup.cpu_ms and stock_setup.cpu_ms:
                pair = zip(setup.cpu_ms, stock_setup.cpu_ms, strict=False)
                found[f"CPU a setup: {setup.name}"] = statistics.median(b / a for a, b in pair)
        stock_memory = next((row for row in self.memory if row.name == STOCK), None)
        for memory in self.memory:
            if (
                stock_memory
                and memory is not stock_memory
                and memory.per_session
                and stock_memory.per_session
            ):
                found[f"memory a session: {memory.name}"] = stock_memory.per_session / memory.per_session
        return found

    def targets(self) -> list[Target]:
        """Of the phases that were measured."""
        return [
            Target(
                text=f"{phase}, {row.client}, round trip {row.round_trip_ms:g} ms",
                least_ms=LEAST_ROUND_TRIPS[row.client][phase] * row.round_trip_ms,
                limit_ms=times * row.round_trip_ms + besides,
                measured_ms=row.median(phase),
            )
            for row in self.phases
            for phase, (times, besides) in TARGETS.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "conditions": self.conditions,
            "calls": [row.to_json() for row in self.calls],
            "setups": [asdict(row) for row in self.setups],
            "phases": [asdict(row) for row in self.phases],
            "memory": [{**asdict(row), "bytes_per_session": row.per_session} for row in self.memory],
            "ratios": self.ratios(),
            "targets": [{**asdict(one), "holds": one.holds} for one in self.targets()],
        }
