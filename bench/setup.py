"""New clients: how many a second one worker admits, and how long a client's first packet takes to its transceiver.

Frames are made beforehand, each with a sealed ufrag of its own, and sent by a packet socket from the client's host; the
sink notes when each came to the transceiver. The relay's process has a core of its own, as the sender needs one.
"""

import socket
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bench.delivery import deliver, packet_socket
from bench.errors import BenchError
from bench.frames import flow_client, udp_frame
from bench.live_frames import mac_bytes
from bench.peers.flow_maker import sealed_check
from bench.progress import Progress
from bench.results import SetupRow
from bench.rig import Rig
from bench.sink import MAX_LEARNED, Mode
from bench.stage import Player, stage
from bench.topology import ETH, PUBLIC, VIP
from wire.keys import FleetKey, KeyRing

DEFAULT_PEERS = ("xdp", "userspace", "go-reference")
DEFAULT_CLIENTS = 20_000
# Behind those that a peer makes at its start.
_FIRST_FLOW = 1024
MAX_CLIENTS = MAX_LEARNED - _FIRST_FLOW
_PAUSE_S = 0.001
_SETTLE_S = 0.2


def measure_setup(rig: Rig, names: Sequence[str], *, clients: int, progress: Progress) -> list[SetupRow]:
    """Half of the clients for the rate, half for the latency."""
    with stage(rig, names, 1, progress) as made:
        progress.expect(2 * len(made.players))
        rows = []
        for name in names:
            player = made.players.get(name)
            if player is None:
                rows.append(SetupRow(name=name, why_not=made.why_not[name]))
                continue
            try:
                rows.append(_measure(rig, player, clients, progress))
            except BenchError as error:
                rows.append(SetupRow(name=name, why_not=str(error)))
        return rows


def _measure(rig: Rig, player: Player, clients: int, progress: Progress) -> SetupRow:
    progress.advance(f"{player.name}, {clients // 2} clients as fast as they are admitted")
    frames, half = first_packets(player, clients), clients // 2
    rig.place(player.relay.workers, rig.core)
    rig.sink.expect(player.relay.up.arrives, Mode.ARRIVALS)
    rig.sink.forget_arrivals()
    with packet_socket(player.topology.client) as sock:
        rate = half / deliver(rig.sink, sock, frames[:half])
        progress.advance(f"{player.name}, {clients - half} clients one at a time")
        sent_ns = _send_paced(sock, frames[half:])
    time.sleep(_SETTLE_S)
    came_ns = rig.sink.arrivals(_FIRST_FLOW + clients)[_FIRST_FLOW + half :].astype(np.int64)
    took_us = (came_ns - sent_ns)[came_ns > 0] / 1000
    if not len(took_us):
        raise BenchError(f"of {len(sent_ns)} first packets none arrived")
    return SetupRow(
        name=player.name,
        flows_per_s=round(rate),
        admitted=half + len(took_us),
        lost=len(sent_ns) - len(took_us),
        p50_us=round(float(np.percentile(took_us, 50)), 1),
        p99_us=round(float(np.percentile(took_us, 99)), 1),
    )


def first_packets(player: Player, clients: int) -> list[bytes]:
    """A Binding request of each client, as a frame; a peer without keys admits any."""
    keys = player.relay.keys or KeyRing([FleetKey(1, bytes(32))], 1)
    to_mac = mac_bytes(player.topology.relay.mac(PUBLIC))
    from_mac = mac_bytes(player.topology.client.mac(ETH))
    return [
        udp_frame(flow_client(flow), VIP, sealed_check(keys, flow), to_mac, from_mac)
        for flow in range(_FIRST_FLOW, _FIRST_FLOW + clients)
    ]


def _send_paced(sock: socket.socket, frames: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Send one after the other; when each was sent, CLOCK_MONOTONIC."""
    sent = np.zeros(len(frames), dtype=np.int64)
    for number, frame in enumerate(frames):
        sent[number] = time.monotonic_ns()
        sock.send(frame)
        time.sleep(_PAUSE_S)
    return sent
