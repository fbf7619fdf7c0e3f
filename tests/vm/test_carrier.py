"""The relay's network cards lose their carrier for three seconds in a call, and the call goes on."""

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling, told
from tests.vm.site import RelayNode, Site, wait_for

pytestmark = pytest.mark.vm

_AWAY_S = 3.0
_PACKETS = 250
# What is away for longer ends a call (RFC 7675): here the carrier, what the hosts need to see it, and neighbours.
_LONGEST_GAP_S = 25.0


@pytest.mark.parametrize("side", ["fleet", "public"])
def test_call_outlives_a_carrier_that_is_gone_for_three_seconds(site: Site, side: str) -> None:
    relay = site.relay
    interface = relay.entry.fleet_interface if side == "fleet" else relay.entry.public_interface
    host = site.transceivers[0].entry.address
    with calling(site) as call:
        wait_for(lambda: relay.way_to(host), site.inventory.command_s, f"a way to {host}")
        call.wait_for_packets(_PACKETS)
        since = relay.now()
        with _without_carrier(site, interface):
            time.sleep(_AWAY_S)
            seen = _carrier(relay, interface)
        assert seen == "0", "the interface had its carrier all the time"
        call.wait_for_packets(_PACKETS)
        wait_for(
            lambda: relay.way_to(host) == relay.entry.fleet_interface,
            site.inventory.command_s,
            f"the way to {host}",
        )
        if side == "fleet":
            assert f"{host}: by way of the workers: " in relay.journal(since)
        call.wait_for_packets(_PACKETS)
        report = call.hang_up()
    what = f"{interface} without carrier for {_AWAY_S:g} s"
    note_measured(f"{what}: {told(report)}")
    call.note_losses(what)
    assert report["state"] == "connected"
    assert report["silent_s"] < 5
    assert _AWAY_S - 1 < report["longest_gap_s"] < _LONGEST_GAP_S


def _carrier(relay: RelayNode, interface: str) -> str:
    """1 or 0; the file cannot be read while the interface is down."""
    done = relay.host.try_run("cat", f"/sys/class/net/{interface}/carrier")
    return done.stdout.strip() if done.returncode == 0 else "0"


@contextlib.contextmanager
def _without_carrier(site: Site, interface: str) -> Iterator[None]:
    carrier, relay = site.inventory.carrier, site.relay
    if carrier is None:
        with _down(relay, interface):
            yield
        return
    values = {"machine": relay.entry.machine, "interface": interface, "mac": relay.mac(interface)}
    _run_here(carrier.off, values)
    try:
        yield
    finally:
        _run_here(carrier.on, values)


def _run_here(template: str, values: dict[str, str]) -> None:
    command = [word.format(**values) for word in shlex.split(template)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (
        f"`{shlex.join(command)}` exited with {done.returncode}: {done.stderr or done.stdout}"
    )


@contextlib.contextmanager
def _down(relay: RelayNode, interface: str) -> Iterator[None]:
    """The host's own way; its IPv6 addresses are to stay, and routes that the kernel drops are set again."""
    keep = f"net.ipv6.conf.{interface}.keep_addr_on_down"
    kept = relay.host.run("sysctl", "-n", keep).strip()
    routes = {family: _routes(relay, family, interface) for family in ("-4", "-6")}
    relay.host.run("sysctl", "-w", f"{keep}=1", root=True)
    relay.host.run("ip", "link", "set", interface, "down", root=True)
    try:
        yield
    finally:
        relay.host.run("ip", "link", "set", interface, "up", root=True)
        relay.host.run("sysctl", "-w", f"{keep}={kept}", root=True)
        wait_for(lambda: _carrier(relay, interface) == "1", 60, f"carrier of {interface}")
        for family, lines in routes.items():
            for line in set(lines) - set(_routes(relay, family, interface)):
                relay.host.run("ip", family, "route", "replace", *line.split(), "dev", interface, root=True)


def _routes(relay: RelayNode, family: str, interface: str) -> list[str]:
    """Those that the kernel did not make by itself."""
    listed = relay.host.run("ip", family, "route", "show", "dev", interface)
    return [
        line.replace(" linkdown", "").strip() for line in listed.splitlines() if "proto kernel" not in line
    ]
