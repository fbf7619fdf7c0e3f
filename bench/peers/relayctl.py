"""This relay, as ``relayctl start`` runs it with one worker: in XDP (its flows are written into its map), and in userspace
(its flows are made by their clients)."""

import contextlib
import ctypes
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.frames import FIRST_CLIENT, FIRST_PORT, FLOWS_A_CLIENT, flow_client
from bench.peers.base import Relay, spp_ways
from bench.peers.process import running, take_redirected
from bench.results import Memory
from bench.rig import Rig, processes
from bench.topology import FLEET, PUBLIC, RELAY_FLEET, TRANSCEIVERS, VIP, Topology
from host.keystore import load_keys
from host.state_dir import StateDir
from relay.dataplane.bpf.abi import FlowC, FlowKeyC
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import RelayPrograms
from relay.dataplane.bpf.syscall import update_batch
from wire.address import Address
from wire.keys import KeyRing
from wire.spp import encode_header
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

RELAYCTL = Path(sys.executable).with_name("relayctl")
_CONFIG = """
[relay]
transceiver_networks = ["198.51.100.0/24"]
# all clients of the measurement are unknown at first, and come at once
unknown_per_s = 1000000
unknown_burst = 1000000
max_assured_flows = {max_flows}
max_provisional_flows = 131072
"""
_MEDIA = b"\x80\x6f" + bytes(98)
_BATCH = 65_536
_KNOWN_S = 15.0


@dataclass(frozen=True)
class Running:
    """A relayctl with its state directory."""

    pids: list[int]
    state_dir: Path
    keys: KeyRing


