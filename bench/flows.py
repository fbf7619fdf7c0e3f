"""Packets a second by the number of flows, in random order, and the memory of a flow."""

import contextlib
from collections.abc import Sequence

from bench.errors import PeerUnavailableError
from bench.forward import Cell, play_rounds
from bench.peers.relayctl import assured_flows_memory
from bench.progress import Progress
from bench.results import DOWN, MANY_FLOWS, PAYLOAD, UP, USERSPACE, Memory, Row, WorkerMemory
from bench.rig import Rig
from bench.stage import SINGLY, stage
from bench.topology import topology

DEFAULT_PEERS = ("bare-redirect", "xdp", "nft-dnat", "userspace", "go-reference")
DEFAULT_FLOWS = (1000, 100_000, MANY_FLOWS)
_CELLS = tuple(Cell(direction, PAYLOAD, SINGLY) for direction in (UP, DOWN))


def measure_flows(
    rig: Rig,
    names: Sequence[str],
    *,
    counts: Sequence[int],
    userspace_counts: Sequence[int],
    rounds: int,
    seconds: float,
    progress: Progress,
) -> tuple[list[Row], list[WorkerMemory]]:
    """Both ways, 100 bytes. Rounds alternate between peers and between numbers of flows.

    Except for userspace: its flows end when they are silent for long, as others have their turns, so it is measured by
    itself, one number of flows after the other.
    """
    others = [name for name in names if name != USERSPACE]
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(stage(rig, others, count, progress)) for count in counts]
        rows = play_rounds("flows", stages, others, _CELLS, rounds=rounds, seconds=seconds, progress=progress)
    memory: list[WorkerMemory] = []
    for count in userspace_counts if USERSPACE in names else ():
        with stage(rig, [USERSPACE], count, progress) as made:
            rows += play_rounds(
                "flows", [made], [USERSPACE], _CELLS, rounds=rounds, seconds=seconds, progress=progress
            )
            memory += [one.relay.memory for one in made.players.values() if one.relay.memory]
    return in_order(rows, names), memory


def in_order(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Up before down, few flows before many, peers as they were named."""
    return sorted(rows, key=lambda row: (row.direction == DOWN, row.flows, names.index(row.name)))


def measure_memory(flows: int) -> Memory | None:
    """Of a relay that has room for so many; None where it cannot run."""
    with topology() as hosts:
        try:
            return assured_flows_memory(hosts, flows)
        except PeerUnavailableError:
            return None
