"""``relayctl upgrade`` of a relay under calls: not a packet is lost, and the process stays the same one."""

import asyncio
import contextlib
import json
import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.call import EchoCall
from cli.main import EXIT_FAILED, EXIT_USAGE
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, Starter, print_report, started_by, wait_until
from tests.e2e.three_hosts import IPV4, crowd_of, relay_of, two_armed
from tests.e2e.xdp import attached, need_network, xdp_relay
from tests.host.programs import is_alive

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS, INTERVAL_S = 50, 0.04
UNIT = Path(__file__).parents[2] / "deploy/systemd/relayctl.service"
_CONFINE = """
import os, sys, pyprctl
kept = {pyprctl.Cap[name.removeprefix("CAP_")] for name in sys.argv[1].split()}
for capability in pyprctl.capbset_probe() - kept:
    pyprctl.capbset_drop(capability)
pyprctl.set_no_new_privs()
os.execv(sys.argv[2], sys.argv[2:])
"""


def is_confined(relay: Instance) -> None:
    """It has not CAP_SYS_ADMIN, and cannot write where it has no business."""
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    effective = re.search(r"^CapEff:\t(.*)$", status, re.M)
    assert effective is not None
    assert int(effective[1], 16) > 0
    assert not int(effective[1], 16) & 1 << 21
    mounts = Path(f"/proc/{relay.process.pid}/mounts").read_text().splitlines()
    root = [mount.split() for mount in mounts if mount.split()[1] == "/"][-1]
    assert "ro" in root[3].split(",")


def upgrade(relay: Instance, network: Network) -> None:
    with network.there:
        done = relay.run("upgrade")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"(pid {relay.process.pid})\n")
    assert relay.process.poll() is None


def upgrade_or_fail(relay: Instance, network: Network) -> None:
    with network.there:
        relay.run("upgrade")


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
        wait_until(lambda: len(children(relay)) == 2, 20, "no zombie of an old worker")
        time.sleep(1)
        crowd.stop()
        report = crowd.report()
    assert report["sent"] > CLIENTS * took_s / INTERVAL_S
    assert (report["lost up"], report["lost down"]) == (0, 0)
    print_report("upgraded (XDP)", {**report, "took_s": round(took_s, 1)})


async def test_sigterm_in_the_middle_of_it_leaves_nothing(
    own_network: Network | None, tmp_path: Path
) -> None:
    """Neither a worker nor a program of either supervisor; the call may end."""
    network = need_network(own_network)
    config = tmp_path / "relayctl.toml"
    config.write_text("[host]\ndrain_s = 0.5\n")
    arguments = ("--config", str(config), "--workers", "1", "--transceivers", "1")
    with xdp_relay(network, tmp_path / "s", *arguments) as relay:
        process = psutil.Process(relay.process.pid)
        before = process.cmdline(), process.children()
        async with EchoCall(relay.url, bearer_token=relay.token):
            upgrading = asyncio.create_task(asyncio.to_thread(upgrade_or_fail, relay, network))
            await asyncio.to_thread(wait_until, lambda: process.cmdline() != before[0], 20, "the successor")
            relay.process.terminate()
            await upgrading
            assert await asyncio.to_thread(relay.process.wait, 60) == 0
        assert attached(network) == []
        assert [child for child in before[1] if is_alive(child.pid)] == []


def test_relay_that_would_be_none_is_not_given_up(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    config = tmp_path / "relayctl.toml"
    config.write_text("[host]\nrole = 'all'\n")
    arguments = ("--config", str(config), "--workers", "1", "--transceivers", "1")
    with xdp_relay(network, tmp_path / "s", *arguments) as relay:
        before = children(relay).keys()
        config.write_text("[host]\nrole = 'transceivers'\n")
        with network.there:
            refused = relay.run("upgrade")
        assert refused.returncode == EXIT_USAGE
        assert "host.role: a relay runs here" in refused.stderr
        # From another network namespace nobody can tell which interfaces there are.
        config.write_text("[host]\nrole = 'all'\n")
        refused = relay.run("upgrade")
        assert refused.returncode == EXIT_FAILED
        assert "another network namespace" in refused.stderr
        assert children(relay).keys() == before


async def test_confined_as_by_the_unit(own_network: Network | None, tmp_path: Path) -> None:
    """Its capabilities, no new privileges, and a file system that is read-only but for the state directory and a /tmp."""
    network = need_network(own_network)
    config = tmp_path / "relayctl.toml"
    config.write_text("[host]\nuser = 'nobody'\n")
    capabilities = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    assert capabilities is not None
    mounts = f"mount --bind {tmp_path} {tmp_path}; mount -t tmpfs none /var/tmp; mount -o remount,bind,ro /"
    confined = ("unshare", "--mount", "--propagation", "slave", "sh", "-ec", f'{mounts}; exec "$@"', "sh")
    starter = Starter(command=(*confined, sys.executable, "-c", _CONFINE, capabilities[1]), check=is_confined)
    arguments = ("--config", str(config), "--workers", "1", "--transceivers", "1")
    with started_by(starter), xdp_relay(network, tmp_path / "s", *arguments) as relay:
        shown = relay.run("status")
        assert (shown.returncode, shown.stderr) == (0, "")
        async with EchoCall(relay.url, bearer_token=relay.token) as call:
            for _ in range(2):
                await asyncio.to_thread(upgrade, relay, network)
                is_confined(relay)
            report = await call.report()
        assert report.heard
        assert report.packets_lost == 0
        relay.kill_supervisor()
        # In this thread: a network namespace is one's own.
        with network.there:
            again = relay.run("start", "--daemon", *json.loads((tmp_path / "s/launch.json").read_text()))
            assert again.returncode == 0, again.stderr
            stopped = relay.run("stop")
        assert stopped.returncode == 0, stopped.stderr
    assert attached(network) == []
