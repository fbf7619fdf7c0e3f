"""A VIP that moves between two relay hosts under calls, and back: calls go on, and the other relay carries them."""

import statistics
import time
from typing import Any

import pytest

from bench.recovery.frames import Endpoint
from bench.recovery.hosts import Side
from bench.recovery.relays import Relay
from bench.recovery.rounds import SCENARIOS, Round
from bench.recovery.stage import Stage, stage
from bench.recovery.taps import Place
from tests.e2e.conftest import Network
from tests.e2e.instance import print_report
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

CALLS = 20
# Longer than a call may be silent: pings are sent every 0.1 s, and audio every 20 ms.
WATCHED_S = 1.5
MOVE = next(scenario for scenario in SCENARIOS if scenario.name == "move")


def carried(made: Stage, side: Side, client: Endpoint, since: float) -> int:
    """Media packets of the client that its transceiver had of that relay."""
    return sum(at >= since for at in made.taps.times(Place.carried(side), client))


def watch(made: Stage, clients: list[Endpoint]) -> dict[str, Any]:
    """Calls for a moment after a move: all are up, heard and answered, and the relay with the VIP carries them alone."""
    before, since = made.calls(), time.clock_gettime(time.CLOCK_REALTIME)
    time.sleep(WATCHED_S)
    after = made.calls()
    assert [call["state"] for call in after] == ["connected"] * CALLS
    assert max(call["silent_s"] for call in after) < 1
    answered = [now["answered"] - then["answered"] for then, now in zip(before, after, strict=True)]
    assert min(answered) >= 5
    active, other = (
        [carried(made, side, client, since) for client in clients]
        for side in (made.active, made.active.other)
    )
    assert min(active) >= 20
    assert set(other) == {0}
    return {"pings answered": min(answered), "packets up by this relay": sum(active)}


def shown(moved: Round, relay: Relay) -> dict[str, Any]:
    events = relay.status()["relay"]["events"]
    gaps = [call.up.gap_ms for call in moved.calls if call.up.gap_ms is not None]
    recoveries = [call.up.recovery_ms for call in moved.calls if call.up.recovery_ms is not None]
    return {
        "gap up_ms": [round(statistics.median(gaps), 1), max(gaps)],
        "after the first packet_ms": [round(statistics.median(recoveries), 1), max(recoveries)],
        **{name: count for name, count in events.items() if "recall" in name},
    }


def test_calls_go_on_wherever_the_vip_is(own_network: Network | None) -> None:
    need_network(own_network)
    with stage(dataplane="userspace", calls=CALLS, tabs=0, redis=True) as made:
        clients = made.living()
        assert len(clients) == CALLS
        watch(made, clients)
        for side in (Side.B, Side.A):
            moved = MOVE.play(made, True, 0.0)
            assert made.active is side
            assert [call.is_back for call in moved.calls] == [True] * CALLS
            seen = watch(made, clients)
            print_report(
                f"VIP moved to relay {side}, {CALLS} calls", {**shown(moved, made.relays[side]), **seen}
            )
        assert made.living() == clients
        assert not [side for side, relay in made.relays.items() if "Traceback" in relay.log()]
