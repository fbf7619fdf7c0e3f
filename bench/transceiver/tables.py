"""What a run found, as tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report import Sheet
from bench.transceiver.phases import PHASES
from bench.transceiver.results import Found

_MB = 1e6


def sheets(found: Found) -> list[Sheet]:
    """What there is to show."""
    made = [_calls(found), _steps(found), _setups(found), _phases(found), _memory(found), _ratios(found)]
    made += [_targets(found), _conditions(found)]
    return [sheet for sheet in made if sheet.rows]


def _calls(found: Found) -> Sheet:
    columns = ["transceiver", "calls a core", "more: no, as", "of the core", "CPU ms/s a call", "spread"]
    columns += ["1000/that", "delay p50 ms", "p99 ms", "packets", "lost", "late", "generator late p99 ms", ""]
    rows = []
    for row in found.calls:
        at_highest = row.at_highest
        each = [run.cpu_ms_per_call for run in row.runs]
        rows.append(
            [
                row.name,
                _number(row.highest),
                f"{row.limit}, disturbed" if row.is_disturbed else row.limit or "-",
                f"{at_highest.cpu_share:.0%}" if at_highest else "-",
                _number(row.cpu_ms, 2),
                f"{min(each):.2f}…{max(each):.2f}" if each else "-",
                _number(row.extrapolated),
                _number(row.delay_ms("delay_p50_ms"), 1),
                _number(row.delay_ms("delay_p99_ms"), 1),
                _number(row.total("sent")),
                _number(row.total("lost") + row.total("dropped")),
                _number(row.total("late")),
                _number(max((run.lag_p99_ms for run in [*row.runs, *row.steps]), default=None), 1),
                row.why_not,
            ]
        )
    return Sheet("Calls of one process on one core", columns, rows)


def _steps(found: Found) -> Sheet:
    columns = [
        "transceiver",
        "calls",
        "packets",
        "lost",
        "late",
        "delay p50 ms",
        "p99 ms",
        "CPU",
        "disturbed",
    ]
    rows = [
        [
            row.name,
            _number(run.calls),
            _number(run.sent),
            _number(run.lost + run.dropped),
            _number(run.late),
            _number(run.delay_p50_ms, 1),
            _number(run.delay_p99_ms, 1),
            f"{run.cpu_share:.0%}",
            f"{run.disturbed:.1%}",
        ]
        for row in found.calls
        for run in row.steps
    ]
    return Sheet("The search", columns, rows)


def _setups(found: Found) -> Sheet:
    columns = ["transceiver", "setups", "CPU ms", "spread", "one after the other: ms", "a second", ""]
    rows = []
    for row in found.setups:
        cpu, wall = _median(row.cpu_ms), _median(row.wall_ms)
        spread = f"{min(row.cpu_ms):.1f}…{max(row.cpu_ms):.1f}" if row.cpu_ms else "-"
        a_second = 1000 / wall if wall else None
        rows.append(
            [
                row.name,
                _number(row.made),
                _number(cpu, 1),
                spread,
                _number(wall, 1),
                _number(a_second, 1),
                row.why_not,
            ]
        )
    return Sheet("Setup: offer, answer, ICE, DTLS", columns, rows)


def _phases(found: Found) -> Sheet:
    columns = ["client", "round trip ms", "calls", *PHASES, ""]
    rows = []
    for row in found.phases:
        calls = max(map(len, row.phases_ms.values()), default=0)
        medians = [_number(row.median(phase), 1) for phase in PHASES]
        rows.append([row.client, f"{row.round_trip_ms:g}", _number(calls), *medians, row.why_not])
    return Sheet(
        "Setup by phase, ms after the POST, through the relay; only the media path is delayed", columns, rows
    )


def _memory(found: Found) -> Sheet:
    columns = ["transceiver", "sessions", "kB a session", "MB empty", "MB with them", "threads with them"]
    columns += [
        "calls come and gone",
        "MB before",
        "half way",
        "after",
        "threads before",
        "after",
        "tasks before",
        "after",
        "files before",
        "after",
        "",
    ]
    rows = []
    for row in found.memory:
        half_way = row.rounds_rss[(len(row.rounds_rss) - 1) // 2] / _MB if row.rounds_rss else None
        before, after = (
            [at["rss"] / _MB, at["threads"], at["tasks"], at["files"]] if at else [None] * 4
            for at in (row.before, row.after)
        )
        per_session = row.per_session
        rows.append(
            [
                row.name,
                _number(row.sessions),
                _number(per_session / 1000 if per_session is not None else None),
                _number(row.empty_pss / _MB, 1),
                _number(row.full_pss / _MB, 1),
                _number(row.full_threads),
                _number(row.churned),
                *(_number(mb, 1) for mb in (before[0], half_way, after[0])),
                *(_number(count) for pair in zip(before[1:], after[1:], strict=True) for count in pair),
                row.why_not,
            ]
        )
    return Sheet("Memory (PSS of a session, RSS over many calls)", columns, rows)


def _ratios(found: Found) -> Sheet:
    rows = [[name, _number(value, 2)] for name, value in found.ratios().items()]
    return Sheet("Against stock aiortc of the same run (more is better)", ["ratio", "value"], rows)


def _targets(found: Found) -> Sheet:
    rows = []
    for target in found.targets():
        holds = {None: "not measured", True: "yes", False: "no"}[target.holds]
        limit, least = f"≤ {target.limit_ms:g}", f"{target.least_ms:g}"
        rows.append([target.text, limit, _number(target.measured_ms, 1), least, holds])
    columns = ["target", "limit", "measured", "round trips alone", "holds"]
    return Sheet("Targets, ms, median", columns, rows)


def _conditions(found: Found) -> Sheet:
    return Sheet("Conditions", ["", ""], [[name, str(value)] for name, value in found.conditions.items()])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _number(value: Any, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
