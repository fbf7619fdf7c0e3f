"""Ports for a test to give to what it starts: chosen now, bound a moment later, and nobody's in between.

Who asks the kernel for any port gets one of net.ipv4.ip_local_port_range, so these come from below. Test processes side by
side (pytest-xdist's, or those of another pytest on this machine) take them from blocks, of which each process claims one.
"""

import itertools
import socket
from contextlib import ExitStack, suppress

_FIRST, _BEYOND, _BLOCK = 10_000, 32_000, 1_000


class _Block:
    """The claim is a socket with a name in the abstract namespace: it ends with its process, however that ends."""

    def __init__(self) -> None:
        self._claim = socket.socket(socket.AF_UNIX)
        for first in range(_FIRST, _BEYOND, _BLOCK):
            with suppress(OSError):
                self._claim.bind(f"\0relayctl-tests-ports-{first}")
                break
        else:
            raise OSError("every block of ports is claimed by another test process")
        self._ports = itertools.cycle(range(first, first + _BLOCK))

    def take(self, count: int) -> range:
        """So many ports in succession."""
        while True:
            first = next(self._ports)
            if (first - _FIRST) % _BLOCK + count <= _BLOCK:
                for _ in range(count - 1):
                    next(self._ports)
                return range(first, first + count)


# Claimed on import, which is in the network namespace that tests without one of their own share.
_block = _Block()


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM, host: str = "127.0.0.1", count: int = 1) -> int:
    """The first of so many ports in succession that nobody holds on any address of this family."""
    for _ in range(_BLOCK):
        ports = _block.take(count)
        if all(_is_free(kind, host, port) for port in ports):
            return ports[0]
    raise OSError(f"no {count} free ports in this process's block")


def _is_free(kind: socket.SocketKind, host: str, port: int) -> bool:
    is_ipv6 = ":" in host
    with ExitStack() as stack:
        probe = stack.enter_context(socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, kind))
        try:
            probe.bind(("::" if is_ipv6 else "0.0.0.0", port))
        except OSError:
            return False
        return True
