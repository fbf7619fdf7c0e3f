"""Client, relay and transceiver, each on a host of its own: what the kernel's fast path needs.

The client reaches signaling by way of the relay's host, which routes as any other host would. Redirected frames are taken
by a veth's far end only with GRO on there, or an XDP program; what leaves by the interface that it came by (XDP_TX), only
with a program.
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from host.keystore import load_keys
from relay.dataplane.bpf import links
from relay.dataplane.bpf.links import XdpMode
from tests.bpf.kernel_objects import make_xdp_program
from tests.e2e.carried import Carried, worker_packets
from tests.e2e.crowd import Crowd
from tests.e2e.instance import Instance, running, wait_until
from tests.e2e.namespaces import Host, connect, hosts

_SIGNALING = "10.0.1.7:8080"
_RELAY_CONFIG = """
[fleet]
keys_file = "keys.json"
[relay]
transceiver_networks = ["10.0.1.0/24", "fd00:1::/64", "192.0.2.7/32"]
unknown_per_s = 1000000
unknown_burst = 1000000
"""


@dataclass(frozen=True)
class Plan:
    """Addresses of one family: the VIP and a client's, both ends of the fleet's side."""

    vip: str
    client_ip: str
    fleet_listen: str
    transceiver_ip: str

    @property
    def relay_network(self) -> str:
        """The relay's fleet address alone."""
        host = self.fleet_listen.rpartition(":")[0].strip("[]")
        return f"{host}/{128 if ':' in host else 32}"

    @property
    def transceiver_listen(self) -> str:
        """Any port of the transceiver's address."""
        return f"[{self.transceiver_ip}]:0" if ":" in self.transceiver_ip else f"{self.transceiver_ip}:0"


IPV4 = Plan("203.0.113.10:3478", "203.0.113.2", "10.0.1.5:4000", "10.0.1.7")
IPV6 = Plan("[2001:db8::10]:3478", "2001:db8::2", "[fd00:1::5]:4000", "fd00:1::7")
# Both ends on loopback, to be reached by either of two links.
ROUTED = Plan("203.0.113.10:3478", "203.0.113.2", "192.0.2.5:4000", "192.0.2.7")
PUBLIC = [("203.0.113.2", "203.0.113.10", 24), ("2001:db8::2", "2001:db8::10", 64)]
FLEET = [("10.0.1.5", "10.0.1.7", 24), ("fd00:1::5", "fd00:1::7", 64)]


@dataclass(frozen=True)
class Site:
    """Three hosts, and the relay's interfaces."""

    client: Host
    relay: Host
    transceiver: Host
    interfaces: tuple[str, ...]


def route_by_the_relay(site: Site) -> None:
    """Client and transceiver reach each other's networks by way of the relay's host."""
    site.relay.set_sysctl("ipv4/ip_forward", "1")
    site.client.run_ip("route add 10.0.0.0/16 via 203.0.113.10")
    site.transceiver.run_ip("route add 203.0.113.0/24 via 10.0.1.5")


def let_pass(host: Host, interface: str) -> None:
    """An XDP program there that lets everything pass."""
    program_fd = make_xdp_program("pass")
    try:
        with host:
            links.attach(interface, program_fd, (XdpMode.NATIVE,), set())
    finally:
        os.close(program_fd)


def join_fleet(client: Host, relay: Host, transceiver: Host) -> Site:
    """The rest, where the client's eth0 and the relay's ``public`` are joined already."""
    connect(relay, "fleet", transceiver, "eth0", FLEET)
    for host in (client, transceiver):
        host.set_offload("eth0", "rx-gro", True)
    site = Site(client, relay, transceiver, ("public", "fleet"))
    route_by_the_relay(site)
    return site


@contextlib.contextmanager
def two_armed() -> Iterator[Site]:
    """The client's eth0 leads to the relay's ``public``, the relay's ``fleet`` to the transceiver's eth0."""
    with hosts(3) as (client, relay, transceiver):
        connect(client, "eth0", relay, "public", PUBLIC)
        site = join_fleet(client, relay, transceiver)
        with client:
            yield site


@contextlib.contextmanager
def two_fleet_links() -> Iterator[Site]:
    """As ``two_armed``, and a link from ``second`` to the transceiver's eth1, which packets come back by.

    Packets go by the first one; the second is the way where that has none.
    """
    with two_armed() as site:
        relay, transceiver = site.relay, site.transceiver
        connect(relay, "second", transceiver, "eth1", [("10.0.2.5", "10.0.2.7", 24)])
        transceiver.set_offload("eth1", "rx-gro", True)
        relay.add_address("lo", "192.0.2.5", 32)
        transceiver.add_address("lo", "192.0.2.7", 32)
        relay.run_ip("route add 192.0.2.7 via 10.0.1.7 metric 5")
        relay.run_ip("route add 192.0.2.7 via 10.0.2.7 metric 10")
        transceiver.run_ip("route add 192.0.2.5 via 10.0.2.5")
        yield replace(site, interfaces=(*site.interfaces, "second"))


