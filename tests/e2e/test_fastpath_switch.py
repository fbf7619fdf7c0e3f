"""The fast path switched off and on under calls: what carries them changes, and no packet is lost."""

from pathlib import Path

import pytest

from host.keystore import load_keys
from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.crowd import Crowd
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.three_hosts import (
    IPV4,
    Carried,
    relay_of,
    transceiver_of,
    two_armed,
    wait_until_in_kernel,
    worker_packets,
)
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS, INTERVAL_S = 500, 0.25


def switch(relay: Instance, state: str) -> None:
    done = relay.run("bpf", "fastpath", state)
    assert done.returncode == 0, done.stderr


def switch_off_and_on(relay: Instance, least: int) -> dict[str, int]:
    """Off until workers have carried that many packets, on until XDP has, and they none; what each carried meanwhile."""
    switch(relay, "off")
    off = Carried.now(relay)
    wait_until(lambda: worker_packets(relay) - off.by_workers >= least, 20, "packets by the workers")
    by_workers = Carried.now(relay).minus(off)
    assert (by_workers["stun"], by_workers["up"], by_workers["down"]) == (0, 0, 0)
    switch(relay, "on")
    on = Carried.now(relay)
    by_xdp = wait_until_in_kernel(relay, least).minus(on)
    assert min(by_xdp["up"], by_xdp["down"]) >= least
    return {"by workers": by_workers["by_workers"], "by XDP": by_xdp["up"] + by_xdp["down"]}


def test_switching_loses_no_numbered_packet(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with two_armed() as site, relay_of(site, IPV4, tmp_path) as relay:
        keys, vip = load_keys(tmp_path / "keys.json"), IPV4.vip
        crowd = Crowd(
            site.client,
            IPV4.client_ip,
            site.transceiver,
            vip,
            keys,
            CLIENTS,
            INTERVAL_S,
            transceiver_ip=IPV4.transceiver_ip,
        )
        crowd.start()
        try:
            crowd.wait_until_flowing(30)
            wait_until_in_kernel(relay, CLIENTS)
            rounds = [switch_off_and_on(relay, 2 * CLIENTS) for _ in range(4)]
        finally:
            crowd.stop()
    report = crowd.report()
    print_report("fast path off and on, four times, numbered packets", {**report, "rounds": rounds})
    assert (report["lost up"], report["lost down"], report["doubled"]) == (0, 0, 0)


def test_switching_is_not_heard_in_a_call(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with (
        two_armed() as site,
        relay_of(site, IPV4, tmp_path) as relay,
        transceiver_of(site, IPV4, tmp_path) as transceiver,
        page_call(transceiver, tmp_path / "profile") as call,
    ):
        wait_until_in_kernel(relay)
        rounds = [switch_off_and_on(relay, 25) for _ in range(4)]
        # until the far end has told of what it lost
        heard = call.wait_for_more(call.counts(), sent=50, received=50, echoes=4, reports=2)
        call.wait_for_audio()
    print_report("fast path off and on, four times, Chromium call", {**heard, "rounds": rounds})
    assert (heard["lost_up"], heard["lost_down"]) == (0, 0)
