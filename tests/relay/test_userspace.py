"""The userspace data path, over real sockets of the loopback interface.

A client's and a transceiver's sockets wait for what must come; what must not come shows in the counters.
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network

import pytest

from host.sockets import bound_address, sockaddr
from relay.core.forwarding import RelayCore
from relay.core.policy import RelayPolicy, Vip
from relay.core.verdict import FlowEvent, Verdict
from relay.dataplane.batches import MANY_A_CALL, ONE_A_CALL, SystemCalls
from relay.dataplane.counters import WorkerCounters, create_counters_fd
from relay.dataplane.userspace import UserspaceDataPath
from tests.relay.network import (
    CLIENT_HELLO,
    CLUSTER_ID,
    KEYS,
    RTP,
    SERVER_HELLO,
    UNIX_S,
    Call,
    call_at,
    check,
    spp,
)
from wire.address import Address

WAIT_S = 10.0
# behind a 1:1 NAT: nobody can mix up what clients are told and where the relay binds
VIPS = tuple(
    Address.parse(text) for text in ("203.0.113.10:3478", "203.0.113.11:3478", "[2001:db8:10::10]:3478")
)


def udp(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(WAIT_S)
    sock.bind((host, 0))
    return sock


class Rig:
    """A relay of three VIPs, with one fleet socket a family unless ``fleet`` says other."""

    def __init__(
        self,
        stack: ExitStack,
        fleet: tuple[str, ...] = ("127.0.0.1", "::1"),
        calls: SystemCalls = MANY_A_CALL,
    ) -> None:
        self._stack = stack
        self.public = [self.open(host) for host in ("127.0.0.2", "127.0.0.3", "::1")]
        self.fleet = [self.open(host) for host in fleet]
        for sock in (*self.public, *self.fleet):
            sock.setblocking(False)
        self.policy = RelayPolicy(
            cluster_id=CLUSTER_ID,
            vips=tuple(Vip(bound_address(sock), vip) for sock, vip in zip(self.public, VIPS, strict=True)),
            transceiver_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
            own_sockets=frozenset(map(bound_address, (*self.public, *self.fleet))),
        )
        fd = create_counters_fd()
        stack.callback(os.close, fd)
        self.counters = WorkerCounters(fd)
        stack.callback(self.counters.close)
        self.core = RelayCore(self.policy, KEYS, unix_s=UNIX_S)
        self.path = UserspaceDataPath(self.core, self.counters, self.public, self.fleet, calls=calls)

    def open(self, host: str) -> socket.socket:
        return self._stack.enter_context(udp(host))

    def call(self, transceiver: socket.socket) -> Call:
        return call_at(str(bound_address(transceiver)))

    def deliver(self, sender: socket.socket, receiver: socket.socket, datagram: bytes) -> None:
        """Send to one of the relay's sockets and let the data path take it."""
        sender.sendto(datagram, sockaddr(bound_address(receiver)))
        assert select.select([receiver], [], [], WAIT_S)[0], "loopback lost a datagram"
        assert self.path.receive(receiver, 1000.0) == 1

    def counted(self) -> dict[str, int]:
        """Verdicts that were counted."""
        return {label: count for label, count in self.counters.verdicts().items() if count}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize(
    ("vip_index", "client_host"),
    [
        pytest.param(0, "127.0.0.1", id="first IPv4 VIP"),
        pytest.param(1, "127.0.0.1", id="second IPv4 VIP"),
        pytest.param(2, "::1", id="IPv6 VIP"),
    ],
)
@pytest.mark.parametrize(
    ("fleet_index", "transceiver_host"),
    [pytest.param(0, "127.0.0.1", id="IPv4 transceiver"), pytest.param(1, "::1", id="IPv6 transceiver")],
)
def test_packets_go_up_with_a_header_and_come_back_from_the_vip_they_were_sent_to(
    stack: ExitStack, vip_index: int, client_host: str, fleet_index: int, transceiver_host: str
) -> None:
    rig = Rig(stack)
    client, transceiver = rig.open(client_host), rig.open(transceiver_host)
    public, fleet = rig.public[vip_index], rig.fleet[fleet_index]
    first_check = check(rig.call(transceiver))
    for datagram in (first_check, CLIENT_HELLO):
        rig.deliver(client, public, datagram)
        received, source = transceiver.recvfrom(65536)
        assert received == spp(bound_address(client), VIPS[vip_index], datagram)
        assert source == fleet.getsockname()
    rig.deliver(transceiver, fleet, spp(bound_address(client), VIPS[vip_index], SERVER_HELLO))
    assert client.recvfrom(65536) == (SERVER_HELLO, public.getsockname())
    assert rig.counted() == {"forward_stun": 1, "forward_flow": 1, "forward_client": 1}
    gauges = rig.counters.gauges()
    assert gauges["bytes_up"] == len(first_check) + len(CLIENT_HELLO)
    assert gauges["bytes_down"] == len(SERVER_HELLO)


