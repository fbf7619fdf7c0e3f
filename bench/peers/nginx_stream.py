"""nginx as a UDP proxy: a socket of its own towards the transceiver for each client; nothing tells who the client is."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError, PeerUnavailableError
from bench.frames import Leg
from bench.peers.base import Relay
from bench.peers.process import is_bound, need, running, take_redirected
from bench.rig import Load, Rig, Way, processes
from bench.sink import Mode
from bench.topology import RELAY_FLEET, TRANSCEIVER, VIP, Topology

_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_MAX_FLOWS = 20_000  # local ports


@contextlib.contextmanager
def nginx_stream(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """One worker process."""
    nginx = need("nginx", "nginx libnginx-mod-stream")
    if not _MODULE.exists():
        raise PeerUnavailableError("nginx has no stream module (apt-get install libnginx-mod-stream)")
    if flows > _MAX_FLOWS:
        raise PeerUnavailableError(f"{flows} flows are more than one address has ports for")
    take_redirected(topology)
    with tempfile.TemporaryDirectory(prefix="relaybench-") as directory:
        config = Path(directory, "nginx.conf")
        config.write_text(_config(directory, flows))
        command = [nginx, "-p", directory, "-c", str(config)]
        with running(
            topology.relay, command, Path(directory, "log"), lambda _: is_bound(topology.relay, VIP.port)
        ) as process:
            up = Way(
                is_up=True,
                sends=Leg(source=None, destination=VIP),
                arrives=Leg(source=RELAY_FLEET, destination=TRANSCEIVER),
            )
            load = Load(payloads=(100,), flows=flows, seconds=0.2, pids=(process.pid,))
            rig.prime(topology, up, load, Mode.LEARN_PORTS)
            ports = rig.sink.learned_ports(flows)
            if len(ports) < flows or not all(ports):
                raise BenchError(f"nginx opened {sum(map(bool, ports))} of {flows} ports")
            down = Way(
                is_up=False,
                sends=Leg(source=TRANSCEIVER, destination=RELAY_FLEET, ports=ports),
                arrives=Leg(source=VIP, destination=None),
            )
            yield Relay(up=up, down=down, pids=processes(process.pid))


def _config(directory: str, flows: int) -> str:
    return f"""
load_module {_MODULE};
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {directory}/pid;
error_log {directory}/error.log crit;
events {{ worker_connections {4 * flows + 1024}; }}
stream {{
    server {{
        listen {VIP} udp;
        proxy_pass {TRANSCEIVER};
        proxy_bind {RELAY_FLEET.ip};
        proxy_timeout 1h;
    }}
}}
"""
