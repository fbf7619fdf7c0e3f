"""Relays, transceivers, clients in calls, and who watches them: everything up, for as many rounds as are wanted."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.recovery.clients import AIORTC, CHROMIUM, KINDS, ClientKind, Clients, running_clients
from bench.recovery.frames import Endpoint
from bench.recovery.hosts import Side, Sites, sites
from bench.recovery.prober import Prober, Sink
from bench.recovery.relays import Relay, redis_server, transceivers
from bench.recovery.taps import Place, Taps
from host.keystore import load_keys
from wire.keys import KeyRing

# Whoever is not back by then never will be: consent ends at 30 s (RFC 7675).
_BACK_S = 35.0
# Two check intervals of aioice, which ends a call after six checks without an answer.
_ANSWERED_S = 10.0
_FLOWING_S, _RECENT_S, _POLL_S = 20.0, 1.0, 0.01


def wall_clock() -> float:
    """Seconds, as the kernel stamps packets."""
    return time.clock_gettime(time.CLOCK_REALTIME)


@dataclass
class Stage:
    """See the top of this file. ``active``: which relay has the VIP; ``remembers``: whether it tells Redis of its flows.

    lost: clients whose call did not come back.
    """

    sites: Sites
    relays: dict[Side, Relay]
    taps: Taps
    keys: KeyRing
    sink: Sink
    clients: list[Clients]
    lost: set[Endpoint] = field(default_factory=set)
    active: Side = Side.A
    remembers: bool = False

    def prober(self) -> Prober:
        """Probes the VIP while in the block."""
        return Prober(self.sites, self.keys, self.sink.address)

    def kind_of(self, client: Endpoint) -> ClientKind:
        """By its address."""
        return next(kind for kind in KINDS if kind.address.host == client[0])

    def living(self) -> list[Endpoint]:
        """Clients that have had media both ways within the last second."""
        since = wall_clock() - _RECENT_S
        return [client for client in self.taps.clients() if self.are_back([client], since)]

    def are_back(self, clients: list[Endpoint], since: float, up: Place = Place.CAME_UP) -> bool:
        """Whether each of them had media both ways since then; ``up`` may ask by which relay."""
        last_at = self.taps.last_at
        return all(last_at(place, client) >= since for place in (up, Place.CAME_DOWN) for client in clients)

    def wait_until_back(self, clients: list[Endpoint], since: float, up: Place = Place.CAME_UP) -> None:
        """Until they are, or never will be; and until they have media again: what is on its way down outlives a break up."""
        deadline = time.monotonic() + _BACK_S
        for _ in range(2):
            while not self.are_back(clients, since, up) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            since = wall_clock()

    def gather(self) -> list[Endpoint]:
        """Clients in a call that has media now; the others are lost."""
        clients = [client for client in self.taps.clients() if client not in self.lost]
        since = wall_clock()
        self.wait_until_back(clients, since)
        self.lost |= {client for client in clients if not self.are_back([client], since)}
        return [client for client in clients if client not in self.lost]

    def wait_until_answered(self) -> None:
        """Until each client has had an answer to a check of late: outages without one add up, and end a call."""
        clients = self.gather()
        deadline = time.monotonic() + _BACK_S
        while time.monotonic() < deadline:
            answered = min((self.taps.last_answer(client) for client in clients), default=0)
            if answered >= wall_clock() - _ANSWERED_S:
                break
            time.sleep(_POLL_S)

    def calls(self) -> list[dict[str, Any]]:
        """What clients say of their calls. Raises BenchError."""
        return [{"kind": of.kind.name, **state} for of in self.clients for state in of.states()]


@contextlib.contextmanager
def stage(*, dataplane: str, calls: int, tabs: int, redis: bool) -> Iterator[Stage]:
    """That many calls of aiortc and tabs of Chromium through relay A; B is not started. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        built = stack.enter_context(sites())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relaybench-")))
        if redis:
            stack.enter_context(redis_server(built, directory))
        relays = {side: Relay(built, side, directory, dataplane=dataplane) for side in Side}
        for relay in relays.values():
            stack.callback(relay.stop)
        relays[Side.A].start(redis=redis)
        token_file = stack.enter_context(transceivers(built, directory))
        sink = Sink(built)
        stack.callback(sink.close)
        taps = stack.enter_context(Taps(built, sink.address.port))
        clients = [
            stack.enter_context(
                running_clients(built, kind, token_file, count, directory / f"{kind.name}.log")
            )
            for kind, count in ((AIORTC, calls), (CHROMIUM, tabs))
            if count
        ]
        made = Stage(built, relays, taps, load_keys(directory / "keys.json"), sink, clients, remembers=redis)
        deadline = time.monotonic() + _FLOWING_S
        while len(made.living()) < calls + tabs:
            if time.monotonic() > deadline:
                raise BenchError(f"of {calls + tabs} calls {len(made.living())} have media both ways")
            time.sleep(_POLL_S)
        yield made
