"""A new version is installed on the relay's host and takes over during a call, and the old one after it."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling
from tests.vm.site import Site, wait_for

pytestmark = pytest.mark.vm

_NEXT = "0.1.1.dev0"
_PACKETS = 250
# pip, a wheel and its files: minutes where the machine is emulated.
_INSTALL_S = 1200.0
# Where a host is provisioned without a network, this file says where pip finds packages.
_INSTALL = "set -a; [ ! -e /etc/relayctl-provision.env ] || . /etc/relayctl-provision.env; set +a; make -C {} install"


def test_upgrade_in_a_call_and_back(site: Site) -> None:
    old = site.version
    assert old != _NEXT
    with _next_tree(site) as tree, calling(site) as call:
        programs = site.relay.program_ids()
        try:
            took_s = [_go_over(site, tree, _NEXT)]
            call.wait_for_packets(_PACKETS)
        finally:
            took_s.append(_go_over(site, site.inventory.source, old))
        call.wait_for_packets(_PACKETS)
        assert site.relay.program_ids() == programs
        note_measured(f"{old} to {_NEXT} to {old}, reloads of {took_s[0]:.1f} and {took_s[1]:.1f} s")
        call.hang_up_without_loss("call")


@contextlib.contextmanager
def _next_tree(site: Site) -> Iterator[str]:
    """A copy of the source tree on the relay's host, whose only change is its version."""
    run = site.relay.host.run
    tree = run("mktemp", "-d", "/tmp/relayctl-next-XXXXXX", root=True).strip()
    try:
        run("cp", "-rT", "--no-preserve=ownership", site.inventory.source, tree, root=True)
        change = f's/^version = .*/version = "{_NEXT}"/'
        run("sed", "-i", change, f"{tree}/pyproject.toml", root=True)
        yield tree
    finally:
        run("rm", "-rf", tree, root=True)


def _go_over(site: Site, tree: str, version: str) -> float:
    """Install what is in ``tree`` and have the service take it; how long the second took, in seconds."""
    relay = site.relay
    relay.host.run("bash", "-c", _INSTALL.format(tree), root=True, timeout_s=_INSTALL_S)
    began = time.monotonic()
    relay.host.run("systemctl", "reload", site.inventory.service, root=True)
    took_s = time.monotonic() - began

    def is_new() -> bool:
        status = relay.try_status()
        return status is not None and (status["version"], status["state"]) == (version, "running")

    wait_for(is_new, site.inventory.command_s, f"relayctl {version} on {relay.name}")
    return took_s
