"""The results for people: in a terminal, and as Markdown for docs/performance.md."""

import math
from collections.abc import Sequence

from bench.recovery.results import Recovery, Row, Target
from bench.recovery.traces import Spread
from bench.report import Sheet

_NOTHING = "-"
_COLUMNS = (
    "calls",
    "STUN only: recovery",
    "with Redis: recovery",
    "STUN only: gap",
    "with Redis: gap",
    "lost of sent",
)


def sheets(recovery: Recovery) -> list[Sheet]:
    """A table a scenario, then targets."""
    made = []
    for played in recovery.played:
        rows = [_cells(row) for row in recovery.rows() if row.scenario == played.scenario.name]
        since = played.scenario.recovery_from
        title = f"{played.scenario.name}: {played.scenario.what}"
        title += f"; recovery from when {since}; ms, median and worst" if since else "; ms, median and worst"
        if played.why_not:
            rows.append([f"not run: {played.why_not}", *[_NOTHING] * (len(_COLUMNS) - 1)])
        if played.dropped:
            rows.append([f"dropped: {len(played.dropped)} calls", *[_NOTHING] * (len(_COLUMNS) - 1)])
        made.append(Sheet(title, _COLUMNS, rows))
    columns = ("target", "limit", "measured", "reached")
    made.append(Sheet("Targets", columns, [_target(target) for target in recovery.targets()]))
    return [sheet for sheet in made if sheet.rows]


def _cells(row: Row) -> Sequence[str]:
    both = [row.columns.get(redis) for redis in (False, True)]
    sent = sum(column.sent for column in both if column)
    lost = sum(column.lost for column in both if column)
    not_back = sum(column.not_back for column in both if column)
    return [
        f"{row.kind} {row.way}" + (f" ({not_back} not back)" if not_back else ""),
        *(_spread(column.recovery_ms if column else None) for column in both),
        *(_spread(column.gap_ms if column else None) for column in both),
        f"{lost:,} of {sent:,}" if sent else _NOTHING,
    ]


def _spread(spread: Spread | None) -> str:
    return f"{spread.median:,.0f}, {spread.worst:,.0f}" if spread else _NOTHING


def _target(target: Target) -> Sequence[str]:
    if target.measured is None:
        return [target.text, f"{target.limit:g} {target.unit}", _NOTHING, "not measured"]
    if math.isinf(target.measured):
        return [target.text, f"{target.limit:g} {target.unit}", "never", "NO"]
    measured = f"{target.measured:,.1f}" if target.unit == "ms" else f"{target.measured:,}"
    return [target.text, f"{target.limit:g} {target.unit}", measured, "yes" if target.holds else "NO"]
