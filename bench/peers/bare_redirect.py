"""The limit: an XDP program that writes the MACs and redirects, and looks at nothing. Packets arrive as they were sent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.frames import Framing, Leg
from bench.live_frames import compile_program, mac_bytes
from bench.peers.base import Relay
from bench.rig import Rig, Way
from bench.sink import attach_xdp
from bench.topology import FLEET, PUBLIC, RELAY_FLEET, TRANSCEIVER, VIP, Topology

_SOURCE = Path(__file__).parents[1] / "c" / "bare_redirect.c"


@contextlib.contextmanager
def bare_redirect(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """On both interfaces of the relay."""
    bpf = compile_program(_SOURCE, [])
    try:
        fd = bpf.load_func(b"bare_redirect", bpf.XDP).fd
        ways = bpf[b"ways"]
        for interface, (out, to_mac, from_mac) in topology.forwarding_ways.items():
            leaf = ways.Leaf(interface=out)
            leaf.macs[:] = mac_bytes(to_mac) + mac_bytes(from_mac)
            ways[ways.Key(topology.relay.index(interface))] = leaf
        for interface in (PUBLIC, FLEET):
            attach_xdp(topology.relay, interface, fd)
        up = Leg(source=None, destination=VIP)
        down = Leg(source=TRANSCEIVER, destination=RELAY_FLEET, framing=Framing.SPP, vip=VIP)
        yield Relay(up=Way(is_up=True, sends=up, arrives=up), down=Way(is_up=False, sends=down, arrives=down))
    finally:
        bpf.cleanup()
