"""coturn with one relay thread: an allocation and a channel a flow, ChannelData from and to the client."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.errors import PeerUnavailableError
from bench.frames import Framing, Leg
from bench.peers.base import Relay
from bench.peers.process import is_bound, need, running, take_redirected
from bench.peers.turn_client import TurnClients
from bench.rig import Rig, Way, processes
from bench.topology import RELAY_FLEET, TRANSCEIVER, VIP, Topology

_MAX_FLOWS = 20_000  # relayed ports
_REBIND_S = 200.0


@contextlib.contextmanager
def coturn(rig: Rig, topology: Topology, flows: int) -> Iterator[Relay]:
    """Without authentication, which costs nothing once a channel is bound."""
    turnserver = need("turnserver", "coturn")
    if flows > _MAX_FLOWS:
        raise PeerUnavailableError(f"{flows} flows are more than one address has ports for")
    take_redirected(topology)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="relaybench-"))
        command = [turnserver, "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-tcp", "--no-cli"]
        command += [
            "--log-file=/dev/null",
            "--no-stdout-log",
            f"--pidfile={directory}/pid",
            "--relay-threads=1",
        ]
        command += [
            f"--listening-ip={VIP.ip}",
            f"--listening-port={VIP.port}",
            f"--relay-ip={RELAY_FLEET.ip}",
        ]
        command += ["--min-port=20000", "--max-port=60000", f"--userdb={directory}/db"]
        log = Path(directory, "log")
        process = stack.enter_context(
            running(topology.relay, command, log, lambda _: is_bound(topology.relay, VIP.port))
        )
        clients = TurnClients(topology.client, VIP, TRANSCEIVER, flows)
        stack.callback(clients.close)
        bound_at = time.monotonic()

        def refresh() -> None:
            nonlocal bound_at
            if time.monotonic() - bound_at > _REBIND_S:
                clients.bind_channels()
                bound_at = time.monotonic()

        up = Way(
            is_up=True,
            sends=Leg(source=None, destination=VIP, framing=Framing.CHANNEL_DATA),
            arrives=Leg(source=RELAY_FLEET, destination=TRANSCEIVER),
        )
        down = Way(
            is_up=False,
            sends=Leg(source=TRANSCEIVER, destination=RELAY_FLEET, ports=tuple(clients.ports)),
            arrives=Leg(source=VIP, destination=None, framing=Framing.CHANNEL_DATA),
        )
        yield Relay(up=up, down=down, pids=processes(process.pid), refresh=refresh)
