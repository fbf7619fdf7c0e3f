"""A flood from one source is dropped before it wakes Python: the call next to it loses nothing."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from bench.flood.generator import JUNK
from cli.call import EchoCall
from cli.view import cpu_seconds
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report
from tests.e2e.xdp import need_network, send_flood, xdp_relay

pytestmark = [pytest.mark.alone, pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

RATE, SECONDS = 200_000, 6
# Well-formed as far as XDP can see, of a client that nobody knows.
RTP = b"\x80\x6f" + os.urandom(98)


def python_seconds(instance: Instance) -> float:
    return sum(map(cpu_seconds, instance.pids()))


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        pytest.param("junk", JUNK, "drop_not_webrtc", id="junk"),
        pytest.param("RTP of nobody", RTP, "drop_rate_limited", id="RTP of nobody"),
    ],
)
async def test_flood_costs_the_call_nothing(
    own_network: Network | None, tmp_path: Path, kind: str, payload: bytes, reason: str
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2", "--transceivers", "1") as instance:
        async with EchoCall(instance.url, bearer_token=instance.token) as call:
            await asyncio.sleep(2)
            started, cpu = time.monotonic(), python_seconds(instance)
            await asyncio.sleep(4)
            quiet_percent = 100 * (python_seconds(instance) - cpu) / (time.monotonic() - started)

            before = instance.status()["relay"]["xdp_verdicts"]
            started, cpu = time.monotonic(), python_seconds(instance)
            offered = await send_flood(network, payload=payload, rate=RATE, seconds=SECONDS)
            flooded_percent = 100 * (python_seconds(instance) - cpu) / (time.monotonic() - started)
            after = instance.status()["relay"]["xdp_verdicts"]
            await asyncio.sleep(1)
            report = await call.report()
        dropped = after[reason] - before[reason]
        assert report.heard
        assert report.packets_lost == 0
        # Nothing of the flood is missing: what is not dropped is what a bucket let through.
        passed = offered["offered"] - dropped
        assert 0 <= passed <= 400 + 200 * (SECONDS + 1)
        assert flooded_percent - quiet_percent <= 10
        print_report(
            f"flood of {kind} (XDP)",
            {
                "offered/s": round(offered["rate"]),
                "dropped/s": round(dropped / offered["seconds"]),
                "handed up": passed,
                "python CPU without_percent": round(quiet_percent, 1),
                "with_percent": round(flooded_percent, 1),
                "lost by the call": report.packets_lost,
            },
        )
