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
    """The whole machine's table of connections, twice as large as needed, and as before afterwards."""
    try:
        before = _MAX_CONNTRACK.read_text()
        if int(before) < 2 * flows:
            _MAX_CONNTRACK.write_text(str(2 * flows))
    except OSError as error:
        raise PeerUnavailableError(f"{_MAX_CONNTRACK}: {error.strerror}") from None
    try:
        yield
    finally:
        _MAX_CONNTRACK.write_text(before)

