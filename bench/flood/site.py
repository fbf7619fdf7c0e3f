"""Where floods are measured: a relay in userspace mode with one worker, calls through it, and who attacks it."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.flood.attacks import ATTACKER_NETWORK, ATTACKERS, PORTS, Attack, make_checks
from bench.flood.bystanders import AttackedTransceiver, Newcomers
from bench.flood.calls import CallsJob
from bench.flood.generator import Flood
from bench.flood.running_calls import RunningCalls, running_calls
from bench.frames import FIRST_CLIENT
from bench.peers.process import running, take_redirected
from bench.peers.relayctl import RELAYCTL
from bench.topology import CLIENT_HOST, ETH, PUBLIC, RELAY_FLEET, TRANSCEIVER, VIP, Host, Topology, topology
from cli.admin import ask
from host.keystore import load_keys
from host.state_dir import StateDir
from wire.address import Address
from wire.keys import KeyRing

CALLS, CALLS_PACKETS_PER_S = 200, 50.0
# Where clients live that come during a flood, none of them beside a call.
_FIRST_NEWCOMER, _NEWCOMER_PORT = FIRST_CLIENT + 65_536, 30_000
_CALL_ADDRESSES = 20
# What else this machine does must not take the worker's core.
_WORKER_NICENESS = -20
# An Opus mix, as in bench/stage.py.
_SIZES = (40, 80, 110, 160, 60, 95, 128, 240)
_TRANSCEIVERS = [Address(TRANSCEIVER.host, port) for port in range(5000, 5004)]
_ATTACKED = Address(TRANSCEIVER.host, 5900)
_CONFIG = """
[relay]
transceiver_networks = ["198.51.100.0/24"]
"""


@dataclass(frozen=True)
class FloodedRelay:
    """relayctl, and what can be seen of it from outside."""

    host: Host
    state_dir: StateDir

    def status(self) -> dict[str, Any]:
        """The relay's part of ``relayctl status``."""
        status: dict[str, Any] = ask(self.state_dir, "status")["relay"]
        return status

    def counters(self) -> dict[str, int]:
        """Verdicts and events together; their names differ."""
        status = self.status()
        return {**status["verdicts"], **status["events"]}

    def provisional_flows(self) -> int:
        """As the worker last told, four times a second."""
        status = self.status()
        return int(status["flows"] - status["assured_flows"])

    def worker(self) -> psutil.Process:
        """The one that there is."""
        (worker,) = self.status()["workers"]
        return psutil.Process(worker["pid"])

    def socket_drops(self) -> dict[str, int]:
        """Datagrams that found no room in sockets, by their side."""
        with self.host:
            table = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
        drops = {VIP.port: 0, RELAY_FLEET.port: 0}
        for cells in map(str.split, table):
            port = int(cells[1].rpartition(":")[2], 16)
            if port in drops:
                drops[port] += int(cells[-1])
        return {"public": drops[VIP.port], "fleet": drops[RELAY_FLEET.port]}


@dataclass(frozen=True)
class FloodSite:
    """Everybody who is there; ``core``: the one of all but the worker."""

    hosts: Topology
    relay: FloodedRelay
    keys: KeyRing
    calls: RunningCalls
    attacked: AttackedTransceiver
    directory: Path
    core: int

    def flood(self, attack: Attack, *, rate: int, seconds: float) -> Flood:
        """With new payloads, as a ufrag may be one flood's only."""
        payloads = self.directory / "payloads"
        made = attack.make_payloads(self.keys, _ATTACKED)
        payloads.write_text("\n".join(payload.hex() for payload in made))
        return Flood(
            interface=ETH,
            source=ATTACKERS,
            destination=VIP,
            source_mac=self.hosts.client.mac(ETH),
            destination_mac=self.hosts.relay.mac(PUBLIC),
            rate=attack.rate or rate,
            seconds=seconds,
            payloads_file=payloads,
            sources=attack.sources,
            ports=PORTS,
            core=self.core,
        )

    def newcomers(self, count: int, interval_s: float) -> Newcomers:
        """So many clients of new sessions on a transceiver of the calls, from new addresses."""
        first = _FIRST_NEWCOMER + time.monotonic_ns() // 1_000_000 % 65_000
        clients = [Address((first + i).to_bytes(4, "big"), _NEWCOMER_PORT) for i in range(count)]
        checks = [make_checks(self.keys, _TRANSCEIVERS[0], 1)[0] for _ in clients]
        return Newcomers(self.hosts.client, VIP, dict(zip(clients, checks, strict=True)), interval_s)


@contextlib.contextmanager
def flood_site() -> Iterator[FloodSite]:
    """The relay as an operator starts it, with the bounds that it has by itself. Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(topology())
        _lead_attackers(hosts)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relaybench-")))
        relay = stack.enter_context(_relay(hosts, directory))
        worker = relay.worker()
        worker.cpu_affinity([cores[0]])
        worker.nice(_WORKER_NICENESS)
        os.sched_setaffinity(0, {cores[-1]})
        stack.callback(os.sched_setaffinity, 0, set(cores))
        attacked = stack.enter_context(AttackedTransceiver(hosts.transceiver, _ATTACKED))
        job = CallsJob(
            client_namespace=hosts.client.name,
            transceiver_namespace=hosts.transceiver.name,
            vip=str(VIP),
            client_ips=tuple(
                str(Address((FIRST_CLIENT + i).to_bytes(4, "big"), 0).ip) for i in range(_CALL_ADDRESSES)
            ),
            transceivers=tuple(map(str, _TRANSCEIVERS)),
            keys_file=str(relay.state_dir.keys_file),
            flows=CALLS,
            packets_per_s=CALLS_PACKETS_PER_S,
            sizes=_SIZES,
            core=cores[-1],
        )
        calls = stack.enter_context(running_calls(job))
        keys = load_keys(relay.state_dir.keys_file)
        yield FloodSite(hosts, relay, keys, calls, attacked, directory, cores[-1])


def _lead_attackers(hosts: Topology) -> None:
    """Their addresses are behind the client's host, which drops what comes back for them."""
    take_redirected(hosts)
    public = hosts.relay.index(PUBLIC)
    hosts.relay.ip.route("add", dst=ATTACKER_NETWORK, gateway=str(CLIENT_HOST.ip), oif=public)
    hosts.client.write_sysctl("net/ipv4/ip_forward", "0")


@contextlib.contextmanager
def _relay(hosts: Topology, directory: Path) -> Iterator[FloodedRelay]:
    config, state_dir = directory / "relayctl.toml", directory / "state"
    config.write_text(_CONFIG)
    state_dir.mkdir()
    command = [str(RELAYCTL), "start", "--role", "relay", "--state-dir", str(state_dir)]
    command += ["--config", str(config), "--workers", "1", "--dataplane", "userspace"]
    command += ["--listen", str(VIP), "--fleet-listen", str(RELAY_FLEET)]
    with running(hosts.relay, command, directory / "log", lambda said: "Ctrl-C stops" in said):
        yield FloodedRelay(hosts.relay, StateDir(state_dir))
