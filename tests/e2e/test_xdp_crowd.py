"""10,000 clients through the kernel's data path: numbered packets, counted at both ends while workers come and go."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.keystore import load_keys
from tests.e2e.conftest import Network
from tests.e2e.crowd import Crowd
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.xdp import CLIENT_IP, VIP, need_network, xdp_relay

pytestmark = [pytest.mark.alone, pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS = 10_000
# All of them share one address.
_CONFIG = "[relay]\nunknown_per_s = 1000000\nunknown_burst = 1000000\n"


@contextlib.contextmanager
def crowded(
    network: Network, tmp_path: Path, workers: int, count: int, interval_s: float
) -> Iterator[tuple[Instance, Crowd]]:
    """A relay with that many workers, and a crowd that talks through it."""
    config = tmp_path / "relayctl.toml"
    config.write_text(_CONFIG)
    arguments = ("--config", str(config), "--workers", str(workers), "--transceivers", "1")
    with xdp_relay(network, tmp_path / "s", *arguments) as instance:
        keys = load_keys(instance.state_dir.keys_file)
        crowd = Crowd(network.here, CLIENT_IP, network.there, VIP, keys, count, interval_s)
        crowd.start()
        try:
            crowd.wait_until_flowing(60)
            yield instance, crowd
        finally:
            crowd.stop()


def slots_of_clients(instance: Instance) -> dict[str, int]:
    shown = instance.run("maps", "show", "flows", "--json", "--limit", "100000")
    assert shown.returncode == 0, shown.stderr
    return {flow["client"]: flow["slot"] for flow in json.loads(shown.stdout)}


def test_scaling_moves_few_clients_and_loses_no_packet(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with crowded(network, tmp_path, 4, CLIENTS, 2.0) as (instance, crowd):
        homes = [slots_of_clients(instance)]
        assert len(homes[0]) == CLIENTS
        for workers in (5, 4):
            scaled = instance.run("scale", "--workers", str(workers))
            assert scaled.returncode == 0, scaled.stderr
            time.sleep(3)
            homes.append(slots_of_clients(instance))
        four, five, again = homes
        carried = [worker["flows"] for worker in instance.status()["relay"]["workers"]]
    report = crowd.report()
    moved = sum(four[client] != five[client] for client in four)
    assert again == four
    assert moved <= CLIENTS / 4
    assert set(five.values()) == {0, 1, 2, 3, 4}
    assert (report["lost up"], report["lost down"]) == (0, 0)
    print_report(
        "workers 4→5→4 (XDP)", {**report, "moved by the fifth": moved, "flows a worker at the end": carried}
    )


def test_killed_worker_gives_its_slot_to_another(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with crowded(network, tmp_path, 4, 400, 0.02 * 2) as (instance, crowd):
        victim = instance.status()["relay"]["workers"][1]
        served = sum(slot == 1 for slot in slots_of_clients(instance).values())
        os.kill(victim["pid"], signal.SIGKILL)
        wait_until(
            lambda: (
                instance.status()["relay"]["workers"][1]["restarts"] == 1
                and instance.status()["relay"]["workers"][1]["state"] == "ready"
            ),
            10,
            "the worker's return",
        )
        time.sleep(1)
        assert instance.status()["relay"]["workers"][1]["last_exit"] == "killed by SIGKILL"
    report = crowd.report()
    assert served > 50
    # What the worker had taken from its socket when it died is gone with it, and nothing else.
    assert report["lost up"] + report["lost down"] <= 2
    print_report("worker killed -9 (XDP)", {**report, "clients of the slot": served})


def test_killed_supervisor_loses_no_packet(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with contextlib.ExitStack() as stack:
        first, crowd = stack.enter_context(crowded(network, tmp_path, 3, 400, 0.04))
        first.kill_supervisor()
        time.sleep(2)
        arguments = ("--config", str(tmp_path / "relayctl.toml"), "--workers", "2", "--transceivers", "1")
        second = stack.enter_context(xdp_relay(network, tmp_path / "s", *arguments))
        assert second.status()["relay"]["kernel"]["adopted"]
        time.sleep(2)
        crowd.stop()
        assert len(second.status()["relay"]["workers"]) == 2
    report = crowd.report()
    assert (report["lost up"], report["lost down"]) == (0, 0)
    print_report("supervisor killed -9 and started anew with 2 workers instead of 3 (XDP)", report)