@contextlib.contextmanager
def start(topology: Topology, flows: int, *arguments: str) -> Iterator[Running]:
    """``relayctl start --role relay`` in the relay's namespace."""
    with tempfile.TemporaryDirectory(prefix="relaybench-") as directory:
        state_dir, config = Path(directory, "state"), Path(directory, "relayctl.toml")
        state_dir.mkdir()
        config.write_text(_CONFIG.format(max_flows=max(100_000, flows + flows // 4)))
        command = [str(RELAYCTL), "start", "--role", "relay", "--state-dir", str(state_dir)]
        command += ["--config", str(config), "--workers", "1", "--listen", str(VIP)]
        command += ["--fleet-listen", str(RELAY_FLEET), *arguments]
        log = Path(directory, "log")
        with running(topology.relay, command, log, lambda said: "Ctrl-C stops" in said) as process:
            keys = load_keys(StateDir(state_dir).keys_file)
            yield Running(processes(process.pid), state_dir, keys)


@contextlib.contextmanager
def xdp(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Assured flows are forwarded by XDP; the worker makes a flow of each transceiver, for the relay to find their hosts."""
    interfaces = ("--interface", PUBLIC, "--interface", FLEET)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(start(topology, flows, "--dataplane", "xdp", *interfaces))
        programs = PinDir(relay.state_dir).open()
        stack.callback(programs.close)
        hosts = len(TRANSCEIVERS)
        with Clients(topology, relay.keys, hosts) as clients:
            clients.make_flows()
        _wait_for(lambda: _count(programs, "next_hops") == hosts, "way to each transceiver's host")
        _wait_for(lambda: _count(programs, "flows") == hosts, "assured flow of each transceiver")
        fill_flows(programs, flows)
        up, down = spp_ways()
        yield Relay(up=up, down=down, learns_up=True, workers=relay.pids, keys=relay.keys)


@contextlib.contextmanager
def userspace(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Every packet goes through a Python worker."""
    take_redirected(topology)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(start(topology, flows, "--dataplane", "userspace"))
        with Clients(topology, relay.keys, flows) as clients:
            clients.make_flows()
        up, down = spp_ways()
        yield Relay(up=up, down=down, pids=relay.pids, learns_up=True, workers=relay.pids, keys=relay.keys)


def transceiver_of(flow: int) -> Address:
    """The one that a flow belongs to."""
    return TRANSCEIVERS[flow % len(TRANSCEIVERS)]


def sealed_check(keys: KeyRing, flow: int, transaction: bytes) -> bytes:
    """A Binding request of that flow's client that this relay admits."""
    issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
    ufrag = seal_ufrag(keys, RouteHint(1, transceiver_of(flow), issued_at, os.urandom(5)))
    return write_binding_request(transaction, f"{ufrag}:abcd", derive_ice_pwd(keys, ufrag).encode())


class Clients:
    """Sockets of the first clients, and one of each transceiver: they make flows as calls do."""

    def __init__(self, topology: Topology, keys: KeyRing, flows: int) -> None:
        self._keys = keys
        with topology.transceiver:
            self._transceivers = [_bound(str(one.ip), one.port) for one in TRANSCEIVERS]
        with topology.client:
            clients = map(flow_client, range(flows))
            self._sockets = [_bound(str(client.ip), client.port) for client in clients]

    def __enter__(self) -> "Clients":
        return self

    def make_flows(self) -> None:
        """A check, then media both ways, which makes a flow assured."""
        vip, fleet = (str(VIP.ip), VIP.port), (str(RELAY_FLEET.ip), RELAY_FLEET.port)
        for flow, sock in enumerate(self._sockets):
            transceiver = self._transceivers[flow % len(self._transceivers)]
            sock.sendto(sealed_check(self._keys, flow, os.urandom(12)), vip)
            transceiver.recv(2048)
            sock.sendto(_MEDIA, vip)
            transceiver.recv(2048)
            transceiver.sendto(encode_header(flow_client(flow), VIP) + _MEDIA, fleet)
            sock.recv(2048)

    def __exit__(self, *exc_info: object) -> None:
        for sock in (*self._transceivers, *self._sockets):
            sock.close()


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((host, port))
    return sock


def fill_flows(programs: RelayPrograms, flows: int) -> None:
    """Write flows into the relay's map as it wrote one, but for their clients and transceivers."""
    flows_map = programs.maps["flows"]
    key, value = next(iter(flows_map.items()))
    for first in range(0, flows, _BATCH):
        keys, values = flow_records(key, value, first, min(_BATCH, flows - first))
        count = len(keys)
        update_batch(
            flows_map.fd,
            (FlowKeyC * count).from_buffer(keys.data),
            (FlowC * count).from_buffer(values.data),
            count,
        )


def flow_records(
    key: FlowKeyC, value: FlowC, first: int, count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Keys and values of the map for so many flows from the first on."""
    numbers = np.arange(first, first + count)
    keys = np.frombuffer(bytes(key) * count, np.dtype(FlowKeyC)).copy()
    values = np.frombuffer(bytes(value) * count, np.dtype(FlowC)).copy()
    hosts = (FIRST_CLIENT + numbers // FLOWS_A_CLIENT).astype(">u4").view(np.uint8)
    keys["client_host"][:, 12:] = hosts.reshape(-1, 4)
    keys["client_port"] = FIRST_PORT + numbers % FLOWS_A_CLIENT
    turns = numbers % len(TRANSCEIVERS)
    values["transceiver"]["host"] = np.array([list(one.mapped) for one in TRANSCEIVERS], np.uint8)[turns]
    return keys, values


def _count(programs: RelayPrograms, name: str) -> int:
    """Entries of a map."""
    return sum(1 for _ in programs.maps[name].items())


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _KNOWN_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"the relay has no {what} for XDP")
        time.sleep(0.1)


def assured_flows_memory(topology: Topology, flows: int) -> Memory:
    """Of the map in a relay with room for that many flows."""
    interfaces = ("--interface", PUBLIC, "--interface", FLEET)
    with start(topology, flows, "--dataplane", "xdp", *interfaces) as relay:
        programs = PinDir(relay.state_dir).open()
        try:
            flows_map = programs.maps["flows"]
            return Memory(
                map_bytes=_memlock(flows_map.fd),
                max_flows=flows_map.max_entries,
                record_bytes=ctypes.sizeof(FlowKeyC) + ctypes.sizeof(FlowC),
            )
        finally:
            programs.close()


def _memlock(fd: int) -> int:
    """Bytes that the kernel has set aside for a map."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise BenchError("the kernel does not tell the memory of a map")
