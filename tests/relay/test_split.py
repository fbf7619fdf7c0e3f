"""The program that chooses a socket for each datagram, against the same choice in Python, over real sockets of loopback."""

import contextlib
import itertools
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from random import Random

import pytest

from host.sockets import bind_udp, bound_address, is_ipv6_available, sockaddr
from relay.config import MAX_WORKERS
from relay.dataplane.split import Split, SplitKey, attach, new_key, program, worker_of
from tests.host.unprivileged import run_unprivileged
from wire.address import Address
from wire.demux import PacketClass, classify

KEY: SplitKey = (
    0x9E3779B9,
    0x85EBCA6B,
    0xC2B2AE35,
    *(0x27D4EB2F + 0x165667B1 * n & 0xFFFF_FFFF for n in range(9)),
)
OTHER_KEY: SplitKey = tuple(word ^ 0x5A5A_A5A5 for word in KEY)
MEDIA = b"\x80media"
CHECK = b"\x00check"
CLIENT = Address.parse("192.0.2.1:40000")
FIRST_BYTES = (0, 1, 3, 19, 20, 63, 64, 127, 128, 191, 192, 255)

needs_ipv6 = pytest.mark.skipif(not is_ipv6_available(), reason="no IPv6 loopback here")
HOSTS = [pytest.param("127.0.0.1", id="IPv4"), pytest.param("::1", id="IPv6", marks=needs_ipv6)]


class Group:
    """Sockets of one SO_REUSEPORT group, and clients that send to it."""

    def __init__(self, stack: ExitStack, host: str, sockets: int) -> None:
        self._stack = stack
        self.sockets: list[socket.socket] = []
        self.address = Address.from_host(host, 0)
        self.grow(sockets)

    def grow(self, sockets: int) -> None:
        for _ in range(sockets):
            sock = self._stack.enter_context(bind_udp("group", self.address, reuseport=True))
            self.address = bound_address(sock)
            self.sockets.append(sock)

    def client(self, host: str | None = None) -> socket.socket:
        family = socket.AF_INET if self.address.family == 4 else socket.AF_INET6
        client = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        client.bind((host or str(self.address.ip), 0))
        return client

    def clients(self, count: int) -> Iterator[tuple[socket.socket, Address]]:
        """With IPv4, of as many hosts; with IPv6 there is one loopback address only."""
        for number in range(count):
            host = f"127.0.{1 + number % 200}.{1 + number // 7 % 250}" if self.address.family == 4 else None
            client = self.client(host)
            yield client, bound_address(client)

    def send(self, client: socket.socket, datagram: bytes) -> int:
        """The index, in the order of binding, of the socket that got it."""
        client.sendto(datagram, sockaddr(self.address))
        (index,) = self.arrived(datagram)
        return index

    def arrived(self, datagram: bytes) -> list[int]:
        """Who has it: on loopback it is there when sendto returns."""
        indexes = []
        for index, sock in enumerate(self.sockets):
            if sock.fileno() >= 0:
                with contextlib.suppress(BlockingIOError):
                    assert sock.recv(2048) == datagram
                    indexes.append(index)
        return indexes


def socket_index(datagram: bytes, client: Address, workers: int, key: SplitKey) -> int:
    """What the program answers, where an IPv6 header has no extensions (see ``_load_port_v6``)."""
    first_byte = datagram[0] if datagram else 0
    is_media = 20 <= first_byte <= 63 or 128 <= first_byte <= 191
    return 2 * worker_of(client, workers, key) + (not is_media)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("workers", [1, 2, 3, MAX_WORKERS])
def test_program_chooses_as_python_does(stack: ExitStack, host: str, workers: int) -> None:
    group = Group(stack, host, 2 * workers)
    attach(group.sockets[0], workers, KEY)
    for client, address in group.clients(60):
        for first_byte, rest in itertools.product(
            FIRST_BYTES[:: 1 if workers < 4 else 4], (b"", b"rest" * 30)
        ):
            datagram = bytes([first_byte]) + rest
            assert group.send(client, datagram) == socket_index(datagram, address, workers, KEY)
        assert group.send(client, b"") == socket_index(b"", address, workers, KEY)


@pytest.mark.parametrize("host", HOSTS)
def test_every_first_byte_goes_to_the_socket_of_its_class(stack: ExitStack, host: str) -> None:
    group = Group(stack, host, 2)
    attach(group.sockets[0], 1, KEY)
    client = group.client()
    media = {PacketClass.DTLS, PacketClass.RTP}
    chosen = [group.send(client, bytes([first_byte])) for first_byte in range(256)]
    assert chosen == [0 if classify(bytes([first_byte])) in media else 1 for first_byte in range(256)]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("size", [1, 1200, 9000, 60_000])
