"""Rounds as rows of a table, and whether targets were reached; as JSON, with every round."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.recovery.clients import KINDS
from bench.recovery.rounds import CallRound, Played, Way
from bench.recovery.traces import Spread

WAYS: dict[str, Callable[[CallRound], Way]] = {"up": lambda call: call.up, "down": lambda call: call.down}
RESTART_MS, OTHER_HOST_MS = 100.0, 50.0
_LIMITS_MS = {"restart": RESTART_MS, "takeover": OTHER_HOST_MS, "move": OTHER_HOST_MS}


@dataclass(frozen=True, kw_only=True)
class Column:
    """With Redis, or without: of all rounds and calls of a row. not_back: calls that did not come back in their round."""

    recovery_ms: Spread | None
    gap_ms: Spread | None
    sent: int
    lost: int
    not_back: int

    @classmethod
    def of(cls, calls: Sequence[CallRound], way_of: Callable[[CallRound], Way]) -> "Column":
        """Of one way of these."""
        ways = [way_of(call) for call in calls]
        return cls(
            recovery_ms=Spread.of(way.recovery_ms for way in ways if way.recovery_ms is not None),
            gap_ms=Spread.of(way.gap_ms for way in ways if way.gap_ms is not None),
            sent=sum(way.loss.sent for way in ways),
            lost=sum(way.loss.lost for way in ways),
            not_back=sum(not call.is_back for call in calls),
        )

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        spreads = {"recovery_ms": self.recovery_ms, "gap_ms": self.gap_ms}
        shown = {name: spread._asdict() if spread else None for name, spread in spreads.items()}
        return {**shown, "sent": self.sent, "lost": self.lost, "not_back": self.not_back}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One direction of calls of one kind in one scenario; ``columns`` by whether there was Redis."""

    scenario: str
    kind: str
    way: str
    columns: dict[bool, Column]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What was to be reached. ``measured``: None where it was not; infinite with a call that never came back."""

    text: str
    limit: float
    unit: str
    measured: float | None

    @property
    def holds(self) -> bool | None:
        """Whether it was reached; None where that is not known."""
        return None if self.measured is None else self.measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        measured = self.measured if self.measured is None or math.isfinite(self.measured) else None
        return {**asdict(self), "measured": measured, "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Everything of a run."""

    conditions: dict[str, Any]
    played: Sequence[Played]

    def rows(self) -> list[Row]:
        """In the order of the table."""
        found = []
        for played in self.played:
            for kind in KINDS:
                for way, way_of in WAYS.items():
                    columns = {}
                    for redis in (False, True):
                        calls = list(_calls(played, redis=redis, kind=kind.name))
                        if calls:
                            columns[redis] = Column.of(calls, way_of)
                    if columns:
                        row = Row(scenario=played.scenario.name, kind=kind.name, way=way, columns=columns)
                        found.append(row)
        return found

    def targets(self) -> list[Target]:
        """Of what was played."""
        found: list[Target] = []
        for played in self.played:
            if played.scenario.name in _LIMITS_MS:
                found += _recovery_targets(played, _LIMITS_MS[played.scenario.name])
            else:
                found += _loss_targets(played)
        return found

    def to_json(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "conditions": self.conditions,
            "scenarios": [_scenario(played) for played in self.played],
            "rows": [
                {
                    "scenario": row.scenario,
                    "kind": row.kind,
                    "way": row.way,
                    **{_name(redis): column.to_json() for redis, column in row.columns.items()},
                }
                for row in self.rows()
            ],
            "targets": [target.to_json() for target in self.targets()],
        }


def _calls(played: Played, *, redis: bool, kind: str | None = None) -> Iterator[CallRound]:
    for one in played.rounds:
        if one.redis is redis:
            yield from (call for call in one.calls if kind in (None, call.kind))


def _recovery_targets(played: Played, limit: float) -> Iterable[Target]:
    column = Column.of(list(_calls(played, redis=True)), WAYS["up"])
    spread = column.recovery_ms
    for name, measured in (
        ("median", spread.median if spread else None),
        # A call that did not come back is worse than any.
        ("worst", (float("inf") if column.not_back else spread.worst) if spread else None),
    ):
        text = f"{played.scenario.name}, with Redis: first client packet delivered after {played.scenario.recovery_from}"
        yield Target(text=f"{text}, {name}", limit=limit, unit="ms", measured=measured)


def _loss_targets(played: Played) -> Iterable[Target]:
    for redis in (False, True):
        calls = list(_calls(played, redis=redis))
        # What the bench itself missed looks lost.
        has_all = not any(one.own_drops for one in played.rounds if one.redis is redis)
        if calls:
            lost = sum(Column.of(calls, way_of).lost for way_of in WAYS.values())
            text = f"{played.scenario.name}, {_name(redis).replace('_', ' ')}: packets lost both ways"
            yield Target(text=text, limit=0, unit="packets", measured=lost if has_all else None)


def _name(redis: bool) -> str:
    return "with_redis" if redis else "without_redis"


def _scenario(played: Played) -> dict[str, Any]:
    scenario = played.scenario
    return {
        "name": scenario.name,
        "what": scenario.what,
        "recovery_from": scenario.recovery_from,
        "dataplane": scenario.dataplane,
        "why_not": played.why_not,
        "dropped": played.dropped,
        "rounds": [
            {
                **asdict(one),
                "calls": [
                    {**asdict(call), **{way: _way(of(call)) for way, of in WAYS.items()}}
                    for call in one.calls
                ],
            }
            for one in played.rounds
        ],
    }


def _way(way: Way) -> dict[str, Any]:
    return {
        "recovery_ms": way.recovery_ms,
        "gap_ms": way.gap_ms,
        "sent": way.loss.sent,
        "lost": way.loss.lost,
    }
