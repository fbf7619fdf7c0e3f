"""Hosts that are reset, as by their button, while calls are up. Last, as they take long."""

import time

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling, check, told
from tests.vm.site import Site, TransceiverNode, wait_for

pytestmark = pytest.mark.vm

_PACKETS = 250
# From the reset until the relay says so.
_NOTICED_S = 120.0
# A client gives up after 30 s without an answer (RFC 7675).
_CONSENT_S = 120.0


@pytest.mark.vm("redis")
def test_redis_host_reset_is_noticed_by_status_alone(site: Site) -> None:
    redis = site.redis
    assert redis is not None
    with calling(site) as call:
        boot = redis.boot_id()
        redis.reset()
        wait_for(lambda: _fleet_state(site) == "away", _NOTICED_S, "Redis away in `relayctl status`")
        call.wait_for_packets(_PACKETS)
        _place_another(site, site.transceivers[-1], "call that began meanwhile")
        back_s = redis.wait_until_back(boot)
        wait_for(lambda: _fleet_state(site) == "connected", site.inventory.boot_s, "Redis connected again")
        call.wait_for_packets(_PACKETS)
        note_measured(f"{redis.name} answered ssh again after {back_s:.0f} s")
        call.hang_up_without_loss("call that was up")


@pytest.mark.vm("two transceiver hosts")
def test_transceiver_host_reset_ends_its_own_calls_alone(site: Site) -> None:
    lost, other = site.transceivers[:2]
    with calling(site, other) as call:
        with calling(site, lost) as ending:
            boot = lost.boot_id()
            lost.reset()
            wait_for(
                lambda: ending.latest()["state"] != "connected", _CONSENT_S, f"end of the call to {lost.name}"
            )
            ended = ending.hang_up()
        _place_another(site, other, "call that began meanwhile")
        back_s = lost.wait_until_back(boot)
        lost.wait_until_running()
        call.wait_for_packets(_PACKETS)
        note_measured(
            f"call to {lost.name} is {ended['state']}, silent for {ended['silent_s']:.0f} s; ssh again after {back_s:.0f} s"
        )
        call.hang_up_without_loss(f"call to {other.name}")
    _place_another(site, lost, f"first call to {lost.name} after its boot")


def test_relay_host_reset_brings_the_service_back(site: Site) -> None:
    relay = site.relay
    boot = relay.boot_id()
    with calling(site):
        relay.reset()
        back_s = relay.wait_until_back(boot)
    began = time.monotonic()
    relay.wait_until_running()
    note_measured(
        f"{relay.name} answered ssh again after {back_s:.0f} s, and served {time.monotonic() - began:.0f} s after that"
    )
    for interface in relay.entry.interfaces:
        assert relay.xdp_link(interface)[0] == site.inventory.xdp_mode
    for to in site.transceivers:
        _place_another(site, to, f"call to {to.name}")


def _fleet_state(site: Site) -> str:
    return str(site.relay.status()["fleet"]["state"])


def _place_another(site: Site, to: TransceiverNode, what: str) -> None:
    """A call of some seconds that loses nothing."""
    with calling(site, to) as call:
        call.wait_for_packets(_PACKETS)
        report = call.hang_up()
    note_measured(f"{what}: {told(report)}")
    check(report, site.inventory.max_loss)