def test_check_of_a_second_socket_is_answered_from_the_public_one(stack: ExitStack) -> None:
    """Where a program sorts packets to sockets; clients know one address."""
    rig = Rig(stack)
    checks = [rig.open(host) for host in ("127.0.0.2", "127.0.0.3", "::1")]
    for sock in checks:
        sock.setblocking(False)
    core = RelayCore(rig.policy, KEYS, unix_s=UNIX_S)
    rig.path = UserspaceDataPath(core, rig.counters, rig.public, rig.fleet, checks=checks)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    first_check = check(rig.call(transceiver))
    rig.deliver(client, checks[1], first_check)
    assert transceiver.recv(65536) == spp(bound_address(client), VIPS[1], first_check)
    rig.deliver(client, rig.public[1], CLIENT_HELLO)
    assert transceiver.recv(65536) == spp(bound_address(client), VIPS[1], CLIENT_HELLO)
    rig.deliver(transceiver, rig.fleet[0], spp(bound_address(client), VIPS[1], first_check))
    assert client.recvfrom(65536) == (first_check, rig.public[1].getsockname())
    assert list(rig.path.sockets) == [*rig.fleet, *rig.public, *checks]


@pytest.mark.parametrize("vip_index", [0, 1])
def test_worker_that_knows_no_flow_delivers_from_the_vip_in_the_header(
    stack: ExitStack, vip_index: int
) -> None:
    rig = Rig(stack)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    rig.deliver(transceiver, rig.fleet[0], spp(bound_address(client), VIPS[vip_index], RTP))
    assert client.recvfrom(65536) == (RTP, rig.public[vip_index].getsockname())


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        pytest.param(2048, Verdict.FORWARD_FLOW, id="2048 bytes pass whole"),
        pytest.param(2049, Verdict.DROP_OVERSIZE, id="2049 bytes"),
        pytest.param(60_000, Verdict.DROP_OVERSIZE, id="60000 bytes are not cut to fit"),
        pytest.param(0, Verdict.DROP_MALFORMED, id="empty"),
    ],
)
def test_size_of_what_clients_send(stack: ExitStack, size: int, verdict: Verdict) -> None:
    rig = Rig(stack)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    rig.deliver(client, rig.public[0], check(rig.call(transceiver)))
    transceiver.recv(65536)
    rig.deliver(client, rig.public[0], RTP.ljust(size)[:size])
    assert rig.counted() == {"forward_stun": 1, verdict.label: 1}
    if not verdict.is_drop:
        assert transceiver.recv(65536)[38:] == RTP.ljust(size)


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        pytest.param(2048, Verdict.FORWARD_CLIENT, id="2048 bytes pass whole"),
        pytest.param(2049, Verdict.DROP_OVERSIZE, id="2049 bytes"),
        pytest.param(60_000, Verdict.DROP_OVERSIZE, id="60000 bytes are not cut to fit"),
    ],
)
def test_size_of_what_transceivers_send(stack: ExitStack, size: int, verdict: Verdict) -> None:
    rig = Rig(stack)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    rig.deliver(transceiver, rig.fleet[0], spp(bound_address(client), VIPS[0], RTP.ljust(size)))
    assert rig.counted() == {verdict.label: 1}
    if not verdict.is_drop:
        assert client.recv(65536) == RTP.ljust(size)


def test_packet_that_the_kernel_refuses_is_counted_and_the_next_one_goes_on(stack: ExitStack) -> None:
    rig = Rig(stack)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    broadcast = Address.parse("127.255.255.255:9")  # EACCES without SO_BROADCAST
    rig.deliver(transceiver, rig.fleet[0], spp(broadcast, VIPS[0], RTP))
    assert rig.counted() == {"drop_send_failed": 1}
    assert rig.counters.gauges()["bytes_down"] == 0
    rig.deliver(transceiver, rig.fleet[0], spp(bound_address(client), VIPS[0], RTP))
    assert client.recv(65536) == RTP
    assert rig.counted() == {"drop_send_failed": 1, "forward_client": 1}


def test_transceiver_of_a_family_without_a_fleet_socket_is_counted(stack: ExitStack) -> None:
    rig = Rig(stack, fleet=("127.0.0.1",))
    client, transceiver = rig.open("127.0.0.1"), rig.open("::1")
    rig.deliver(client, rig.public[0], check(rig.call(transceiver)))
    assert rig.counted() == {"drop_send_failed": 1}
    assert rig.counters.gauges()["bytes_up"] == 0


