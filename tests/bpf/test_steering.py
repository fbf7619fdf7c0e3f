"""SO_REUSEPORT steering with real sockets: BPF_PROG_TEST_RUN does not know this kind of program."""

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from host.sockets import bind_udp, bound_address, sockaddr
from relay.core.policy import Vip
from relay.core.steering import hash_address, maglev_table
from relay.dataplane.bpf.abi import STEERING_SIZE, WorkerC
from tests.bpf.loading import PATIENT, beat, load
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

CLIENTS = 10_000
KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
PUBLIC, FLEET = 0, 1


class Groups:
    """A public and a fleet group of sockets on loopback, steered by the program."""

    def __init__(self, slots: int, host: str) -> None:
        self.programs = load()
        self.groups = [self._bind_group(slots, host) for _ in (PUBLIC, FLEET)]
        self.addresses = [bound_address(group[0]) for group in self.groups]
        vip = Vip(self.addresses[PUBLIC], self.addresses[PUBLIC])
        self.programs.configure(replace(PATIENT, vips=(vip,)), [self.addresses[FLEET]], KEY)
        beat(self.programs, *range(slots))
        for number, group in enumerate(self.groups):
            for slot, sock in enumerate(group):
                self.programs.fill_slot(number, slot, sock)

    def _bind_group(self, slots: int, host: str) -> list[socket.socket]:
        first = bind_udp("test", Address.from_host(host, 0), reuseport=True)
        return [first, *(bind_udp("test", bound_address(first), reuseport=True) for _ in range(slots - 1))]

    def receive(self, number: int) -> dict[bytes, int]:
        """Which slot each waiting datagram of a group came to, by its last 18 bytes."""
        return {
            datagram[-18:]: slot
            for slot, sock in enumerate(self.groups[number])
            for datagram in _waiting(sock)
        }

    def receive_one(self, number: int) -> dict[bytes, int]:
        """The same, as soon as there is one: a busy kernel delivers it a little later."""
        deadline = time.monotonic() + 5
        while not (received := self.receive(number)) and time.monotonic() < deadline:
            pass
        return received

    def close(self) -> None:
        """Close sockets and programs."""
        for sock in (sock for group in self.groups for sock in group):
            sock.close()
        self.programs.close()


