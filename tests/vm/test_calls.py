"""Calls of stock aiortc through the relay, to every host of transceivers, in both families."""

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling, check, probe, told
from tests.vm.site import Site
from wire.address import Address

pytestmark = pytest.mark.vm

_PROBE_S = 10.0
_PACKETS = 250


@pytest.mark.vm("ipv4")
def test_probe_calls_every_host_by_ipv4(site: Site) -> None:
    vips = {str(vip) for vip in site.inventory.vips}
    with site.client.without_vips(6):
        for to in site.transceivers:
            report = probe(site, to, _PROBE_S)
            assert set(report["vips"]) == vips
            note_measured(f"probe {to.name}: {told(report)}")
            check(report, site.inventory.max_loss)


@pytest.mark.parametrize(
    "family",
    [pytest.param(4, marks=pytest.mark.vm("ipv4")), pytest.param(6, marks=pytest.mark.vm("ipv6"))],
    ids=["IPv4", "IPv6"],
)
def test_call_of_family(site: Site, family: int) -> None:
    """The VIP of the other family cannot be reached meanwhile, so that ICE has no choice."""
    with site.client.without_vips(10 - family):
        for to in site.transceivers:
            with calling(site, to) as call:
                call.wait_for_packets(_PACKETS)
                flow = call.flow()
                client, vip = (Address.parse(flow[name]) for name in ("client", "vip"))
                assert (client.family, vip.family) == (family, family)
                assert vip in site.inventory.vips
                call.hang_up_without_loss(f"IPv{family} to {to.name}")
