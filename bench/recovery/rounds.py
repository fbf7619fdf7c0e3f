"""What happens in a round of each scenario, and what became of its calls.

Relays are killed at a random time of the clients' check intervals. A relay that comes up has no flow: it was killed, or is
new. Where it has Redis, the one before it had Redis too, and told it of its flows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any

from bench.errors import BenchError
from bench.progress import Progress
from bench.recovery.frames import Endpoint
from bench.recovery.stage import Stage, wall_clock
from bench.recovery.taps import Place
from bench.recovery.traces import Loss, count_lost, first_at, longest_gap

# aioice's check interval, the longest of all.
PHASE_S = 5.0
# What is on its way arrives; what came up is told to Redis.
_SETTLE_S, _BEFORE_S = 1.0, 1.0
_SERVED_S, _IN_KERNEL_S = 15.0, 20.0
_KEPT_S = 10.0
# Enough probes that each worker has some.
_PROBED_S = 0.1
_NOBODY: Endpoint = (b"", 0)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One direction of a call in a round; ms.

    recovery: from what the scenario counts from to the first media packet that was delivered; None where it went on without
        a break, or never came back. gap: the longest time without media; None where it never came back.
    """

    recovery_ms: float | None = None
    gap_ms: float | None = None
    loss: Loss = field(default_factory=Loss)


@dataclass(frozen=True, kw_only=True)
class CallRound:
    """One call in a round."""

    kind: str
    client: str
    up: Way
    down: Way
    is_back: bool


