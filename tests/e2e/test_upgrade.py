"""``relayctl upgrade`` of a relay under calls: not a packet is lost, and the process stays the same one."""

import asyncio
import contextlib
import time
from pathlib import Path

import psutil
import pytest

from cli.call import EchoCall
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.three_hosts import IPV4, crowd_of, relay_of, two_armed
from tests.e2e.xdp import attached, need_network, xdp_relay

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS, INTERVAL_S = 50, 0.04


def upgrade(relay: Instance, network: Network) -> None:
    with network.there:
        done = relay.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"(pid {relay.process.pid})\n")
    assert relay.process.poll() is None


def children(relay: Instance) -> dict[int, str]:
    """State by pid, zombies included."""
    return {child.pid: child.status() for child in psutil.Process(relay.process.pid).children()}


def worker_pids(relay: Instance) -> set[int]:
    return {worker["pid"] for worker in relay.status()["relay"]["workers"]}


async def test_calls_go_on_over_two_upgrades(own_network: Network | None, tmp_path: Path) -> None:
    """Workers carry them: transceivers are on the relay's host."""
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2", "--transceivers", "1") as relay:
        first_transceiver = relay.status()["transceivers"]["processes"][0]["pid"]
        (before,) = attached(network)
        async with EchoCall(relay.url, bearer_token=relay.token) as call:
            await asyncio.sleep(1)
            for _ in range(2):
                workers = worker_pids(relay)
                await asyncio.to_thread(upgrade, relay, network)
                assert relay.status()["pid"] == relay.process.pid
                assert relay.status()["relay"]["kernel"]["adopted"]
                assert not workers & worker_pids(relay)
                assert attached(network) == [before]
            assert first_transceiver in {entry["pid"] for entry in relay.status()["left_behind"]}
            async with EchoCall(relay.url, bearer_token=relay.token) as another:
                await asyncio.sleep(1)
                assert (await another.report()).heard
            report = await call.report()
            assert report.heard
            assert report.packets_lost == 0
        # The old transceiver ends with its call.
        await asyncio.to_thread(
            wait_until, lambda: len(children(relay)) == 3, 20, "the end of what was left behind"
        )
        assert psutil.STATUS_ZOMBIE not in children(relay).values()
        print_report("upgraded twice, a call (XDP)", {"lost": report.packets_lost})


def test_no_packet_is_lost(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(two_armed())
        relay = stack.enter_context(relay_of(site, IPV4, tmp_path, "--workers", "2"))
        crowd = stack.enter_context(crowd_of(site, IPV4, tmp_path, CLIENTS, INTERVAL_S))
        workers = worker_pids(relay)
        began = time.monotonic()
        upgrade(relay, Network(site.client, site.relay))
        took_s = time.monotonic() - began
        assert not workers & worker_pids(relay)
        assert len(children(relay)) == 2
        assert psutil.STATUS_ZOMBIE not in children(relay).values()
        time.sleep(1)
        crowd.stop()
        report = crowd.report()
    assert report["sent"] > CLIENTS * took_s / INTERVAL_S
    assert (report["lost up"], report["lost down"]) == (0, 0)
    print_report("upgraded (XDP)", {**report, "took_s": round(took_s, 1)})
