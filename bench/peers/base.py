"""What a peer is to the measurements: a relay that runs for the life of a block, and the ways through it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.frames import Framing, Leg
from bench.results import WorkerMemory
from bench.rig import Rig, Way
from bench.topology import RELAY_FLEET, TRANSCEIVERS, VIP, Topology
from wire.keys import KeyRing


@dataclass(frozen=True, kw_only=True)
class Relay:
    """A peer that runs.

    up: client to transceiver; down: back. pids: processes that every packet goes through, none if it is the kernel's.
    workers: those that a new client's packet goes through; keys: what its ufrag is sealed with.
    refresh: called before each turn, and may raise BenchError; ``learns_up``: it needs a packet of every flow up now and
    then, and at first if it has no process. memory: of its worker with all flows.
    """

    up: Way
    down: Way
    pids: Sequence[int] = ()
    refresh: Callable[[], None] = field(default=lambda: None)
    learns_up: bool = False
    workers: Sequence[int] = ()
    keys: KeyRing | None = None
    memory: WorkerMemory | None = None

    @property
    def has_process(self) -> bool:
        """Whether a process has to be woken for a packet."""
        return bool(self.pids)


# Starts the peer with that many flows; raises PeerUnavailableError if it cannot run here.
Peer = Callable[[Rig, Topology, int], AbstractContextManager[Relay]]


def spp_ways() -> tuple[Way, Way]:
    """Up and down through a relay that speaks SPP to transceivers, as ours and the Go reference do."""
    first, count = TRANSCEIVERS[0], len(TRANSCEIVERS)
    to_fleet = Leg(source=RELAY_FLEET, destination=first, destinations=count, framing=Framing.SPP, vip=VIP)
    from_fleet = Leg(source=first, sources=count, destination=RELAY_FLEET, framing=Framing.SPP, vip=VIP)
    up = Way(is_up=True, sends=Leg(source=None, destination=VIP), arrives=to_fleet)
    return up, Way(is_up=False, sends=from_fleet, arrives=Leg(source=VIP, destination=None))