@dataclass(frozen=True, kw_only=True)
class Round:
    """phase_s: how long was waited before. outage_ms: from the kill until the relay served the VIP, or said with
    XDP that it was up again; until the VIP had moved.

    probe_interval_ms: between probes, as it was; None where there were none.
    own_drops: packets that the bench's own sockets had no room for; with any, losses cannot be told.
    """

    redis: bool
    phase_s: float
    outage_ms: float
    probe_interval_ms: float | None = None
    own_drops: int
    calls: tuple[CallRound, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """``play`` takes whether the relay that comes up has Redis. recovery_from: what recoveries are counted from."""

    name: str
    what: str
    recovery_from: str
    dataplane: str
    play: Callable[[Stage, bool, float], Round]


@dataclass
class Played:
    """A scenario's rounds, or why there are none; dropped: calls that did not outlive it."""

    scenario: Scenario
    rounds: list[Round] = field(default_factory=list)
    check_intervals_s: dict[str, list[float]] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    why_not: str = ""


def play_rounds(
    stage: Stage, scenario: Scenario, rounds: int, columns: Sequence[bool], chance: Random, shown: Progress
) -> Played:
    """So many rounds of each column (with Redis, or without), in turns. Raises BenchError."""
    played = Played(scenario)
    before = stage.calls()
    for number in range(rounds):
        for redis in columns:
            with_or_not = "with" if redis else "without"
            shown.advance(f"{scenario.name} {with_or_not} Redis, round {number + 1}")
            if redis and not stage.remembers:
                scenario.play(stage, True, 0.0)
                time.sleep(_SETTLE_S)
            stage.wait_until_answered()
            phase_s = chance.uniform(0, PHASE_S)
            time.sleep(phase_s)
            played.rounds.append(scenario.play(stage, redis, phase_s))
            time.sleep(_SETTLE_S)
    for then, now in zip(before, stage.calls(), strict=True):
        if then["state"] == "connected" != now["state"]:
            played.dropped.append(now)
    for client in stage.taps.clients():
        checks = stage.taps.checks(client)
        intervals = [later - earlier for earlier, later in pairwise(checks)]
        played.check_intervals_s.setdefault(stage.kind_of(client).name, []).extend(intervals)
    return played


def _restart(stage: Stage, redis: bool, phase_s: float) -> Round:
    """All processes of the relay killed, and started again at once in its state directory."""
    clients, relay = _begin(stage), stage.relays[stage.active]
    began_at = wall_clock()
    with stage.prober() as prober:
        dead_at = relay.kill()
        relay.start(redis=redis)
        served = _wait_for_probes(stage, dead_at)
    stage.remembers = redis
    stage.wait_until_back(clients, dead_at)
    calls, served_at = [], min(served.values())
    for client in clients:
        ways = {}
        delivered = (media for media in stage.taps.media(Place.CAME_UP, client) if media.at >= dead_at)
        worker = next((media.source for media in delivered), _NOBODY)
        for way, place in (("up", Place.CAME_UP), ("down", Place.CAME_DOWN)):
            times = stage.taps.times(place, client)
            ways[way] = _way(times, first_at(times, dead_at), served.get(worker, served_at), began_at)
        calls.append(_call(stage, client, dead_at, **ways))
    made = _round(stage, redis, phase_s, served_at - began_at, calls)
    return replace(made, probe_interval_ms=prober.interval_ms)


def _take_over(stage: Stage, redis: bool, phase_s: float, *, kills: bool) -> Round:
    """The other relay, which has just come up, gets the VIP."""
    target = stage.active.other
    stage.relays[target].kill()
    stage.relays[target].start(redis=redis)
    clients = _begin(stage)
    began_at = wall_clock()
    since = stage.relays[stage.active].kill() if kills else began_at
    stage.sites.move_vip(target)
    moved_at = wall_clock()
    stage.active, stage.remembers = target, redis
    stage.wait_until_back(clients, moved_at, up=Place.carried(target))
    calls = []
    for client in clients:
        reached_at = first_at(stage.taps.times(Place.reached(target), client), began_at)
        carried_at = first_at(stage.taps.times(Place.carried(target), client), began_at)
        up = _way(stage.taps.times(Place.CAME_UP, client), carried_at, reached_at, began_at)
        times = stage.taps.times(Place.CAME_DOWN, client)
        # A relay that lives goes on with what its transceivers send.
        down_at = first_at(times, since) if kills else None
        down = _way(times, down_at, reached_at, began_at)
        calls.append(_call(stage, client, moved_at, up=up, down=down))
    return _round(stage, redis, phase_s, moved_at - began_at, calls)


def _restart_in_kernel(stage: Stage, redis: bool, phase_s: float) -> Round:
    """As a restart, with XDP: nothing is lost at all."""
    relay = stage.relays[stage.active]
    _wait_until_in_kernel(stage)
    clients = _begin(stage)
    began_at = wall_clock()
    relay.kill()
    relay.start(redis=redis)
    up_at = wall_clock()
    stage.remembers = redis
    time.sleep(_SETTLE_S)
    end = wall_clock()
    time.sleep(_SETTLE_S)
    calls = []
    for client in clients:
        ways = {}
        for way, sent, came in (
            ("up", Place.SENT_UP, Place.CAME_UP),
            ("down", Place.SENT_DOWN, Place.CAME_DOWN),
        ):
            media = stage.taps.media(came, client)
            gap = longest_gap([packet.at for packet in media], began_at, end)
            loss = count_lost(stage.taps.media(sent, client), media, began_at - _BEFORE_S, end)
            ways[way] = Way(gap_ms=_ms(gap), loss=loss)
        calls.append(_call(stage, client, up_at, **ways))
    return _round(stage, redis, phase_s, up_at - began_at, calls)


SCENARIOS = (
    Scenario(
        name="restart",
        what="all processes of the relay killed and started again, userspace",
        recovery_from="its worker's socket is served",
        dataplane="userspace",
        play=_restart,
    ),
    Scenario(
        name="takeover",
        what="relay killed, another host has its VIP, userspace",
        recovery_from="the call's first packet at the other host",
        dataplane="userspace",
        play=lambda stage, redis, phase_s: _take_over(stage, redis, phase_s, kills=True),
    ),
    Scenario(
        name="move",
        what="VIP moved to another host, both relays run, userspace",
        recovery_from="the call's first packet at the other host",
        dataplane="userspace",
        play=lambda stage, redis, phase_s: _take_over(stage, redis, phase_s, kills=False),
    ),
    Scenario(
        name="xdp",
        what="all processes of the relay killed and started again, XDP",
        recovery_from="",
        dataplane="xdp",
        play=_restart_in_kernel,
    ),
)


def _begin(stage: Stage) -> list[Endpoint]:
    """Who is in a call now; what was before is forgotten."""
    stage.taps.forget(wall_clock() - _KEPT_S)
    stage.taps.unread()
    clients = stage.gather()
    if not clients:
        raise BenchError("no call is left")
    return clients


def _wait_for_probes(stage: Stage, since: float) -> dict[Endpoint, float]:
    """When each worker's socket was served: the relay says that all of them are up. Raises BenchError."""
    deadline = time.monotonic() + _SERVED_S
    while not stage.taps.served(since):
        if time.monotonic() > deadline:
            raise BenchError("the relay that was started again serves nobody")
        time.sleep(0.01)
    time.sleep(_PROBED_S)
    return stage.taps.served(since)


def _wait_until_in_kernel(stage: Stage) -> None:
    """Until XDP alone carries the calls: for a moment no worker has a packet. Raises BenchError."""
    relay = stage.relays[stage.active]
    deadline = time.monotonic() + _IN_KERNEL_S
    carried = _carried(relay.status())
    while time.monotonic() < deadline:
        time.sleep(0.5)
        before, carried = carried, _carried(relay.status())
        if carried[0] == before[0] and carried[1] - before[1] >= 10 * len(stage.living()):
            return
    raise BenchError("XDP does not take the calls")


def _carried(status: dict[str, Any]) -> tuple[int, int]:
    """Packets of workers, and media that XDP forwarded up."""
    relay = status["relay"]
    return sum(worker["packets"] for worker in relay["workers"]), relay["xdp_verdicts"]["forward_flow"]


def _way(times: Sequence[float], first: float | None, since: float | None, began_at: float) -> Way:
    recovery = None if first is None or since is None else first - since
    until = times[-1] if times else began_at
    return Way(recovery_ms=_ms(recovery), gap_ms=_ms(longest_gap(times, began_at, until)))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _call(stage: Stage, client: Endpoint, since: float, *, up: Way, down: Way) -> CallRound:
    is_back = stage.are_back([client], since)
    if not is_back:
        stage.lost.add(client)
        up, down = (replace(way, recovery_ms=None, gap_ms=None) for way in (up, down))
    text = ".".join(map(str, client[0])) + f":{client[1]}"
    return CallRound(kind=stage.kind_of(client).name, client=text, up=up, down=down, is_back=is_back)


def _round(stage: Stage, redis: bool, phase_s: float, outage_s: float, calls: Sequence[CallRound]) -> Round:
    return Round(
        redis=redis,
        phase_s=round(phase_s, 3),
        outage_ms=round(outage_s * 1000, 1),
        own_drops=stage.taps.unread(),
        calls=tuple(calls),
    )
