"""Calls a core without loss, CPU time of a call, delay of its echo, and what a setup costs."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.errors import BenchError
from bench.progress import Progress
from bench.transceiver.results import NOT_LIMITED, CallsRow, SetupRow
from bench.transceiver.running_load import Run, RunningLoad
from bench.transceiver.search import highest
from bench.transceiver.tally import LATE_NS
from bench.transceiver.variants import Variant

WARM_S = 1.0
# A search begins at this part of what CPU time says.
_FIRST_TRY = 0.8
# With so much of the core it could not go on for long.
_FULL = 0.97
# What others on the core may cost it, as part of the time; a turn with more is repeated, so many of a variant in all.
_DISTURBED, _REPEATS = 0.03, 6
# A generator that is so late sends bursts, and what is lost then is not the process's fault alone.
_LAG_MS = 5.0
_SETUPS = 10


@dataclass
class _Turns:
    """Turns of one variant; those that were disturbed are repeated, a few of them all."""

    load: RunningLoad
    seconds: float
    repeats: int = _REPEATS

    def run(self, is_good: Callable[[Run], bool]) -> Run:
        """A turn that is good, or is not although nothing else had the cores; the last if there is none."""
        while True:
            run = self.load.run(self.seconds, WARM_S)
            is_quiet = run.disturbed <= _DISTURBED and run.lag_p99_ms <= _LAG_MS
            if is_good(run) or is_quiet or not self.repeats:
                return run
            self.repeats -= 1


def measure_calls(
    loads: Mapping[Variant, RunningLoad],
    *,
    calls: int,
    rounds: int,
    seconds: float,
    limit: int,
    shown: Progress,
) -> list[CallsRow]:
    """All variants in turns at ``calls``, then each for itself up to ``limit`` calls."""
    rows = {variant: CallsRow(name=variant.name, what=variant.what, calls=calls) for variant in loads}
    turns = {variant: _Turns(load, seconds) for variant, load in loads.items()}
    for number in range(rounds):
        for variant, load in loads.items():
            if rows[variant].why_not:
                continue
            shown.advance(f"{variant.name}: {calls} calls, round {number + 1}")
            try:
                load.set_calls(calls)
                run = turns[variant].run(lambda run: False)
            except BenchError as error:
                rows[variant].why_not = str(error)
                continue
            if number or rounds == 1:
                rows[variant].runs.append(run)
    for variant, load in loads.items():
        if not rows[variant].why_not:
            load.set_calls(0)
    for variant, load in loads.items():
        if not rows[variant].why_not:
            shown.advance(f"{variant.name}: how many calls")
            try:
                _search(rows[variant], _Turns(load, seconds), limit, shown)
            except BenchError as error:
                rows[variant].why_not = str(error)
            with contextlib.suppress(BenchError):
                load.set_calls(0)
    return list(rows.values())


def _search(row: CallsRow, turns: _Turns, limit: int, shown: Progress) -> None:
    row.limit = NOT_LIMITED
    usual_ms = row.delay_ms("delay_p50_ms") or 0.0

    def holds(count: int) -> bool:
        shown.say(f"{row.name}: {count} calls")
        turns.load.set_calls(count)
        run = turns.run(lambda run: not _why_not_more(run, usual_ms))
        row.steps.append(run)
        why = _why_not_more(run, usual_ms)
        if why:
            row.limit, row.is_disturbed = why, run.disturbed > _DISTURBED
        return not why

    row.highest = highest(holds, round(_FIRST_TRY * (row.extrapolated or 1)), limit)


def _why_not_more(run: Run, usual_ms: float) -> str:
    if run.is_whole:
        if (run.delay_p50_ms or 0.0) - usual_ms > LATE_NS / 1e6:
            return "late"
        return "CPU" if run.cpu_share > _FULL else ""
    if run.own_drops or run.lag_p99_ms > _LAG_MS:
        return "generator"
    return "lost" if run.lost or run.dropped else "late" if run.late else "changed"


def measure_setups(loads: Mapping[Variant, RunningLoad], *, rounds: int, shown: Progress) -> list[SetupRow]:
    """Some setups of each variant in turns, each begun when the one before was done."""
    rows = {variant: SetupRow(name=variant.name) for variant in loads}
    for number in range(rounds):
        for variant, load in loads.items():
            shown.advance(f"{variant.name}: setups, round {number + 1}")
            try:
                made = load.set_calls(_SETUPS)
                load.set_calls(0)
            except BenchError as error:
                rows[variant].why_not = str(error)
                continue
            if number or rounds == 1:
                rows[variant].made += _SETUPS
                rows[variant].cpu_ms.append(1000 * made["cpu_s"] / _SETUPS)
                rows[variant].wall_ms.append(1000 * made["seconds"] / _SETUPS)
    return list(rows.values())
