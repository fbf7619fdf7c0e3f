"""A supervisor that dies under systemd during a call: it is started again, and takes over."""

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling
from tests.vm.site import Site

pytestmark = pytest.mark.vm

_PACKETS = 250


def test_killed_supervisor_is_started_again_and_takes_over(site: Site) -> None:
    relay, unit = site.relay, site.inventory.service
    with calling(site) as call:
        programs = relay.program_ids()
        pid = int(_property(site, "MainPID"))
        restarts = int(_property(site, "NRestarts"))
        assert relay.status()["pid"] == pid
        relay.host.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", unit, root=True)
        status = relay.wait_until_running(but_pid=pid)
        assert relay.program_ids() == programs
        assert status["relay"]["kernel"]["adopted"] is True
        assert int(_property(site, "NRestarts")) == restarts + 1
        assert int(_property(site, "MainPID")) == status["pid"]
        assert _property(site, "ActiveState") == "active"
        call.wait_for_packets(_PACKETS)
        note_measured(f"pid {pid} to {status['pid']}, XDP program {set(programs.values())} stays")
        call.hang_up_without_loss("call")


def _property(site: Site, name: str) -> str:
    return site.relay.host.run("systemctl", "show", "--value", "-p", name, site.inventory.service).strip()
