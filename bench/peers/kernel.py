"""What the kernel forwards by itself: a routed hop, and nftables DNAT from the VIP to the transceiver."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.errors import PeerUnavailableError
from bench.frames import Leg
from bench.peers.base import Relay
from bench.peers.process import need, take_redirected
from bench.rig import Rig, Way
from bench.topology import TRANSCEIVER, VIP, Topology

_MAX_CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_BUCKETS = Path("/sys/module/nf_conntrack/parameters/hashsize")
_TIMEOUTS = ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream")
_RULES = f"""
table ip relaybench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {VIP.ip} udp dport {VIP.port} dnat to {TRANSCEIVER.ip}:{TRANSCEIVER.port}
    }}
}}
"""


@contextlib.contextmanager
def kernel_route(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Clients send to the transceiver itself; the relay's host routes."""
    take_redirected(topology)
    up = Leg(source=None, destination=TRANSCEIVER)
    down = Leg(source=TRANSCEIVER, destination=None)
    yield Relay(up=Way(is_up=True, sends=up, arrives=up), down=Way(is_up=False, sends=down, arrives=down))


@contextlib.contextmanager
def nft_dnat(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Connection tracking knows each flow; nothing tells the transceiver which VIP its client sent to."""
    nft = need("nft", "nftables")
    take_redirected(topology)
    with topology.relay:
        done = subprocess.run([nft, "-f", "-"], input=_RULES, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerUnavailableError(f"nft: {done.stderr.strip()}")
    for name in _TIMEOUTS:
        topology.relay.write_sysctl(f"net/netfilter/{name}", "600")
    with _room_for(flows):
        yield Relay(
            up=Way(
                is_up=True,
                sends=Leg(source=None, destination=VIP),
                arrives=Leg(source=None, destination=TRANSCEIVER),
            ),
            down=Way(
                is_up=False,
                sends=Leg(source=TRANSCEIVER, destination=None),
                arrives=Leg(source=VIP, destination=None),
            ),
            learns_up=True,
        )


@contextlib.contextmanager
def _room_for(flows: int) -> Iterator[None]:
    """The whole machine's table of connections, large enough, and as before afterwards."""
    before = {path: path.read_text() for path in (_MAX_CONNTRACK, _BUCKETS)}
    try:
        for path, wanted in ((_MAX_CONNTRACK, 3 * flows), (_BUCKETS, flows)):
            if int(before[path]) < wanted:
                path.write_text(str(wanted))
    except OSError as error:
        raise PeerUnavailableError(f"connection tracking cannot be made larger: {error}") from None
    try:
        yield
    finally:
        for path, value in before.items():
            path.write_text(value)