@contextlib.contextmanager
def one_armed() -> Iterator[Site]:
    """All three on one wire, a bridge on a fourth host; the relay's only interface is eth0."""
    with hosts(4) as (client, relay, transceiver, wire):
        wire.run_ip("link add bridge up type bridge")
        ends = ((client, 0, PUBLIC), (relay, 1, PUBLIC), (relay, 0, FLEET), (transceiver, 1, FLEET))
        for number, host in enumerate((client, relay, transceiver)):
            connect(host, "eth0", wire, f"port{number}", [])
            wire.run_ip(f"link set port{number} master bridge")
        for host, side, subnets in ends:
            for *addresses, prefix_length in subnets:
                host.add_address("eth0", str(addresses[side]), int(prefix_length))
        let_pass(wire, "port1")
        site = Site(client, relay, transceiver, ("eth0",))
        route_by_the_relay(site)
        with client:
            yield site


@contextlib.contextmanager
def relay_of(site: Site, plan: Plan, directory: Path, *arguments: str) -> Iterator[Instance]:
    """A relay on its host; started again in the same directory it takes over."""
    config = directory / "relay.toml"
    config.write_text(_RELAY_CONFIG)
    command = ["--role", "relay", "--config", str(config), "--dataplane", "xdp", "--listen", plan.vip]
    command += ["--fleet-listen", plan.fleet_listen, *arguments]
    for interface in site.interfaces:
        command += ["--interface", interface]
    with contextlib.ExitStack() as stack:
        with site.relay:
            instance = stack.enter_context(running(directory / "relay", *command))
        yield instance


@contextlib.contextmanager
def transceiver_of(site: Site, plan: Plan, directory: Path) -> Iterator[Instance]:
    """Transceivers on their host, with the keys of the relay that was started in the same directory."""
    config = directory / "transceiver.toml"
    config.write_text(
        f'[fleet]\nkeys_file = "keys.json"\nvip = ["{plan.vip}"]\n[transceiver]\n'
        f'listen = "{plan.transceiver_listen}"\nrelay_networks = ["{plan.relay_network}"]\n'
    )
    command = ["--role", "transceivers", "--config", str(config), "--transceivers", "1", "--insecure"]
    with contextlib.ExitStack() as stack:
        with site.transceiver:
            instance = stack.enter_context(running(directory / "transceiver", *command, http=_SIGNALING))
        yield instance


def shown(relay: Instance, name: str) -> list[dict[str, Any]]:
    """A map as an operator sees it, also while there is no supervisor."""
    answer = relay.run("maps", "show", name, "--json", "--limit", "100000")
    assert answer.returncode == 0, answer.stderr
    return list(json.loads(answer.stdout))


def dropped(relay: Instance) -> dict[str, int]:
    """What XDP or a worker refused to forward, and why."""
    return {name: count for name, count in relay.verdicts().items() if name.startswith("drop_") and count}


def kill_all(relay: Instance) -> None:
    """As a crash of supervisor and workers at once; returns when all have ended."""
    processes = [psutil.Process(pid) for pid in relay.pids()]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    relay.process.wait()
    wait_until(
        lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes),
        10,
        "end of supervisor and workers",
    )


def wait_until_in_kernel(relay: Instance, least: int = 25) -> Carried:
    """Until XDP forwards that many packets, both ways, while workers see none."""

    def is_in_kernel() -> Carried | None:
        before = Carried.now(relay)

        def some_have_come() -> Carried | None:
            now = Carried.now(relay)
            news = now.minus(before)
            return now if news["by_workers"] or min(news["up"], news["down"]) >= least else None

        now: Carried = wait_until(some_have_come, 20, "packets")
        return now if now.by_workers == before.by_workers else None

    carried: Carried = wait_until(is_in_kernel, 30, "calls that workers see nothing of")
    return carried


def switch(relay: Instance, state: str) -> None:
    """The fast path, as an operator does."""
    done = relay.run("bpf", "fastpath", state)
    assert done.returncode == 0, done.stderr


def switch_off_and_on(relay: Instance, least: int) -> dict[str, int]:
    """Off until workers have carried that many packets, on until XDP has, and they none; what each carried meanwhile."""
    switch(relay, "off")
    off = Carried.now(relay)
    wait_until(lambda: worker_packets(relay.status()) - off.by_workers >= least, 20, "packets by the workers")
    by_workers = Carried.now(relay).minus(off)
    assert (by_workers["stun"], by_workers["up"], by_workers["down"]) == (0, 0, 0)
    switch(relay, "on")
    on = Carried.now(relay)
    by_xdp = wait_until_in_kernel(relay, least).minus(on)
    assert min(by_xdp["up"], by_xdp["down"]) >= least
    return {"by workers": by_workers["by_workers"], "by XDP": by_xdp["up"] + by_xdp["down"]}


def introduce(sender: Host, receiver: Host, receiver_ip: str) -> None:
    """Neighbours know each other: a host keeps few packets for one that it still asks for."""
    with receiver:
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listening, sending:
        listening.bind((receiver_ip, 0))
        listening.settimeout(10)
        sending.sendto(b"", listening.getsockname())
        listening.recv(1)


@contextlib.contextmanager
def crowd_of(site: Site, plan: Plan, directory: Path, count: int, interval_s: float) -> Iterator[Crowd]:
    """Clients that send numbered packets through the relay that was started in that directory; IPv4."""
    introduce(site.client, site.relay, plan.vip.rpartition(":")[0])
    introduce(site.relay, site.transceiver, plan.transceiver_ip)
    keys = load_keys(directory / "keys.json")
    ends = (site.client, plan.client_ip, site.transceiver, plan.vip, keys)
    crowd = Crowd(*ends, count, interval_s, transceiver_ip=plan.transceiver_ip)
    crowd.start()
    try:
        crowd.wait_until_flowing(30)
        yield crowd
    finally:
        crowd.stop()
