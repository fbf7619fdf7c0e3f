"""A run: calls a core and setups with all variants beside each other, setup by phase, memory a variant at a time."""

import contextlib
import os
import platform
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from bench.chromium import CHROMIUM
from bench.conditions import machine, output
from bench.errors import BenchError
from bench.progress import Progress
from bench.transceiver.capacity import WARM_S, measure_calls, measure_setups
from bench.transceiver.memory import measure_memory
from bench.transceiver.phases import measure_phases
from bench.transceiver.results import CallsRow, Found, MemoryRow, SetupRow
from bench.transceiver.running_load import RunningLoad, running_load
from bench.transceiver.tally import HELD, LATE_NS
from bench.transceiver.variants import Variant, served

PARTS = ("capacity", "setup", "memory")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """See the command's options; ``calls``: the moderate load."""

    parts: Sequence[str]
    variants: Sequence[Variant]
    clients: Sequence[str]
    rounds: int
    seconds: float
    calls: int
    max_calls: int
    round_trips: Sequence[float]
    setups: int
    sessions: int
    churn: int


def measure_transceiver(wanted: Wanted, shown: Progress) -> Found:
    """All that is wanted; what could not be run says why."""
    found = Found(conditions=_describe(wanted))
    cores = sorted(os.sched_getaffinity(0))
    shown.expect(_turns(wanted))
    if {"capacity", "setup"} & set(wanted.parts):
        _measure_side_by_side(wanted, found, cores, shown)
    if "setup" in wanted.parts and wanted.clients:
        found.phases = measure_phases(wanted.clients, wanted.round_trips, calls=wanted.setups, shown=shown)
    if "memory" in wanted.parts:
        found.memory = [_measure_memory(wanted, variant, cores, shown) for variant in _of_memory(wanted)]
    return found


def _measure_side_by_side(wanted: Wanted, found: Found, cores: Sequence[int], shown: Progress) -> None:
    missing: dict[Variant, str] = {}
    with contextlib.ExitStack() as stack:
        loads: dict[Variant, RunningLoad] = {}
        for variant in wanted.variants:
            shown.say(f"starting {variant.name}")
            try:
                target = stack.enter_context(served(variant, cores[0]))
                loads[variant] = stack.enter_context(running_load(target, cores[-1]))
            except BenchError as error:
                missing[variant] = str(error)
        if "setup" in wanted.parts:
            found.setups = [
                *measure_setups(loads, rounds=wanted.rounds, shown=shown),
                *(SetupRow(name=variant.name, why_not=why) for variant, why in missing.items()),
            ]
        if "capacity" in wanted.parts:
            found.calls = [
                *measure_calls(
                    loads,
                    calls=wanted.calls,
                    rounds=wanted.rounds,
                    seconds=wanted.seconds,
                    limit=wanted.max_calls,
                    shown=shown,
                ),
                *(
                    CallsRow(name=variant.name, what=variant.what, why_not=why)
                    for variant, why in missing.items()
                ),
            ]


def _measure_memory(wanted: Wanted, variant: Variant, cores: Sequence[int], shown: Progress) -> MemoryRow:
    try:
        with served(variant, cores[0]) as target, running_load(target, cores[-1]) as load:
            return measure_memory(variant, load, sessions=wanted.sessions, churned=wanted.churn, shown=shown)
    except BenchError as error:
        return MemoryRow(name=variant.name, why_not=str(error))


def _of_memory(wanted: Wanted) -> list[Variant]:
    return [variant for variant in wanted.variants if variant.has_memory_row]


def _turns(wanted: Wanted) -> int:
    variants = len(wanted.variants)
    turns = {
        "capacity": variants * (wanted.rounds + 1),
        "setup": variants * wanted.rounds + len(wanted.clients) * len(wanted.round_trips),
        "memory": len(_of_memory(wanted)) * (1 + -(-wanted.churn // 100)),
    }
    return sum(turns[part] for part in wanted.parts)


def _describe(wanted: Wanted) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    return {
        **machine(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "aiortc": version("aiortc"),
        "aioice": version("aioice"),
        "uvloop": f"{version('uvloop')}, ours only",
        "chromium": output(CHROMIUM, "--version") if "Chromium" in wanted.clients else "",
        "core": cores[0],
        "generator_core": cores[-1],
        "path": "loopback; no relay for calls a core, setups and memory: the generator speaks SPP",
        "voice": "synthetic, Opus 32 kb/s VBR, 20 ms, sent by each call at a time of its own",
        "srtp": "as both prefer: AEAD_AES_256_GCM",
        "rounds": wanted.rounds,
        "discarded_rounds": 1 if wanted.rounds > 1 else 0,
        "seconds": wanted.seconds,
        "warm_up_s": WARM_S,
        "calls_at_the_moderate_load": wanted.calls,
        "late_beyond_ms": LATE_NS / 1e6,
        "held_back_not_lost": HELD,
        "delayed": "media path only, half the round trip each way",
    }
