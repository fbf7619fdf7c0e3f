"""XDP on the relay's network cards: in the promised mode, of the promised driver, at work in the driver itself."""

import re
from collections import Counter

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling
from tests.vm.site import Site

pytestmark = pytest.mark.vm

_PACKETS = 100
_FORWARDED = ("forward_stun", "forward_flow", "forward_client")


# Of virtio_net, and what other drivers call the same.
_SEEN_BY_XDP = r"xdp_packets"
_SENT_ON_BY_XDP = r"xdp_redirects?$|rx.*xdp_tx$"


def _counters(site: Site) -> Counter[str]:
    """The drivers' own, of all interfaces of the relay."""
    relay = site.relay
    return sum((Counter(relay.ethtool_counters(name)) for name in relay.entry.interfaces), Counter())


def _grown(before: Counter[str], after: Counter[str], pattern: str) -> int | None:
    """The sum of those whose name has the pattern; None where the driver has none."""
    names = [name for name in after if re.search(pattern, name)]
    return sum(after[name] - before[name] for name in names) if names else None


def test_mode_as_promised_by_kernel_and_relayctl(site: Site) -> None:
    relay = site.relay
    expected = dict.fromkeys(relay.entry.interfaces, site.inventory.xdp_mode)
    by_kernel = {name: relay.xdp_link(name) for name in relay.entry.interfaces}
    assert {name: mode for name, (mode, _) in by_kernel.items()} == expected
    by_status = {a["interface"]: a["mode"] for a in relay.status()["relay"]["kernel"]["interfaces"]}
    assert by_status == expected
    loaded = relay.relayctl_json("bpf", "status")
    assert {a["interface"]: a["mode"] for a in loaded["interfaces"]} == expected
    assert {a["interface"]: a["program_id"] for a in loaded["interfaces"]} == relay.program_ids()
    assert (loaded["supervisor"], loaded["fastpath"]) == ("running", "on")
    [program] = [program for program in loaded["programs"] if program["program"] == "xdp_ingress"]
    assert set(relay.program_ids().values()) == {program["id"]}
    note_measured(
        f"{', '.join(f'{mode} XDP on {name}' for name, mode in expected.items())}: program {program['id']}"
    )


def test_driver_as_promised(site: Site) -> None:
    for interface in site.relay.entry.interfaces:
        driver = site.relay.ethtool_driver(interface)
        assert site.inventory.driver in ("", driver["driver"])
        note_measured(f"{interface}: {driver['driver']} at {driver.get('bus-info') or 'no bus'}")


def test_relayctl_verifies_on_this_kernel(site: Site) -> None:
    verified = site.relay.relayctl_json("bpf", "verify")
    assert {"xdp_ingress", "reuseport_select"} <= verified["programs"].keys()
    walked = verified["programs"]["xdp_ingress"]["verified"]
    note_measured(
        f"Linux {verified['kernel']}: {walked} instructions walked, compiled and loaded in {verified['load_s']} s"
    )


@pytest.mark.vm("native")
def test_driver_counts_packets_of_a_call_as_xdp(site: Site) -> None:
    """What the driver's own counters say against XDP's: it ran for each packet, and sent on what the fast path forwards."""
    with calling(site) as call:
        drivers_before = _counters(site)
        verdicts_before = site.relay.status()["relay"]["xdp_verdicts"]
        call.wait_for_packets(_PACKETS)
        verdicts = site.relay.status()["relay"]["xdp_verdicts"]
        drivers = _counters(site)
    forwarded = sum(verdicts[name] - verdicts_before[name] for name in _FORWARDED)
    assert forwarded >= 2 * _PACKETS
    seen = _grown(drivers_before, drivers, _SEEN_BY_XDP)
    sent_on = _grown(drivers_before, drivers, _SENT_ON_BY_XDP)
    note_measured(
        f"XDP forwarded {forwarded}; the driver counted {seen} packets in XDP, {sent_on} sent on by it"
    )
    if site.inventory.driver == "virtio_net":
        assert None not in (seen, sent_on)
    assert seen is None or seen >= forwarded
    assert sent_on is None or sent_on >= forwarded
