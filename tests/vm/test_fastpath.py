"""The fast path on real network cards: XDP carries a call, the workers see nothing of it, and both ways of it can be changed."""

import pytest

from tests.e2e.carried import Carried
from tests.measured import note_measured
from tests.vm.calls import Call, calling
from tests.vm.site import Site, wait_for

pytestmark = pytest.mark.vm

_PACKETS = 250


def _wait_until_in_kernel(site: Site) -> Carried:
    """Until XDP forwards what comes, and workers see none between two looks."""

    def is_in_kernel() -> Carried | None:
        before = Carried.now(site.relay)
        now = Carried.now(site.relay)
        news = now.minus(before)
        return now if not news["by_workers"] and min(news["up"], news["down"]) > 0 else None

    return wait_for(is_in_kernel, site.inventory.command_s, "a call that workers see nothing of")


def _carry(site: Site, call: Call) -> dict[str, int]:
    """What was carried by whom while so many packets came back."""
    before = Carried.now(site.relay)
    call.wait_for_packets(_PACKETS)
    return Carried.now(site.relay).minus(before)


def test_xdp_carries_a_call_and_workers_see_nothing_of_it(site: Site) -> None:
    with calling(site) as call:
        _wait_until_in_kernel(site)
        carried = _carry(site, call)
        note_measured(", ".join(f"{name} {count}" for name, count in carried.items()))
        assert carried["by_workers"] == 0
        assert min(carried[name] for name in ("up", "down", "flow_up", "flow_down")) >= 0.9 * _PACKETS
        call.hang_up_without_loss("call")


def test_fast_path_off_and_on_in_a_call(site: Site) -> None:
    with calling(site) as call:
        _wait_until_in_kernel(site)
        try:
            site.relay.relayctl("bpf", "fastpath", "off")
            by_workers = _carry(site, call)
        finally:
            site.relay.relayctl("bpf", "fastpath", "on")
        _wait_until_in_kernel(site)
        by_xdp = _carry(site, call)
        note_measured(
            f"off: {by_workers['by_workers']} by workers; on: {by_xdp['up'] + by_xdp['down']} by XDP"
        )
        assert (by_workers["stun"], by_workers["up"], by_workers["down"]) == (0, 0, 0)
        assert by_workers["by_workers"] >= 1.8 * _PACKETS
        assert by_xdp["by_workers"] == 0
        call.hang_up_without_loss("call")
