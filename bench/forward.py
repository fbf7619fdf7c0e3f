"""Packets a second through each peer, both ways, by payload: rounds alternate between all peers."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.errors import BenchError
from bench.progress import Progress
from bench.results import DOWN, OPUS, PAYLOAD, UP, Row, median_that_counts, that_count
from bench.rig import Rig, Sample
from bench.stage import BURSTS, OPUS_MIX, OWN_CORE, SINGLY, Condition, Player, Stage, stage

DEFAULT_PEERS = ("bare-redirect", "xdp", "nft-dnat", "userspace", "go-reference", "nginx-stream", "coturn")
DEFAULT_PAYLOADS: tuple[int | str, ...] = (PAYLOAD, OPUS, 1200)


@dataclass(frozen=True)
class Cell:
    """What is measured of each peer in a round."""

    direction: str
    payload: int | str
    condition: Condition

    @property
    def payloads(self) -> tuple[int, ...]:
        """Sizes of packets that take turns."""
        return OPUS_MIX if isinstance(self.payload, str) else (self.payload,)


@dataclass
class Taken:
    """Samples and errors by cell, peer and number of flows."""

    samples: dict[tuple[Cell, str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[Cell, str, int], str] = field(default_factory=dict)

    def take(self, made: Stage, cell: Cell, player: Player, seconds: float) -> None:
        """One turn of a peer."""
        key = (cell, player.name, made.flows)
        try:
            sample = made.play(player, cell.direction, cell.payloads, cell.condition, seconds)
        except BenchError as error:
            self.errors[key] = str(error)
            return
        if sample.delivered:
            self.samples[key].append(sample)
        else:
            self.errors[key] = f"of {sample.offered} packets none arrived ({sample.wrong} arrived changed)"


def cells_of(payloads: Sequence[int | str]) -> list[Cell]:
    """Every payload singly; bursts and a core for the process with the first payload alone."""
    cells = [Cell(direction, payload, SINGLY) for payload in payloads for direction in (UP, DOWN)]
    extra = [
        Cell(direction, payloads[0], condition)
        for condition in (BURSTS, OWN_CORE)
        for direction in (UP, DOWN)
    ]
    return [*cells, *extra]


def measure_forward(
    rig: Rig,
    names: Sequence[str],
    *,
    payloads: Sequence[int | str],
    counts: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """The rows of these peers, with each of these numbers of flows."""
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(stage(rig, names, count, progress)) for count in counts]
        return play_rounds(
            "forward", stages, names, cells_of(payloads), rounds=rounds, seconds=seconds, progress=progress
        )


def play_rounds(
    measurement: str,
    stages: Sequence[Stage],
    names: Sequence[str],
    cells: Sequence[Cell],
    *,
    rounds: int,
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """The rows of peers that run: in each round every one has its turns."""
    turns = [
        (cell, made, player)
        for cell in cells
        for name in names
        for made in stages
        if (player := made.players.get(name)) and _applies(cell, player)
    ]
    progress.expect(rounds * len(turns))
    taken = Taken()
    for number in range(rounds):
        for cell, made, player in turns:
            progress.advance(f"round {number + 1} of {rounds}, {player.name} {cell.direction}")
            taken.take(made, cell, player, seconds)
    return [
        _row(measurement, made, name, cell, taken)
        for cell in cells
        if cell.condition is SINGLY
        for made in stages
        for name in names
    ]


def _applies(cell: Cell, player: Player) -> bool:
    return player.relay.has_process or not cell.condition.has_own_core


def _row(measurement: str, made: Stage, name: str, cell: Cell, taken: Taken) -> Row:
    def rate(condition: Condition) -> float | None:
        found = taken.samples.get((Cell(cell.direction, cell.payload, condition), name, made.flows))
        return float(round(median_that_counts([sample.pps for sample in found]))) if found else None

    samples = taken.samples.get((cell, name, made.flows), [])
    error = taken.errors.get((cell, name, made.flows), "")
    return Row(
        measurement=measurement,
        name=name,
        direction=cell.direction,
        payload=cell.payload,
        flows=made.flows,
        pps=rate(SINGLY),
        lost=int(median_that_counts([sample.lost for sample in samples])) if samples else None,
        rates=[round(sample.pps) for sample in that_count(samples)],
        core_share=round(min((sample.core_share for sample in that_count(samples)), default=0.0), 3),
        pps_bursts=rate(BURSTS),
        pps_own_core=rate(OWN_CORE),
        why_not=made.why_not.get(name, "") or ("" if samples else error or "not measured"),
    )
