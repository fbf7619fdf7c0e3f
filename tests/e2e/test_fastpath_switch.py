"""The fast path switched off and on under calls: what carries them changes, and no packet is lost."""

from pathlib import Path

import pytest

from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import print_report
from tests.e2e.three_hosts import (
    IPV4,
    crowd_of,
    dropped,
    relay_of,
    switch_off_and_on,
    transceiver_of,
    two_armed,
    wait_until_in_kernel,
)
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS, INTERVAL_S = 500, 0.25


@pytest.mark.alone
def test_switching_loses_no_numbered_packet(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with two_armed() as site, relay_of(site, IPV4, tmp_path) as relay:
        with crowd_of(site, IPV4, tmp_path, CLIENTS, INTERVAL_S) as crowd:
            wait_until_in_kernel(relay, CLIENTS)
            rounds = [switch_off_and_on(relay, 2 * CLIENTS) for _ in range(3)]
        drops = dropped(relay)
    report = crowd.report()
    about = {**report, "dropped": drops, "rounds": rounds, "numbers lost up": crowd.numbers_lost_up()[:50]}
    print_report("fast path off and on, three times, numbered packets", about)
    assert report["doubled"] == 0
    lost = report["lost up"] + report["lost down"]
    # Workers that this machine did not let run for a second count as dead, whoever switches.
    was_starved = max(report["gap up_ms"], report["gap down_ms"]) >= 1000
    assert lost <= (drops.get("drop_no_worker", 0) if was_starved else 0)


def test_switching_is_not_heard_in_a_call(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with (
        two_armed() as site,
        relay_of(site, IPV4, tmp_path) as relay,
        transceiver_of(site, IPV4, tmp_path) as transceiver,
        page_call(transceiver, tmp_path / "profile") as call,
    ):
        wait_until_in_kernel(relay)
        rounds = [switch_off_and_on(relay, 25) for _ in range(3)]
        # until the far end has told of what it lost
        heard = call.wait_for_more(call.counts(), sent=50, received=50, echoes=4, reports=2)
        call.wait_for_audio()
    print_report("fast path off and on, three times, Chromium call", {**heard, "rounds": rounds})
    assert (heard["lost_up"], heard["lost_down"]) == (0, 0)
