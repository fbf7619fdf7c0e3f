"""From Wi-Fi to mobile: the interface of a Chromium's call goes down, and the call goes on over another one."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, running
from tests.e2e.namespaces import Host, connect
from tests.e2e.survival import only_session
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_HOST = "192.0.2.10"
_WIFI = ("203.0.113.2", "198.51.100.2")
_MOBILE = ("100.64.0.2", "100.64.0.1", 24)
# With a pair on both Chromium moves by itself, after 3 s without an answer. Else the page restarts ICE: when there is a network
# again, or else when Chromium gives up, which takes it 15 s.
_AGAIN_S = 60.0
_ALONE_S = 3.0
_UNDER_WAY = 10


@contextlib.contextmanager
def two_ways(network: Network, state_dir: Path) -> Iterator[Instance]:
    """VIP and signaling are on the host ``there`` and reached by eth0 (Wi-Fi), and by ``mobile`` where that is up.

    What is sent from an address goes by its own interface, as a phone does it.
    """
    here, there = network.here, network.there
    connect(here, "mobile", there, "mobile", [_MOBILE])
    there.add_address("lo", _HOST, 32)
    for table, source in enumerate(_WIFI, 100):
        here.run_ip(f"route add unreachable default table {table}")
        here.run_ip(f"rule add from {source} lookup {table}")
        here.run_ip(f"route add {_HOST} via 203.0.113.10 dev eth0 table {table} metric 1")
    here.run_ip(f"route add {_HOST} via 203.0.113.10 dev eth0 metric 5")
    bring_up_mobile(here)
    arguments = ("--listen", f"{_HOST}:3478", "--insecure")
    with contextlib.ExitStack() as stack:
        with there:
            instance = stack.enter_context(running(state_dir, *arguments, http=f"{_HOST}:8080"))
        yield instance


def bring_up_mobile(here: Host) -> None:
    """With its routes, which a link that goes down takes along."""
    here.run_ip("link set mobile up")
    here.run_ip(f"route add {_HOST} via {_MOBILE[1]} dev mobile metric 10")


def client_ip(instance: Instance) -> str:
    return str(only_session(instance)["client"]).rpartition(":")[0]


@pytest.mark.parametrize("mobile_was_up", [True, False], ids=["both were up", "mobile comes up later"])
def test_chromium_goes_on_over_the_other_interface(
    own_network: Network | None, tmp_path: Path, mobile_was_up: bool
) -> None:
    network = need_network(own_network)
    here = network.here
    with two_ways(network, tmp_path / "s") as instance:
        if not mobile_was_up:
            here.run_ip("link set mobile down")
        # of a PATCH that the change of network interrupts, and that is tried again
        with page_call(instance, tmp_path / "profile", expected="net::ERR_") as call:
            call.wait_for_audio()
            call.wait_for_more(call.counts(), received=50, sent=50, echoes=4)
            before, heard = only_session(instance), call.counts()
            assert client_ip(instance) in _WIFI
            here.run_ip("link set eth0 down")
            down_at = time.monotonic()
            if not mobile_was_up:
                call.page.wait_for_timeout(1000 * _ALONE_S)
                bring_up_mobile(here)
            # a few were under way
            call.wait_for_more(heard, _AGAIN_S, received=_UNDER_WAY + 1)
            again_s = time.monotonic() - down_at
            call.wait_for_more(call.counts(), received=100, sent=100, echoes=4)
            call.page.wait_for_selector('#state[data-state="connected"]')
            call.wait_for_audio()
            after = only_session(instance)
            assert after["state"] == "connected"
            assert client_ip(instance) == _MOBILE[0]
            assert after["session"] == before["session"]
            restarted = after["server_ufrag"] != before["server_ufrag"]
            assert restarted is not mobile_was_up
            print_report(
                f"from Wi-Fi to mobile, {'both were up' if mobile_was_up else f'mobile {_ALONE_S:g} s later'}",
                {
                    "media down again after_s": round(again_s, 2),
                    "longest gap up_ms": after["longest_gap_ms"],
                    "ICE restarted by the page": restarted,
                    "moves": after["moves"],
                },
            )
