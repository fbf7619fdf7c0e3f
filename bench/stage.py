"""All peers of a measurement at once, each on hosts of its own, so that rounds can alternate between them quickly."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench.errors import BenchError, PeerUnavailableError
from bench.live_frames import BATCH
from bench.peers.bare_redirect import bare_redirect
from bench.peers.base import Peer, Relay
from bench.peers.coturn import coturn
from bench.peers.go_reference import go_reference
from bench.peers.kernel import kernel_route, nft_dnat
from bench.peers.nginx_stream import nginx_stream
from bench.peers.relayctl import userspace, xdp
from bench.progress import Progress
from bench.results import UP
from bench.rig import Load, Rig, Sample, Way
from bench.topology import Topology, topology

# In the order of tables.
PEERS: dict[str, Peer] = {
    "bare-redirect": bare_redirect,
    "xdp": xdp,
    "kernel-route": kernel_route,
    "nft-dnat": nft_dnat,
    "userspace": userspace,
    "go-reference": go_reference,
    "nginx-stream": nginx_stream,
    "coturn": coturn,
}
OPUS_MIX = (40, 80, 110, 160, 40, 80, 110, 160, 40, 80, 110, 160, 40, 80, 110, 240)
# Of the rate that is delivered at full load.
_TRIED_RATES = (0.9, 1.1, 1.4, 1.8, 2.4)
_TRY_S = 0.3
# A turn in which somebody else had more of the core than this is repeated so often.
_MIN_CORE_SHARE, _RETRIES = 0.97, 3
# Flows without a packet end after 60 s; connection tracking is told to keep them longer.
_PRIME_S = 25.0
# Packets/s that keep the flows of a process: less than it delivers, so that none is lost.
_KEEP_RATE = 80_000


@dataclass(frozen=True)
class Condition:
    """How packets come and where the relay's process runs.

    Singly: each packet has gone all its way, up to a socket, before the next is made. In bursts: 64 at a time.
    """

    name: str
    batch: int
    has_own_core: bool = False
    wakes_at_once: bool = False


SINGLY = Condition("singly", 1)
BURSTS = Condition("bursts", BATCH)
OWN_CORE = Condition("own core", 1, has_own_core=True)
# What latency is measured under: the generator is no busy neighbour, whose slice of 3 ms a woken process waits for.
AT_ONCE = Condition("at once", 1, wakes_at_once=True)


@dataclass
class Player:
    """A peer that runs, at which offered rate it was found to deliver most, and when it last saw all its flows."""

    name: str
    topology: Topology
    relay: Relay
    best_rates: dict[tuple[str, tuple[int, ...], Condition], int] = field(default_factory=dict)
    primed_at: float | None = None

    def way(self, direction: str) -> Way:
        """Up or down."""
        return self.relay.up if direction == UP else self.relay.down


@dataclass(frozen=True)
class Stage:
    """Peers that run, and the reasons of those that do not."""

    rig: Rig
    flows: int
    players: dict[str, Player]
    why_not: dict[str, str]

    def play(
        self, player: Player, direction: str, payloads: tuple[int, ...], condition: Condition, seconds: float
    ) -> Sample:
        """One turn at full load, after whatever the peer needs to know its flows. Raises BenchError."""
        load = self.ready(player, direction, payloads, condition, seconds)
        if player.relay.has_process:
            key = (direction, payloads, condition)
            if key not in player.best_rates:
                player.best_rates[key] = self._find_best_rate(player, player.way(direction), load)
            load = replace(load, rate=player.best_rates[key])
        sample = self.rig.run(player.topology, player.way(direction), load)
        for _ in range(_RETRIES):
            if sample.core_share >= _MIN_CORE_SHARE:
                break
            again = self.rig.run(player.topology, player.way(direction), load)
            sample = max(sample, again, key=lambda one: one.core_share)
        return sample

    def ready(
        self, player: Player, direction: str, payloads: tuple[int, ...], condition: Condition, seconds: float
    ) -> Load:
        """Have the peer where its turn can begin; the load at full speed."""
        relay, rig = player.relay, self.rig
        relay.refresh()
        rig.place(relay.pids, rig.harness_core if condition.has_own_core else rig.core)
        load = Load(
            payloads=payloads,
            flows=self.flows,
            seconds=seconds,
            batch=condition.batch,
            pids=tuple(relay.pids),
            gives_way=condition.wakes_at_once,
        )
        is_due = player.primed_at is None or time.monotonic() - player.primed_at > _PRIME_S
        if relay.learns_up and is_due:
            # Of many flows, the first has its packet long before the last.
            began_at = time.monotonic()
            if relay.has_process:
                rig.prime(player.topology, relay.up, replace(load, rate=_KEEP_RATE), times=1)
            else:
                rig.prime(player.topology, relay.up, load)
            player.primed_at = began_at
        return load

    def _find_best_rate(self, player: Player, way: Way, load: Load) -> int:
        """Too much load wastes the core on packets that find no room: try some rates, 0 is full speed."""
        at_full_speed = self.rig.run(player.topology, way, replace(load, seconds=_TRY_S)).pps
        delivered = {0: at_full_speed}
        for part in _TRIED_RATES:
            rate = int(at_full_speed * part)
            if rate:
                sample = self.rig.run(player.topology, way, replace(load, seconds=_TRY_S, rate=rate))
                delivered[rate] = sample.pps
        return max(delivered, key=lambda rate: delivered[rate])


@contextlib.contextmanager
def stage(rig: Rig, names: Sequence[str], flows: int, progress: Progress) -> Iterator[Stage]:
    """Start these peers, each with that many flows."""
    players: dict[str, Player] = {}
    why_not: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            progress.say(f"starting {name}, {flows} flows")
            with contextlib.ExitStack() as attempt:
                hosts = attempt.enter_context(topology())
                rig.attach_sinks(hosts)
                try:
                    relay = attempt.enter_context(PEERS[name](rig, hosts, flows))
                except PeerUnavailableError as error:
                    why_not[name] = str(error)
                except (BenchError, OSError) as error:
                    why_not[name] = f"did not start: {error}"
                else:
                    # A process has seen its flows when they were made.
                    primed_at = time.monotonic() if relay.has_process else None
                    players[name] = Player(name, hosts, relay, primed_at=primed_at)
                    stack.push(attempt.pop_all())
        yield Stage(rig, flows, players, why_not)
