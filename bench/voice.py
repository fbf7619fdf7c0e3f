"""CPU time a packet at the rate of a thousand calls: what a relay costs where it is not at its limit.

Each packet is made singly, so that a process that waits for packets is woken as often as calls would wake it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from bench.errors import BenchError
from bench.progress import Progress
from bench.results import DOWN, FLOWS, GO, ONE_CORE, PAYLOAD, UP, USERSPACE, CpuRow, that_count
from bench.results import OWN_CORE as HAS_OWN_CORE
from bench.rig import Rig, Sample
from bench.stage import OWN_CORE, SINGLY, Player, Stage, stage

# What can be compared: one process each, SPP both ways.
PEERS = (USERSPACE, GO)
# 20 ms packets
RATE = FLOWS * 50
# A turn in which the generator had so little of its core that it offered less than this is repeated so often.
_MIN_PART, _RETRIES = 0.97, 3
_CONDITIONS = {HAS_OWN_CORE: OWN_CORE, ONE_CORE: SINGLY}


def measure_voice(
    rig: Rig, names: Sequence[str], *, rounds: int, seconds: float, progress: Progress
) -> list[CpuRow]:
    """Rounds alternate between peers, ways and conditions."""
    samples: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    with stage(rig, names, FLOWS, progress) as made:
        turns = [
            (player, direction, condition)
            for condition in _CONDITIONS
            for direction in (UP, DOWN)
            for player in made.players.values()
        ]
        errors = dict(made.why_not)
        progress.expect(rounds * len(turns))
        for number in range(rounds):
            for player, direction, condition in turns:
                progress.advance(
                    f"round {number + 1} of {rounds}, {player.name} {direction}, {RATE} packets/s"
                )
                try:
                    sample = _play(made, player, direction, condition, seconds)
                except BenchError as error:
                    errors[player.name] = str(error)
                    continue
                samples[player.name, direction, condition].append(sample)
    return [
        cpu_row(name, direction, condition, samples[name, direction, condition], errors.get(name, ""))
        for condition in _CONDITIONS
        for direction in (UP, DOWN)
        for name in names
    ]


def _play(made: Stage, player: Player, direction: str, condition: str, seconds: float) -> Sample:
    load = made.ready(player, direction, (PAYLOAD,), _CONDITIONS[condition], seconds)
    load = replace(load, rate=RATE)
    sample = made.rig.run(player.topology, player.way(direction), load)
    for _ in range(_RETRIES):
        if sample.pps >= RATE * _MIN_PART:
            break
        again = made.rig.run(player.topology, player.way(direction), load)
        sample = max(sample, again, key=lambda one: one.pps)
    if not sample.delivered:
        raise BenchError(f"of {sample.offered} packets none arrived ({sample.wrong} arrived changed)")
    return sample


def cpu_row(name: str, direction: str, condition: str, samples: Sequence[Sample], error: str) -> CpuRow:
    """The row of rounds that were measured, or of what went wrong."""
    counted = that_count(samples)
    if not counted:
        return CpuRow(
            name=name, direction=direction, condition=condition, offered=RATE, why_not=error or "not measured"
        )
    times = [sample.cpu_us_per_packet for sample in counted]
    return CpuRow(
        name=name,
        direction=direction,
        condition=condition,
        offered=RATE,
        pps=float(round(median(sample.pps for sample in counted))),
        cpu_us_per_packet=round(median(times), 3),
        lost=int(median(sample.lost for sample in counted)),
        times=[round(time, 3) for time in times],
    )
