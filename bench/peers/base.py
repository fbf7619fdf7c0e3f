"""What a peer is to the measurements: a relay that runs for the life of a block, and the ways through it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.frames import Framing, Leg
from bench.rig import Rig, Way
from bench.topology import RELAY_FLEET, TRANSCEIVER, VIP, Topology


@dataclass(frozen=True, kw_only=True)
class Relay:
    """A peer that runs.

    up: client to transceiver; down: back. pids: its processes, none if it is the kernel's.
    refresh: bring back what expires while others are measured; called before each turn.
    learns_up: its way down needs packets of all flows up first.
    """

    up: Way
    down: Way
    pids: Sequence[int] = ()
    refresh: Callable[[], None] = field(default=lambda: None)
    learns_up: bool = False

    @property
    def has_process(self) -> bool:
        """Whether a process has to be woken for a packet."""
        return bool(self.pids)


# Starts the peer with that many flows; raises PeerUnavailableError if it cannot run here.
Peer = Callable[[Rig, Topology, int], AbstractContextManager[Relay]]


def spp_ways(fleet: Framing = Framing.SPP) -> dict[str, Way]:
    """The ways through a relay that speaks SPP to transceivers, as ours and the Go reference do."""
    to_fleet = Leg(source=RELAY_FLEET, destination=TRANSCEIVER, framing=fleet, vip=VIP)
    from_fleet = Leg(source=TRANSCEIVER, destination=RELAY_FLEET, framing=fleet, vip=VIP)
    return {
        "up": Way(is_up=True, sends=Leg(source=None, destination=VIP), arrives=to_fleet),
        "down": Way(is_up=False, sends=from_fleet, arrives=Leg(source=VIP, destination=None)),
    }
