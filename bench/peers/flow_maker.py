"""Flows of this relay, made as calls make them: a check with a sealed ufrag of its own, media up, media down.

Frames come from packet sockets of the clients' and the transceivers' host, and many are on their way at once, so that a
million flows take no longer than the relay itself takes.
"""

import contextlib
import os
import time

import numpy as np
import numpy.typing as npt

from bench.delivery import deliver, packet_socket
from bench.errors import BenchError
from bench.frames import MARKER_BYTES, Template, flow_client, make_template, transaction_id, udp_frame
from bench.live_frames import mac_bytes
from bench.rig import Rig, Way
from bench.topology import ETH, FLEET, PUBLIC, TRANSCEIVERS, VIP, Topology
from wire.address import Address
from wire.keys import KeyRing
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

# Flows are provisional between their check and media both ways, for 10 s at most.
_AT_ONCE = 8192
# Flows end after 60 s of silence: those that are made early wait for the last.
_KEEP_S = 20.0
# A packet that was lost has its whole lot sent again: the relay takes it as what it is.
_TRIES = 3


def transceiver_of(flow: int) -> Address:
    """The one that a flow belongs to."""
    return TRANSCEIVERS[flow % len(TRANSCEIVERS)]


def sealed_check(keys: KeyRing, flow: int) -> bytes:
    """A Binding request of that flow's client that this relay admits."""
    issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
    ufrag = seal_ufrag(keys, RouteHint(1, transceiver_of(flow), issued_at, os.urandom(5)))
    pwd = derive_ice_pwd(keys, ufrag).encode()
    return write_binding_request(transaction_id(flow), f"{ufrag}:abcd", pwd)


def make_flows(rig: Rig, topology: Topology, keys: KeyRing, ways: tuple[Way, Way], flows: int) -> None:
    """The first so many flows, assured. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        maker = _Maker(rig, topology, keys, ways, stack)
        kept_at = time.monotonic()
        for first in range(0, flows, _AT_ONCE):
            maker.make(np.arange(first, min(flows, first + _AT_ONCE)))
            if time.monotonic() - kept_at > _KEEP_S:
                for kept in range(0, first, _AT_ONCE):
                    maker.send_up(np.arange(kept, kept + _AT_ONCE))
                kept_at = time.monotonic()


class _Maker:
    def __init__(
        self,
        rig: Rig,
        topology: Topology,
        keys: KeyRing,
        ways: tuple[Way, Way],
        stack: contextlib.ExitStack,
    ) -> None:
        self._sink, self._keys = rig.sink, keys
        self._up, self._down = ways
        relay, client, transceiver = topology.relay, topology.client, topology.transceiver
        self._macs = mac_bytes(relay.mac(PUBLIC)), mac_bytes(client.mac(ETH))
        fleet_macs = mac_bytes(relay.mac(FLEET)), mac_bytes(transceiver.mac(ETH))
        self._media_up = make_template(self._up.sends, MARKER_BYTES, *self._macs)
        self._media_down = make_template(self._down.sends, MARKER_BYTES, *fleet_macs)
        self._clients = stack.enter_context(packet_socket(client))
        self._transceivers = stack.enter_context(packet_socket(transceiver))

    def make(self, flows: npt.NDArray[np.int64]) -> None:
        """Have these admitted and assured. Raises BenchError."""
        checks = [
            udp_frame(flow_client(flow), VIP, sealed_check(self._keys, flow), *self._macs)
            for flow in flows.tolist()
        ]
        for tries_left in reversed(range(_TRIES)):
            try:
                self._sink.expect(self._up.arrives)
                deliver(self._sink, self._clients, checks)
                self.send_up(flows)
                self._sink.expect(self._down.arrives)
                deliver(self._sink, self._transceivers, _frames(self._media_down, flows))
            except BenchError:
                if not tries_left:
                    raise
            else:
                return

    def send_up(self, flows: npt.NDArray[np.int64]) -> None:
        """A packet of each. Raises BenchError."""
        self._sink.expect(self._up.arrives)
        deliver(self._sink, self._clients, _frames(self._media_up, flows))


def _frames(template: Template, flows: npt.NDArray[np.int64]) -> list[memoryview]:
    """A packet of each of these flows."""
    return [frame.data for frame in template.fill_many(flows)]
