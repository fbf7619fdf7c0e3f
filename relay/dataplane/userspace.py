"""The data path without BPF: plain sockets, one datagram at a time."""

import socket
from collections.abc import Callable, Sequence
from functools import lru_cache

from host.sockets import sockaddr
from relay.core.forwarding import MAX_DATAGRAM_BYTES, Outcome, RelayCore
from relay.core.verdict import Verdict
from relay.dataplane.counters import WorkerCounters
from wire.address import Address
from wire.spp import HEADER_BYTES

# Datagrams that one socket may deliver before the others have their turn.
_BATCH = 64
# One byte more than the core accepts, so that a larger datagram is seen to be too large and not cut to fit.
_RECEIVE_BYTES = MAX_DATAGRAM_BYTES + HEADER_BYTES + 1

_Decide = Callable[[bytes, Address, float], Outcome]


@lru_cache(maxsize=65_536)
def _address(host: str, port: int) -> Address:
    return Address.from_host(host, port)


_sockaddr = lru_cache(maxsize=65_536)(sockaddr)


class UserspaceDataPath:
    """Moves datagrams between sockets as the core decides.

    public: one socket a VIP, in the order of ``RelayPolicy.vips``. fleet: at most one socket an address family.
    checks: as public, and read only; answers leave by the public ones.
    """

    def __init__(
        self,
        core: RelayCore,
        counters: WorkerCounters,
        public: Sequence[socket.socket],
        fleet: Sequence[socket.socket],
        *,
        checks: Sequence[socket.socket] = (),
    ) -> None:
        self._core = core
        self._counters = counters
        self._public = public
        self._fleet = {4 if sock.family == socket.AF_INET else 6: sock for sock in fleet}
        self.sockets: dict[socket.socket, _Decide] = {
            **{sock: self._from_client(index) for index, sock in enumerate(public)},
            **{sock: self._from_client(index) for index, sock in enumerate(checks)},
            **dict.fromkeys(fleet, core.receive_from_fleet),
        }

    def receive(self, sock: socket.socket, now: float) -> bool:
        """Take one batch from a readable socket; False when the socket is empty."""
        decide = self.sockets[sock]
        for _ in range(_BATCH):
            try:
                datagram, source = sock.recvfrom(_RECEIVE_BYTES)
            except OSError:  # empty, or an error that the kernel queued for an earlier send
                return False
            self._carry_out(decide(datagram, _address(*source[:2]), now))
        return True

    def _from_client(self, vip_index: int) -> _Decide:
        receive = self._core.receive_from_client
        return lambda datagram, client, now: receive(datagram, client, vip_index, now)

    def _carry_out(self, outcome: Outcome) -> None:
        verdict, datagram, destination, vip_index = outcome
        if destination is None:
            self._counters.count(verdict)
            return
        sock = self._public[vip_index] if vip_index >= 0 else self._fleet.get(destination.family)
        try:
            if sock is None:
                raise OSError("no fleet socket of this family")
            sock.sendto(datagram, _sockaddr(destination))
        except OSError:
            self._counters.count(Verdict.DROP_SEND_FAILED)
        else:
            overhead = 0 if vip_index >= 0 else HEADER_BYTES
            self._counters.count(verdict, len(datagram) - overhead)
