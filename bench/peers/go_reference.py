"""The published design in Go (``go_relay.go``): a socket, a map, a goroutine each way, one packet a system call."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import PeerUnavailableError
from bench.peers.base import Relay, spp_ways
from bench.peers.process import is_bound, need, running, take_redirected
from bench.rig import Rig, processes
from bench.topology import RELAY_FLEET, TRANSCEIVERS, VIP, Topology

_SOURCE = Path(__file__).with_name("go_relay.go")
_LIFE_S = 7200  # it ends by itself, if nobody ends it


@contextlib.contextmanager
def go_reference(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """One worker, built here."""
    go = need("go", "golang-go")
    take_redirected(topology)
    with tempfile.TemporaryDirectory(prefix="relaybench-") as directory:
        program = Path(directory, "go-relay")
        environment = {**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0", "GOPROXY": "off"}
        built = subprocess.run(
            [go, "build", "-o", str(program), str(_SOURCE)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if built.returncode:
            raise PeerUnavailableError(f"go build: {built.stderr.strip()[-300:]}")
        command = [str(program), "-w=1", f"-t={_LIFE_S}"]
        command += [f"-pub={VIP}", f"-up={RELAY_FLEET}", f"-trx={','.join(map(str, TRANSCEIVERS))}"]
        with running(
            topology.relay, command, Path(directory, "log"), lambda _: is_bound(topology.relay, VIP.port)
        ) as process:
            pids = processes(process.pid)
            up, down = spp_ways()
            yield Relay(up=up, down=down, pids=pids, workers=pids)