def test_transceiver_that_has_ended_is_told_of_and_costs_others_nothing(stack: ExitStack) -> None:
    rig = Rig(stack)
    client, ended, alive = rig.open("127.0.0.1"), rig.open("127.0.0.1"), rig.open("127.0.0.1")
    others_client = rig.open("127.0.0.1")
    calls = rig.call(ended), rig.call(alive)
    ended.close()
    fleet = rig.fleet[0]
    for round_ in range(3):
        rig.deliver(client, rig.public[0], check(calls[0]))
        assert select.select([fleet], [], [], WAIT_S)[0], "an error makes a socket readable"
        if round_ == 0:  # read between packets, as a worker would when it is woken
            assert rig.path.receive(fleet, 1000.0) == 0
            assert not select.select([fleet], [], [], 0)[0]
        rig.deliver(others_client, rig.public[0], check(calls[1]))
        alive.recv(65536)
    assert rig.path.receive(fleet, 1000.0) == 0
    assert rig.core.events[FlowEvent.TRANSCEIVER_UNREACHABLE] == 3
    assert rig.counted() == {"forward_stun": 6}


def fill(rig: Rig, sock: socket.socket, datagram: bytes, count: int) -> None:
    """Put datagrams of a stranger into a socket's queue."""
    stranger = rig.open("127.0.0.1")
    for _ in range(count):
        stranger.sendto(datagram, sockaddr(bound_address(sock)))


@pytest.mark.parametrize("datagram", [pytest.param(RTP, id="RTP"), pytest.param(b"\0\1", id="STUN")])
def test_worker_that_is_behind_leaves_out_unknown_clients_and_no_call(
    stack: ExitStack, datagram: bytes
) -> None:
    rig = Rig(stack)
    public = rig.public[0]
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    call = rig.call(transceiver)
    rig.deliver(client, public, check(call))
    rig.deliver(client, public, CLIENT_HELLO)
    rig.deliver(transceiver, rig.fleet[0], spp(bound_address(client), VIPS[0], SERVER_HELLO))
    before = rig.counted()
    fill(rig, public, datagram, 150)
    client.sendto(RTP, sockaddr(bound_address(public)))
    client.sendto(check(call), sockaddr(bound_address(public)))
    fill(rig, public, datagram, 40)
    while rig.path.receive(public, 1000.0):
        pass
    counted = rig.counted()
    assert counted["forward_flow"] == before["forward_flow"] + 1
    assert counted["forward_stun"] == before["forward_stun"] + 1
    assert counted["drop_overload"] > 0
    assert sum(counted.values()) == sum(before.values()) + 192
    for _ in range(4):
        transceiver.recv(65536)


def test_worker_that_is_not_behind_decides_on_every_packet(stack: ExitStack) -> None:
    rig = Rig(stack)
    public = rig.public[0]
    fill(rig, public, RTP, 70)
    assert rig.path.receive(public, 1000.0) == 64, "others have their turn in between"
    assert rig.path.receive(public, 1000.0) == 6
    assert rig.counted() == {"drop_unknown_flow": 70}


@pytest.mark.parametrize("calls", [MANY_A_CALL, ONE_A_CALL], ids=["many a call", "one a call"])
def test_batch_of_a_call_over_real_sockets(stack: ExitStack, calls: SystemCalls) -> None:
    rig = Rig(stack, calls=calls)
    client, transceiver = rig.open("127.0.0.1"), rig.open("127.0.0.1")
    public, fleet = rig.public[0], rig.fleet[0]
    rig.deliver(client, public, check(rig.call(transceiver)))
    rig.deliver(client, public, CLIENT_HELLO)
    rig.deliver(transceiver, fleet, spp(bound_address(client), VIPS[0], SERVER_HELLO))
    transceiver.recv(65536), transceiver.recv(65536), client.recv(65536)
    packets = [(RTP + bytes((number,))).ljust(100 + 100 * (number % 20 == 0)) for number in range(30)]
    for packet in packets:
        client.sendto(packet, sockaddr(bound_address(public)))
    assert rig.path.receive(public, 1000.0) == 30
    received = [transceiver.recv(65536) for _ in packets]
    assert received == [spp(bound_address(client), VIPS[0], packet) for packet in packets]
    for packet in packets:
        transceiver.sendto(spp(bound_address(client), VIPS[0], packet), sockaddr(bound_address(fleet)))
    assert rig.path.receive(fleet, 1000.0) == 30
    assert [client.recv(65536) for _ in packets] == packets


def test_socket_that_is_empty_is_left_alone(stack: ExitStack) -> None:
    rig = Rig(stack)
    assert not any(rig.path.receive(sock, 1000.0) for sock in rig.path.sockets)
    assert rig.counted() == {}
