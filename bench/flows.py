"""Packets a second by the number of flows, in random order, and the memory of a flow."""

from collections.abc import Sequence

from bench.errors import PeerUnavailableError
from bench.forward import measure_forward
from bench.peers.relayctl import assured_flows_memory
from bench.progress import Progress
from bench.results import PAYLOAD, Memory, Row
from bench.rig import Rig
from bench.topology import topology

DEFAULT_PEERS = ("bare-redirect", "xdp", "nft-dnat", "go-reference")
DEFAULT_FLOWS = (1000, 100_000, 1_000_000)


def measure_flows(
    rig: Rig, names: Sequence[str], *, counts: Sequence[int], rounds: int, seconds: float, progress: Progress
) -> list[Row]:
    """Both ways, 100 bytes. Rounds alternate between peers and between numbers of flows."""
    return measure_forward(
        rig,
        names,
        payloads=(PAYLOAD,),
        counts=counts,
        rounds=rounds,
        seconds=seconds,
        progress=progress,
        measurement="flows",
    )


def measure_memory(flows: int) -> Memory | None:
    """Of a relay that has room for so many; None where it cannot run."""
    with topology() as hosts:
        try:
            return assured_flows_memory(hosts, flows)
        except PeerUnavailableError:
            return None
