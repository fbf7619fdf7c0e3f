"""Calls a core without loss, CPU time of a call, delay of its echo, and what a setup costs."""

from collections.abc import Callable, Mapping

from bench.errors import BenchError
from bench.progress import Progress
from bench.transceiver.results import CallsRow, SetupRow
from bench.transceiver.running_load import Run, RunningLoad
from bench.transceiver.search import highest
from bench.transceiver.variants import Variant

WARM_S = 1.0
# A search begins at this part of what CPU time says.
_FIRST_TRY = 0.8
# With so much of the core it could not go on for long.
_FULL = 0.97
# What others on the core may cost it, as part of the time; a turn with more is repeated.
_DISTURBED, _REPEATS = 0.03, 3
# A generator that is so late sends bursts, and what is lost then is not the process's fault alone.
_LAG_MS = 5.0
_SETUPS = 10


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
    for number in range(rounds):
        for variant, load in loads.items():
            if rows[variant].why_not:
                continue
            shown.advance(f"{variant.name}: {calls} calls, round {number + 1}")
            try:
                load.set_calls(calls)
                run = _undisturbed(load, seconds, lambda run: False)
            except BenchError as error:
                rows[variant].why_not = str(error)
                continue
            if number or rounds == 1:
                rows[variant].runs.append(run)
    for load in loads.values():
        load.set_calls(0)
    for variant, load in loads.items():
        if not rows[variant].why_not:
            shown.advance(f"{variant.name}: how many calls")
            try:
                _search(rows[variant], load, seconds, limit, shown)
            except BenchError as error:
                rows[variant].why_not = str(error)
            finally:
                load.set_calls(0)
    return list(rows.values())


def _search(row: CallsRow, load: RunningLoad, seconds: float, limit: int, shown: Progress) -> None:
    row.limit = f"--max-calls {limit}"

    def holds(count: int) -> bool:
        shown.say(f"{row.name}: {count} calls")
        load.set_calls(count)
        run = _undisturbed(load, seconds, lambda run: not _why_not_more(run))
        row.steps.append(run)
        why = _why_not_more(run)
        if why:
            row.limit = why
        return not why

    row.highest = highest(holds, round(_FIRST_TRY * (row.extrapolated or 1)), limit)


def _why_not_more(run: Run) -> str:
    if run.is_whole:
        return "CPU" if run.cpu_share > _FULL else ""
    if run.own_drops or run.lag_p99_ms > _LAG_MS:
        return "generator"
    return "lost" if run.lost or run.dropped else "late" if run.late else "changed"


def _undisturbed(load: RunningLoad, seconds: float, is_good: Callable[[Run], bool]) -> Run:
    """A turn that is good, or is not although nothing else had the cores; the last of several if there is none."""
    for _ in range(_REPEATS):
        run = load.run(seconds, WARM_S)
        if is_good(run) or (run.disturbed <= _DISTURBED and run.lag_p99_ms <= _LAG_MS):
            break
    return run


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