def _waiting(sock: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recv(4096)


def clients(host: str) -> Iterator[tuple[socket.socket, Address]]:
    """Sockets of 10,000 clients, one at a time."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(CLIENTS):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            address = Address.from_host(host, 20_000 + number)
            sock.bind(sockaddr(address))
            yield sock, address


def slots_met(groups: Groups, host: str) -> dict[Address, int]:
    """The slot of every client, which must be the same from both sides, and the one that the core expects."""
    met: dict[Address, int] = {}
    public, fleet = groups.addresses
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as transceiver:
        for sock, client in clients(host):
            name = client.mapped + client.port.to_bytes(2, "big")
            sock.sendto(name, sockaddr(public))
            transceiver.sendto(encode_header(client, public) + name, sockaddr(fleet))
            up, down = groups.receive_one(PUBLIC), groups.receive_one(FLEET)
            assert up.keys() == down.keys() == {name}
            assert up[name] == down[name]
            met[client] = up[name]
    return met


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_every_packet_of_a_client_meets_one_slot_from_both_sides(host: str) -> None:
    groups = Groups(5, host)
    try:
        groups.programs.steer(range(4))
        four = slots_met(groups, host)
        shares = Counter(four.values())
        assert set(shares) == {0, 1, 2, 3}
        assert all(0.9 * CLIENTS / 4 <= share <= 1.1 * CLIENTS / 4 for share in shares.values()), shares
        table = maglev_table(range(4), STEERING_SIZE)
        assert four == {client: table[hash_address(client, KEY) % STEERING_SIZE] for client in four}
        groups.programs.steer(range(5))
        five = slots_met(groups, host)
        moved = sum(four[client] != five[client] for client in four)
        assert moved <= CLIENTS / 4
        groups.programs.steer(range(4))
        assert slots_met(groups, host) == four
    finally:
        groups.close()


class Clients:
    """A client and a transceiver on loopback, and the slot that a packet of each meets."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in (PUBLIC, FLEET)]
        for sock in self._sockets:
            sock.bind(("127.0.0.1", 0))
        self.address = bound_address(self._sockets[PUBLIC])
        self._selector = selectors.DefaultSelector()
        for sock in (sock for group in groups.groups for sock in group):
            self._selector.register(sock, selectors.EVENT_READ)

    def slot_met(self, number: int) -> int:
        """Send one packet to a group, from the client or, on its behalf, from the transceiver."""
        destination = self._groups.addresses[number]
        name = bytes(18)
        header = encode_header(self.address, self._groups.addresses[PUBLIC]) if number == FLEET else b""
        self._sockets[number].sendto(header + name, sockaddr(destination))
        assert self._selector.select(5), "the packet met no slot"
        (slot,) = self._groups.receive(number).values()
        return slot

    def close(self) -> None:
        self._selector.close()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def three() -> Iterator[tuple[Groups, Clients]]:
    """Three slots with clients, as a relay with three workers."""
    groups = Groups(3, "127.0.0.1")
    groups.programs.steer(range(3))
    clients = Clients(groups)
    yield groups, clients
    clients.close()
    groups.close()


BOTH_SIDES = pytest.mark.parametrize("side", [PUBLIC, FLEET], ids=["public", "fleet"])


@BOTH_SIDES
def test_next_living_slot_stands_in_for_an_empty_one(three: tuple[Groups, Clients], side: int) -> None:
    groups, clients = three
    home = clients.slot_met(side)
    groups.programs.empty_slot(side, home)
    assert clients.slot_met(side) == (home + 1) % 3
    groups.programs.fill_slot(side, home, groups.groups[side][home])
    assert clients.slot_met(side) == home


@BOTH_SIDES
def test_next_living_slot_stands_in_for_one_whose_worker_hangs(
    three: tuple[Groups, Clients], side: int
) -> None:
    groups, clients = three
    home = clients.slot_met(side)
    following = [(home + 1) % 3, (home + 2) % 3]
    beat(groups.programs, home, ago_s=3601)
    assert clients.slot_met(side) == following[0]
    beat(groups.programs, following[0], ago_s=3601)
    assert clients.slot_met(side) == following[1]
    beat(groups.programs, following[0])
    assert clients.slot_met(side) == following[0]
    beat(groups.programs, home)
    assert clients.slot_met(side) == home


@BOTH_SIDES
def test_stand_in_needs_both_a_socket_and_a_heartbeat(three: tuple[Groups, Clients], side: int) -> None:
    groups, clients = three
    home = clients.slot_met(side)
    following = [(home + 1) % 3, (home + 2) % 3]
    beat(groups.programs, home, ago_s=3601)
    groups.programs.empty_slot(side, following[0])
    assert clients.slot_met(side) == following[1]


@BOTH_SIDES
def test_packet_waits_for_its_own_worker_if_none_lives(three: tuple[Groups, Clients], side: int) -> None:
    groups, clients = three
    home = clients.slot_met(side)
    beat(groups.programs, *range(3), ago_s=3601)
    assert clients.slot_met(side) == home


def test_slot_whose_worker_never_beat_is_passed_over(three: tuple[Groups, Clients]) -> None:
    groups, clients = three
    home = clients.slot_met(PUBLIC)
    groups.programs.maps["workers"].put(home, WorkerC())
    settings = groups.programs.settings()
    settings.heartbeat_timeout_ns = time.monotonic_ns() // 2
    groups.programs.maps["settings"].put(0, settings)
    assert clients.slot_met(PUBLIC) == (home + 1) % 3
