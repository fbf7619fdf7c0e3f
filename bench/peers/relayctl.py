"""This relay, as ``relayctl start`` runs it with one worker: in XDP (its flows are written into its map), and in userspace
(its flows are made by their clients)."""

import contextlib
import ctypes
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from bench.errors import BenchError
from bench.frames import FIRST_CLIENT, FIRST_PORT, FLOWS_A_CLIENT
from bench.peers.base import Relay, spp_ways
from bench.peers.flow_maker import make_flows
from bench.peers.process import running, take_redirected
from bench.results import USERSPACE, Memory, WorkerMemory
from bench.rig import Rig, processes
from bench.topology import FLEET, PUBLIC, RELAY_FLEET, TRANSCEIVERS, VIP, Topology
from cli.admin import ask
from host.errors import OperatorError
from host.keystore import load_keys
from host.state_dir import StateDir
from relay.dataplane.bpf.abi import FlowC, FlowKeyC
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import RelayPrograms
from relay.dataplane.bpf.syscall import update_batch
from wire.keys import KeyRing

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
_BATCH = 65_536
_KNOWN_S = 15.0


@dataclass(frozen=True)
class Running:
    """A relayctl with its state directory."""

    pids: list[int]
    state_dir: Path
    keys: KeyRing

    def worker(self) -> dict[str, Any]:
        """The only one, as ``relayctl status --json`` tells of it. Raises BenchError."""
        try:
            (worker,) = ask(StateDir(self.state_dir), "status")["relay"]["workers"]
        except OperatorError as error:
            raise BenchError(str(error)) from None
        return dict(worker)


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
        ways = spp_ways()
        make_flows(rig, topology, relay.keys, ways, hosts)
        _wait_for(lambda: _count(programs, "next_hops") == hosts, "way to each transceiver's host")
        _wait_for(lambda: _count(programs, "flows") == hosts, "assured flow of each transceiver")
        fill_flows(programs, flows)
        up, down = ways
        yield Relay(up=up, down=down, learns_up=True, workers=relay.pids, keys=relay.keys)


@contextlib.contextmanager
def userspace(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Every packet goes through a Python worker."""
    take_redirected(topology)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(start(topology, flows, "--dataplane", "userspace"))
        ways, worker = spp_ways(), relay.worker()["pid"]

        def assured() -> int:
            now = relay.worker()
            if now["pid"] != worker:
                raise BenchError("the supervisor has started the worker anew, as it did not answer")
            return int(now["assured_flows"])

        def check() -> None:
            if (found := assured()) != flows:
                raise BenchError(f"of {flows} flows that were made the worker has {found}")

        rig.place(relay.pids, rig.core, rig.harness_core)
        empty_bytes = _own_bytes(worker)
        make_flows(rig, topology, relay.keys, ways, flows)
        _wait_for(lambda: assured() == flows, f"{flows} assured flows")
        memory = WorkerMemory(
            name=USERSPACE, flows=flows, empty_bytes=empty_bytes, full_bytes=_own_bytes(worker)
        )
        up, down = ways
        yield Relay(
            up=up,
            down=down,
            pids=relay.pids,
            refresh=check,
            learns_up=True,
            workers=[worker],
            keys=relay.keys,
            memory=memory,
        )


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


def _own_bytes(pid: int) -> int:
    """Memory of a process that no other shares."""
    return int(psutil.Process(pid).memory_full_info().uss)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _KNOWN_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"the relay has no {what}")
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
