"""MTUs: too large for a driver's native XDP, and too small for a packet with its SPP header."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.e2e.carried import Carried
from tests.measured import note_measured
from tests.vm.calls import calling
from tests.vm.site import RelayNode, Site, wait_for

pytestmark = pytest.mark.vm

_JUMBO = 9000
_SMALL = 1000
# Of a data channel, in IP packets of the client of some 1,100 bytes, which are 38 longer with SPP.
_MESSAGE_BYTES = 1000
_PACKETS = 250
_MESSAGES = 25


@contextlib.contextmanager
def _mtu(relay: RelayNode, interface: str, mtu: int) -> Iterator[str]:
    """For the length of the block; yields what the kernel said, empty where it took it."""
    [link] = relay.host.ask("ip", "-j", "link", "show", "dev", interface)
    done = relay.host.try_run("ip", "link", "set", interface, "mtu", str(mtu), root=True)
    try:
        yield done.stderr.strip() if done.returncode else ""
    finally:
        if done.returncode == 0:
            relay.host.run("ip", "link", "set", interface, "mtu", str(link["mtu"]), root=True)


def test_mtu_that_is_too_large_for_native_xdp(site: Site) -> None:
    """While a program is attached, and for one that is to be: the relay is stopped for this."""
    relay, interface, unit = site.relay, site.relay.entry.public_interface, site.inventory.service
    before = relay.xdp_link(interface)
    with _mtu(relay, interface, _JUMBO) as refused:
        assert relay.xdp_link(interface) == before
    note_measured(f"mtu {_JUMBO} with a program on {interface}: {refused or 'taken'}")
    relay.host.run("systemctl", "stop", unit, root=True)
    try:
        with _mtu(relay, interface, _JUMBO) as refused:
            if refused:
                note_measured(f"mtu {_JUMBO} without a program: {refused}")
                return
            native = _load(relay, interface, "native")
            auto = _load(relay, interface, "auto")
        note_measured(f"at mtu {_JUMBO}, xdp_mode native: {native}")
        note_measured(f"at mtu {_JUMBO}, xdp_mode auto: {auto}")
        if f"native XDP on {interface}" in native:
            assert f"native XDP on {interface}" in auto
        else:
            assert f"{interface}: native XDP is refused (" in native
            assert f"generic XDP on {interface} (native XDP is refused (" in auto
    finally:
        relay.host.run("systemctl", "start", unit, root=True)


def _load(relay: RelayNode, interface: str, mode: str) -> str:
    """What ``relayctl bpf load`` says, in a state directory of its own; nothing stays."""
    script = f"""
        d=$(mktemp -d); trap 'rm -rf $d' EXIT
        printf '[relay]\\nxdp_mode = "{mode}"\\n' >$d/relay.toml
        relayctl bpf load --config $d/relay.toml --interface {interface} --state-dir $d/state && relayctl bpf unload --state-dir $d/state
    """
    done = relay.host.try_run("bash", "-c", script, root=True)
    return " ".join((done.stdout + done.stderr).split())


def test_packets_that_are_too_long_for_the_way_go_by_the_workers(site: Site) -> None:
    """Voice fits and stays in XDP; long messages of a data channel do not, and nothing is lost of either."""
    relay, patience_s = site.relay, site.inventory.command_s
    with calling(site, message_bytes=_MESSAGE_BYTES) as call:
        wait_for(lambda: _workers_rest(site), patience_s, "a call that workers see nothing of")
        with _route_of_small_mtu(site):
            wait_for(lambda: _mtu_of_way(site) == _SMALL, patience_s, "the way's new MTU")
            before, answered = Carried.now(relay), call.latest()["messages"]["answered"]
            call.wait_for_packets(_PACKETS)
            enough = answered + _MESSAGES
            wait_for(
                lambda: call.latest()["messages"]["answered"] >= enough, patience_s, "messages that came back"
            )
            carried = Carried.now(relay).minus(before)
        wait_for(lambda: _workers_rest(site), patience_s, "a call that workers see nothing of again")
        note_measured(
            f"mtu {_SMALL}: {carried['by_workers']} by workers; by XDP {carried['up']} up, {carried['down']} down"
        )
        report = call.hang_up_without_loss("call")
    assert carried["by_workers"] >= _MESSAGES
    assert carried["up"] >= 0.9 * _PACKETS
    messages = report["messages"]
    assert messages["sent"] - messages["answered"] <= 5, "all but those on their way at the end"


@contextlib.contextmanager
def _route_of_small_mtu(site: Site) -> Iterator[None]:
    """To the first transceivers' host. A route, as changing an interface's MTU makes many drivers lose packets."""
    relay, address = site.relay, site.transceivers[0].entry.address
    interface = relay.entry.fleet_interface
    bits = 128 if ":" in address else 32
    [found] = relay.host.ask("ip", "-j", "route", "get", address)
    by_way_of = ["via", found["gateway"]] if "gateway" in found else []
    route = [f"{address}/{bits}", *by_way_of, "dev", interface, "mtu", "lock", str(_SMALL)]
    relay.host.run("ip", "route", "add", *route, root=True)
    try:
        yield
    finally:
        relay.host.run("ip", "route", "del", *route[:1], "dev", interface, root=True)


def _workers_rest(site: Site) -> bool:
    """Whether XDP alone carries what comes between two looks."""
    before = Carried.now(site.relay)
    news = Carried.now(site.relay).minus(before)
    return not news["by_workers"] and min(news["up"], news["down"]) > 0


def _mtu_of_way(site: Site) -> int:
    hops = site.relay.relayctl_json("maps", "show", "next_hops")
    return next(
        (int(hop["mtu"]) for hop in hops if hop["transceiver_host"] == site.transceivers[0].entry.address), 0
    )
