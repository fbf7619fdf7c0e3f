"""The way to a transceiver changes under numbered packets: they follow, and XDP goes on with them."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.three_hosts import (
    ROUTED,
    Site,
    crowd_of,
    relay_of,
    two_fleet_links,
    wait_until_in_kernel,
)
from tests.e2e.xdp import mac_of, need_network

pytestmark = [pytest.mark.alone, pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

CLIENTS, INTERVAL_S = 100, 0.1
PER_S = CLIENTS / INTERVAL_S
FOLLOWED_WITHIN_S = 1.0
# What shares the machine may take its time.
MARGIN_S = 0.5
OTHER_MAC = "02:00:00:00:00:77"


def next_hop(relay: Instance) -> tuple[str | None, str | None]:
    """Interface and MAC that XDP has for the transceiver; None where it has none."""
    (hop,) = relay.status()["relay"]["kernel"]["next_hops"]
    return hop["interface"], hop["mac"]


def wait_until_by(relay: Instance, interface: str | None) -> None:
    wait_until(lambda: next_hop(relay)[0] == interface, 20, f"next hop by {interface}")


def move_route(site: Site, relay: Instance) -> None:
    """To the other interface, while the first one stays up."""
    site.relay.run_ip("route del 192.0.2.7 via 10.0.1.7")
    wait_until_by(relay, "second")


def change_mac_of_transceiver(site: Site, relay: Instance) -> None:
    """As a failover does: the host tells its neighbours."""
    site.transceiver.set_sysctl("ipv4/conf/eth0/arp_notify", "1")
    site.transceiver.run_ip(f"link set eth0 address {OTHER_MAC}")
    wait_until(lambda: next_hop(relay) == ("fleet", OTHER_MAC), 20, "next hop to the other MAC")


def change_mac_of_client(site: Site, relay: Instance) -> None:
    """The client's next packet tells of it."""
    site.client.run_ip(f"link set eth0 address {OTHER_MAC}")


def lose_link(site: Site, relay: Instance) -> None:
    """Its route goes with it, and the one of the other interface is taken."""
    site.relay.run_ip("link set fleet down")
    wait_until_by(relay, "second")


def flap_link(site: Site, relay: Instance) -> None:
    """And back, with its route, as a routing daemon would."""
    lose_link(site, relay)
    site.relay.run_ip("link set fleet up")
    site.relay.run_ip("route add 192.0.2.7 via 10.0.1.7 metric 5")
    wait_until_by(relay, "fleet")


def flap_carrier(site: Site, relay: Instance) -> None:
    """The far end goes down and comes back; the route stays, so there is no other way meanwhile."""
    site.transceiver.run_ip("link set eth0 down")
    wait_until_by(relay, None)
    site.transceiver.run_ip("link set eth0 up")
    wait_until_by(relay, "fleet")


def received(site: Site) -> dict[str, int]:
    """Packets that came to the transceiver's host, by interface."""
    with site.transceiver:
        counters = psutil.net_io_counters(pernic=True)
    return {name: counters[name].packets_recv for name in ("eth0", "eth1")}


@pytest.mark.parametrize(
    ("change", "arrives_at", "most_lost_s"),
    [
        pytest.param(move_route, "eth1", 0, id="route moves to another interface"),
        pytest.param(change_mac_of_transceiver, "eth0", FOLLOWED_WITHIN_S, id="MAC of the transceiver"),
        pytest.param(change_mac_of_client, "eth0", FOLLOWED_WITHIN_S, id="MAC of the client"),
        pytest.param(lose_link, "eth1", FOLLOWED_WITHIN_S, id="link lost, another is there"),
        pytest.param(flap_link, "eth0", 2 * FOLLOWED_WITHIN_S, id="link flaps, another is there"),
        pytest.param(flap_carrier, "eth0", FOLLOWED_WITHIN_S, id="carrier flaps, no other is there"),
    ],
)
def test_packets_follow(
    own_network: Network | None,
    tmp_path: Path,
    change: Callable[[Site, Instance], None],
    arrives_at: str,
    most_lost_s: float,
    request: pytest.FixtureRequest,
) -> None:
    """``most_lost_s``: packets of how long may be lost, beside the margin."""
    need_network(own_network)
    with two_fleet_links() as site, relay_of(site, ROUTED, tmp_path) as relay:
        with crowd_of(site, ROUTED, tmp_path, CLIENTS, INTERVAL_S) as crowd:
            wait_until_in_kernel(relay, CLIENTS)
            assert next_hop(relay) == ("fleet", mac_of(site.transceiver, "eth0"))
            began = time.monotonic()
            change(site, relay)
            changed_s = round(time.monotonic() - began, 3)
            crowd.wait_for_more(2 * CLIENTS, 10)
            wait_until_in_kernel(relay, CLIENTS)
            before = received(site)
            wait_until_in_kernel(relay, CLIENTS)
            news = {name: count - before[name] for name, count in received(site).items()}
    report = crowd.report()
    print_report(f"numbered packets, {request.node.callspec.id}", {"changed_s": changed_s, **report})
    assert news.pop(arrives_at) >= CLIENTS
    assert all(count < CLIENTS / 10 for count in news.values())
    assert changed_s <= (most_lost_s or FOLLOWED_WITHIN_S) + MARGIN_S
    lost_s = (report["lost up"] + report["lost down"]) / PER_S
    assert lost_s <= (most_lost_s + MARGIN_S if most_lost_s else 0)
    assert report["doubled"] == 0
