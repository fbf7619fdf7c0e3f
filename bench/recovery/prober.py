"""Tells when a relay serves its socket: fresh clients' checks, one after the other, for a transceiver that takes and never answers."""

import itertools
import os
import socket
import threading
import time
from typing import Self

from bench.recovery.hosts import TRANSCEIVER, VIP, Sites, prober_addresses
from wire.address import Address
from wire.keys import KeyRing
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

INTERVAL_S = 0.002
_FIRST_PORT, _PORTS = 20_000, 40_000
_LIFE_S = 60.0


class Sink:
    """The transceiver that probes are for."""

    def __init__(self, sites: Sites) -> None:
        with sites.transceiver:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((str(TRANSCEIVER.ip), 0))
        # What comes is seen by the taps; here it only has to be no closed port.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        self.address = Address.from_host(*self._socket.getsockname())

    def close(self) -> None:
        """Free the port."""
        self._socket.close()


class Prober:
    """Sends while in the block: a check every 2 ms, each with a ufrag, address and port of its own."""

    def __init__(self, sites: Sites, keys: KeyRing, sink: Address) -> None:
        self._sites, self._keys, self._sink = sites, keys, sink
        self._sent, self._began_at, self._ended_at = 0, 0.0, 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def interval_ms(self) -> float:
        """Between one probe and the next, as it was; after the block."""
        return round((self._ended_at - self._began_at) / max(1, self._sent) * 1000, 2)

    def _run(self) -> None:
        vip = (str(VIP.ip), VIP.port)
        ports = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + _PORTS))
        self._began_at = started = time.monotonic()
        with self._sites.callers:
            for number, ip in enumerate(prober_addresses()):
                due = started + number * INTERVAL_S
                self._sent, self._ended_at = number, time.monotonic()
                wait_s = max(0.0, due - self._ended_at)
                if self._ending.wait(wait_s) or self._ended_at - started > _LIFE_S:
                    return
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    try:
                        sock.bind((ip, next(ports)))
                        sock.sendto(self._check(), vip)
                    except OSError:  # a port that somebody has; no route while the VIP moves
                        continue

    def _check(self) -> bytes:
        issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
        ufrag = seal_ufrag(self._keys, RouteHint(1, self._sink, issued_at, os.urandom(5)))
        return write_binding_request(
            os.urandom(12), f"{ufrag}:probe", derive_ice_pwd(self._keys, ufrag).encode()
        )