def test_size_does_not_matter(stack: ExitStack, host: str, size: int) -> None:
    """60,000 bytes come as fragments where the MTU is smaller, and not in one piece of memory."""
    group = Group(stack, host, 8)
    attach(group.sockets[0], 4, KEY)
    for client, address in group.clients(10):
        client.sendto(datagram := b"\x90" * size, sockaddr(group.address))
        assert group.arrived(datagram[:2048]) == [socket_index(datagram, address, 4, KEY)]


def test_ipv4_options_do_not_hide_the_port(stack: ExitStack) -> None:
    group = Group(stack, "127.0.0.1", 2 * MAX_WORKERS)
    attach(group.sockets[0], MAX_WORKERS, KEY)
    for client, address in group.clients(20):
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1] * 12))  # no operation
        assert group.send(client, MEDIA) == socket_index(MEDIA, address, MAX_WORKERS, KEY)


@needs_ipv6
@pytest.mark.skipif(os.geteuid() != 0, reason="IPv6 destination options need CAP_NET_RAW")
def test_packets_with_ipv6_extension_headers_of_one_host_meet_one_worker(stack: ExitStack) -> None:
    """Whatever they hold where the port would be."""
    group = Group(stack, "::1", 2 * MAX_WORKERS)
    attach(group.sockets[0], MAX_WORKERS, KEY)
    padding = struct.pack("=BBBB4x", 0, 0, 1, 4)  # next header, length, PadN of 4 bytes
    chosen = set()
    for client, address in group.clients(20):
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padding)
        chosen |= {group.send(client, datagram) for datagram in (MEDIA, CHECK, b"")}
        host = address._replace(port=0)
    assert chosen == {socket_index(datagram, host, MAX_WORKERS, KEY) for datagram in (MEDIA, CHECK)}


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("workers", [2, 3, 7, MAX_WORKERS])
def test_workers_have_nearly_equal_shares(host: str, workers: int) -> None:
    """Of the ports of one host (a CGNAT), and of neighbouring hosts with one port."""
    first = Address.from_host(host, 3478)
    ports = [first._replace(port=port) for port in range(1024, 1024 + 20_000)]
    number = int.from_bytes(first.host)
    hosts = [Address((number + n).to_bytes(len(first.host)), 3478) for n in range(20_000)]
    for clients in (ports, hosts):
        for key in (KEY, OTHER_KEY):
            shares = Counter(worker_of(client, workers, key) for client in clients)
            assert len(shares) == workers
            assert max(shares.values()) < 1.5 * len(clients) / workers
            assert min(shares.values()) > 0.5 * len(clients) / workers


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_neighbours_are_spread_whatever_the_key(host: str) -> None:
    """64 ports in a row, or hosts: multilinear hashing alone gives them one worker with every 30th key or so."""
    first = Address.from_host(host, 40_000)
    number = int.from_bytes(first.host)
    random = Random(1)
    most = 0
    for _ in range(500):
        key = tuple(random.getrandbits(32) for _ in KEY)
        ports = [first._replace(port=first.port + n) for n in range(64)]
        hosts = [Address((number + n).to_bytes(len(first.host)), 40_000) for n in range(64)]
        for clients in (ports, hosts):
            most = max(most, *Counter(worker_of(client, 4, key) for client in clients).values())
    # Of 64 thrown at random 32 or more in one of four come once in 100,000 times.
    assert most < 40


def test_who_does_not_know_the_key_cannot_tell_the_worker() -> None:
    clients = [Address.parse(f"192.0.2.{n}:{1024 + 7 * n}") for n in range(1, 250)]
    same = sum(worker_of(c, MAX_WORKERS, KEY) == worker_of(c, MAX_WORKERS, OTHER_KEY) for c in clients)
    assert same < 30


def test_every_start_has_a_key_of_its_own() -> None:
    keys = [new_key() for _ in range(10)]
    assert len({word for key in keys for word in key}) > 90
    assert all(len(key) == len(KEY) for key in keys)


@pytest.mark.parametrize(("family", "length"), [(socket.AF_INET, 44), (socket.AF_INET6, 71)])
def test_programs_are_short(family: int, length: int) -> None:
    """As their description says; and far below the 4096 instructions that are allowed."""
    assert len(program(family, MAX_WORKERS, KEY)) == length


@pytest.mark.parametrize("host", HOSTS)
def test_new_sockets_get_nothing_before_the_program_names_them(stack: ExitStack, host: str) -> None:
    group = Group(stack, host, 4)
    attach(group.sockets[0], 2, KEY)
    clients = list(group.clients(40))
    group.grow(4)
    assert {group.send(client, MEDIA) for client, _ in clients} == {0, 2}
    attach(group.sockets[0], 4, KEY)
    assert [group.send(client, MEDIA) for client, _ in clients] == [
        socket_index(MEDIA, address, 4, KEY) for _, address in clients
    ]
    assert {group.send(client, MEDIA) for client, _ in clients} == {0, 2, 4, 6}


def orders(of: Iterable[int]) -> list[tuple[int, ...]]:
    return list(itertools.permutations(of))


