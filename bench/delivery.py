"""Frames from a packet socket, as fast as a relay delivers them: the sink's count says how far it is."""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence

from bench.errors import BenchError
from bench.sink import Sink
from bench.topology import ETH, Host

# Few enough for every queue on the way, enough to keep a worker busy.
_OUTSTANDING = 64
# Others may take a shared machine's core for some seconds.
_STALL_S = 20.0


@contextlib.contextmanager
def packet_socket(host: Host) -> Iterator[socket.socket]:
    """Sends frames from a host as they are."""
    with host:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock, host:
        sock.bind((ETH, 0))
        yield sock


def deliver(sink: Sink, sock: socket.socket, frames: Sequence[bytes | memoryview]) -> float:
    """Send each once, while a few are always on their way; the seconds until the last one came.

    Raises BenchError if some do not come.
    """
    before, sent, done = sink.count().delivered, 0, 0
    started = progressed = time.monotonic()
    while done < len(frames):
        for frame in frames[sent : min(len(frames), done + _OUTSTANDING)]:
            sock.send(frame)
            sent += 1
        delivered, now = sink.count().delivered - before, time.monotonic()
        if delivered > done:
            done, progressed = delivered, now
        elif now - progressed > _STALL_S:
            raise BenchError(f"of {sent} packets {sent - done} were not delivered")
    return progressed - started
