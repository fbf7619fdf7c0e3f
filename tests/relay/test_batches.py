"""Batches through the userspace data path: each packet as if it had come alone, and every flow in its order.

Packets come from and go to ``canned.CannedCalls``, as the loopback interface has none of these addresses.
"""

import errno
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.forwarding import RelayCore
from relay.core.verdict import FlowEvent, Verdict
from relay.dataplane import userspace
from relay.dataplane.batches import BATCH, MANY_A_CALL, ONE_A_CALL, SystemCalls, find_system_calls
from relay.dataplane.counters import WorkerCounters, create_counters_fd
from relay.dataplane.userspace import UserspaceDataPath
from tests.relay.canned import CannedCalls, Sent, pack_sockaddr
from tests.relay.harness import MemoryStore, Relay
from tests.relay.network import (
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    KEYS,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    POLICY,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    UNIX_S,
    VIP_V4,
    Call,
    answer,
    check,
    spp,
    stun,
)
from tests.relay.packets import ROWS, PacketRow
from wire.address import Address

NOW = 1000.0
FAMILIES = (4, 6, 4)
MEDIA = b"\x80" + bytes(range(99))


class Path:
    """A data path of POLICY's three VIPs with a fleet socket a family, over canned calls."""

    def __init__(self, stack: ExitStack, *, store: MemoryStore | None = None, fleet: tuple[int, ...] = (4, 6)) -> None:
        self.calls = CannedCalls()
        self.public = [stack.enter_context(udp(family)) for family in FAMILIES]
        self.checks = [stack.enter_context(udp(family)) for family in FAMILIES]
        self.fleet = [stack.enter_context(udp(family)) for family in fleet]
        fd = create_counters_fd()
        stack.callback(os.close, fd)
        self.counters = WorkerCounters(fd)
        stack.callback(self.counters.close)
        self.core = RelayCore(POLICY, KEYS, unix_s=UNIX_S, store=store)
        self.path = UserspaceDataPath(
            self.core, self.counters, self.public, self.fleet, checks=self.checks, calls=self.calls.system_calls
        )

    def from_clients(self, *packets: tuple[bytes, Address], vip_index: int = 0, now: float = NOW) -> list[Sent]:
        """Deliver a batch to a VIP; what left."""
        return self.deliver(self.public[vip_index], list(packets), now)

    def from_fleet(self, *packets: tuple[bytes, Address], now: float = NOW) -> list[Sent]:
        """Deliver a batch of one family to the fleet socket of the first one's; what left."""
        sock = self.fleet[0 if packets[0][1].family == 4 else 1]
        return self.deliver(sock, list(packets), now)

    def deliver(self, sock: socket.socket, packets: list[tuple[bytes, Address]], now: float) -> list[Sent]:
        before = len(self.calls.sent)
        self.calls.arrived[sock.fileno()].extend(packets)
        while self.path.receive(sock, now):
            pass
        return self.calls.sent[before:]

    def connect(self, call: Call = CALL, client: Address = CLIENT_V4, vip_index: int = 0) -> None:
        """A check, then DTLS both ways."""
        self.from_clients((check(call), client), vip_index=vip_index)
        self.from_clients((CLIENT_HELLO, client), vip_index=vip_index)
        vip = POLICY.vips[vip_index].address
        self.from_fleet((spp(client, vip, SERVER_HELLO), call.transceiver))

    def counted(self) -> dict[str, int]:
        return {label: count for label, count in self.counters.verdicts().items() if count}


def udp(family: int) -> socket.socket:
    return socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=[pytest.param(0, id="together"), pytest.param(10_000, id="one by one")])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to decide, for batches of any size."""
    monkeypatch.setattr(userspace, "_FEW", request.param)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.side}: {row.description}") for row in ROWS])
def test_packet(stack: ExitStack, row: PacketRow) -> None:
    path = Path(stack)
    if row.known_flow != "none":
        path.connect(row.call, row.client, row.vip_index)
    if row.known_flow == "provisional":
        flow = next(iter(path.core.flows))
        path.core.flows.remove(flow.key)
        path.from_clients((check(row.call), row.client), vip_index=row.vip_index)
    before = path.counters.verdicts()
    if row.side == "public":
        sent = path.from_clients((row.datagram, row.source), vip_index=row.vip_index)
        leaves_by = path.fleet[0 if row.destination is None or row.destination.family == 4 else 1]
    else:
        sent = path.from_fleet((row.datagram, row.source))
        leaves_by = path.public[row.vip_index]
    assert path.counters.verdicts() == {**before, row.verdict.label: before[row.verdict.label] + 1}
    if row.forwarded is None or row.destination is None:
        assert sent == []
    else:
        assert [each[:3] for each in sent] == [(leaves_by.fileno(), row.destination, row.forwarded)]