@pytest.mark.parametrize("order", orders(range(4, 8)), ids=str)
def test_last_sockets_may_close_in_any_order(stack: ExitStack, order: tuple[int, ...]) -> None:
    """The kernel moves the last socket of a group into the place of one that closes: always a place that no program names."""
    group = Group(stack, "127.0.0.1", 8)
    attach(group.sockets[0], 4, KEY)
    clients = list(group.clients(20))
    attach(group.sockets[0], 2, KEY)

    def assert_places() -> None:
        for client, address in clients:
            for datagram in (MEDIA, CHECK):
                assert group.send(client, datagram) == socket_index(datagram, address, 2, KEY)

    assert_places()
    for index in order:
        group.sockets[index].close()
        assert_places()
    # A later growth finds its places free.
    del group.sockets[4:]
    group.grow(2)
    attach(group.sockets[0], 3, KEY)
    for client, address in clients:
        assert group.send(client, CHECK) == socket_index(CHECK, address, 3, KEY)


def test_first_sockets_may_not(stack: ExitStack) -> None:
    """Why `scale` takes the last slots: the others would change places."""
    group = Group(stack, "127.0.0.1", 4)
    attach(group.sockets[0], 2, KEY)
    clients = list(group.clients(20))
    group.sockets[0].close()
    assert any(
        group.send(client, MEDIA) != socket_index(MEDIA, address, 2, KEY) for client, address in clients
    )


def test_socket_that_a_worker_holds_keeps_its_place(stack: ExitStack) -> None:
    """The supervisor's copy, or the worker's, is enough."""
    group = Group(stack, "127.0.0.1", 4)
    attach(group.sockets[0], 2, KEY)
    copy = stack.enter_context(closing(socket.socket(fileno=os.dup(group.sockets[0].fileno()))))
    group.sockets[0].close()
    group.sockets[0] = copy
    copy.setblocking(False)
    for client, address in group.clients(20):
        assert group.send(client, MEDIA) == socket_index(MEDIA, address, 2, KEY)


def test_each_vip_has_a_program_of_its_own(stack: ExitStack) -> None:
    first, second = Group(stack, "127.0.0.1", 2), Group(stack, "127.0.0.2", 2)
    attach(first.sockets[0], 1, KEY)
    attach(second.sockets[1], 1, KEY)
    for group in (first, second):
        client = group.client("127.0.0.1")
        assert [group.send(client, datagram) for datagram in (MEDIA, CHECK, b"")] == [0, 1, 1]


def test_flood_of_checks_costs_no_media(stack: ExitStack) -> None:
    group = Group(stack, "127.0.0.1", 2)
    attach(group.sockets[0], 1, KEY)
    for sock in group.sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    attacker, caller = group.client(), group.client()
    for _ in range(1000):
        attacker.sendto(CHECK, sockaddr(group.address))
    caller.sendto(MEDIA, sockaddr(group.address))
    assert group.sockets[0].recv(100) == MEDIA


def test_refusal_of_the_kernel_is_an_oserror() -> None:
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as alone,
        pytest.raises(OSError, match="Invalid argument"),
    ):
        attach(alone, 1, KEY)


def test_who_is_refused_goes_on_without_and_says_so_once(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Here the second group refuses: a socket outside of any."""
    group = Group(stack, "127.0.0.1", 4)
    outside = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    split = Split()
    assert split.worker_of(CLIENT) is None
    split.lead(group.sockets[:1], 2)
    assert split.worker_of(CLIENT) in (0, 1)
    for _ in range(2):
        split.lead([group.sockets[0], outside], 1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "(Invalid argument)" in record.getMessage()
    assert split.worker_of(CLIENT) is None
    # The first group has no program any more: the kernel's own hash leads a client to one socket, whatever it sends.
    chosen = [
        {group.send(client, datagram) for datagram in (MEDIA, CHECK)} for client, _ in group.clients(40)
    ]
    assert all(len(sockets) == 1 for sockets in chosen)
    assert set.union(*chosen) == {0, 1, 2, 3}


def test_unprivileged_user_may() -> None:
    done = run_unprivileged(
        "from host.sockets import bind_udp, bound_address, sockaddr\n"
        "from relay.dataplane.split import attach, new_key\n"
        "from wire.address import Address\n"
        "import os\n"
        "first = bind_udp('x', Address.parse('127.0.0.1:0'), reuseport=True)\n"
        "second = bind_udp('x', bound_address(first), reuseport=True)\n"
        "attach(first, 1, new_key())\n"
        "for datagram in (b'\\x80', b'\\x01', b''):\n"
        "    first.sendto(datagram, sockaddr(bound_address(first)))\n"
        "print(os.geteuid() != 0, first.recv(9), second.recv(9), second.recv(9))\n"
    )
    assert (done.stdout, done.stderr) == ("True b'\\x80' b'\\x01' b''\n", "")
