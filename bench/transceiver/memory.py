"""Memory of a connected session, and what a thousand calls leave behind."""

import time
from dataclasses import asdict

from bench.errors import BenchError
from bench.progress import Progress
from bench.transceiver.results import MemoryRow
from bench.transceiver.running_load import RunningLoad
from bench.transceiver.variants import Variant
from bench.transceiver.vitals import Vitals

# Who speaks at a time: no variant is at its limit.
_SPEAKERS, _SPEAK_S = 10, 0.3
_ROUND = 100
# Tasks and threads of calls that hung up take a moment to end.
_SETTLE_S = 1.5


def measure_memory(
    variant: Variant, load: RunningLoad, *, sessions: int, churned: int, shown: Progress
) -> MemoryRow:
    """Of a process that has had no call yet."""
    row = MemoryRow(name=variant.name)
    pid = load.target.pid
    try:
        shown.advance(f"{variant.name}: memory of {sessions} sessions")
        _speak(load, _SPEAKERS)
        row.empty_pss = _settled(load)["pss"]
        _speak(load, sessions)
        time.sleep(_SETTLE_S)
        full = Vitals.of(pid)
        row.sessions, row.full_pss, row.full_threads = sessions, full.pss, full.threads
        load.set_calls(0)
        _churn(load, _ROUND)
        row.before = _settled(load)
        for done in range(0, churned, _ROUND):
            shown.advance(f"{variant.name}: {done} calls came and went")
            _churn(load, min(_ROUND, churned - done))
            row.rounds_rss.append(Vitals.of(pid).rss)
        row.churned, row.after = churned, _settled(load)
    except BenchError as error:
        row.why_not = str(error)
    return row


def _speak(load: RunningLoad, count: int) -> None:
    """So many calls, each of which has spoken: codecs are made at the first packet."""
    load.set_calls(count)
    for first in range(0, count, _SPEAKERS):
        load.run(_SPEAK_S, 0.0, first=first, count=min(_SPEAKERS, count - first))


def _churn(load: RunningLoad, count: int) -> None:
    load.set_calls(count)
    load.run(_SPEAK_S, 0.0, count=min(_SPEAKERS, count))
    load.set_calls(0)


def _settled(load: RunningLoad) -> dict[str, int]:
    load.set_calls(0)
    time.sleep(_SETTLE_S)
    return asdict(Vitals.of(load.target.pid)) | {"tasks": load.target.tasks()}
