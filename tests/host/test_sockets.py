"""Sockets of the supervisor: a taken or foreign address is named with who holds it and the way out."""

import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from host.errors import AddressInUseError, ConfigError
from host.sockets import (
    bind_tcp,
    bind_udp,
    bound_address,
    check_free_udp,
    is_ipv6_available,
    take_without_checksum,
)
from tests.host.conftest import HoldAddress
from tests.host.unprivileged import run_unprivileged
from tests.ports import free_port
from wire.address import Address

Bind = Callable[[str, Address], socket.socket]

LOOPBACK = Address.parse("127.0.0.1:0")
LOOPBACK_6 = Address.parse("[::1]:0")

needs_ipv6 = pytest.mark.skipif(not is_ipv6_available(), reason="no IPv6 loopback here")


KINDS = [
    pytest.param("SOCK_DGRAM", bind_udp, id="UDP"),
    pytest.param("SOCK_STREAM", bind_tcp, id="TCP"),
]


@pytest.mark.parametrize(("kind", "bind"), KINDS)
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_taken_port_is_named_with_pid_and_process(
    hold_address: HoldAddress, kind: str, bind: Bind, host: str
) -> None:
    address = Address.from_host(host, free_port(getattr(socket, kind), host))
    pid = hold_address(address, kind)
    with pytest.raises(AddressInUseError) as caught:
        bind("relay.listen", address)
    assert str(caught.value).startswith(f"relay.listen: {address} is taken by pid {pid} (")
    assert f"({psutil.Process(pid).name()})" in str(caught.value)
    assert "choose another port" in str(caught.value)


@pytest.mark.parametrize(("kind", "bind"), KINDS)
def test_holder_of_the_same_port_on_another_address_is_not_blamed(
    hold_address: HoldAddress, kind: str, bind: Bind
) -> None:
    port = free_port(getattr(socket, kind), "127.0.0.1")
    holders = {
        host: hold_address(Address.from_host(host, port), kind)
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    }
    blamed = {}
    for host, pid in holders.items():
        with pytest.raises(AddressInUseError) as caught:
            bind("relay.listen", Address.from_host(host, port))
        blamed[host] = next((p for p in holders.values() if f"pid {p} " in str(caught.value)), pid)
    assert blamed == holders


def test_client_of_the_port_is_not_blamed(hold_address: HoldAddress) -> None:
    """The holder of a listening port is who listens, not who has a connection from that port."""
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_STREAM))
    pid = hold_address(address, "SOCK_STREAM")
    with closing(socket.create_connection((str(address.ip), address.port))):
        with pytest.raises(AddressInUseError, match=f"pid {pid} "):
            bind_tcp("transceiver.http", address)


def test_wildcard_holder_is_named(hold_address: HoldAddress) -> None:
    port = free_port(socket.SOCK_DGRAM)
    pid = hold_address(Address.from_host("0.0.0.0", port), "SOCK_DGRAM")
    with pytest.raises(AddressInUseError, match=f"pid {pid} "):
        bind_udp("relay.listen", Address.from_host("127.0.0.1", port))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_holder_of_another_user_is_not_guessed(hold_address: HoldAddress) -> None:
    """Unless it may be one of ours, whose sockets nobody but root can see."""
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    pid = hold_address(address, "SOCK_DGRAM")
    tried = run_unprivileged(
        "import sys\nfrom host.sockets import check_free_udp\nfrom host.errors import AddressInUseError\n"
        "from wire.address import Address\n"
        "check_free_udp('relay.listen', Address.parse(sys.argv[1]), {int(sys.argv[2])})\n"
        "try: check_free_udp('relay.listen', Address.parse(sys.argv[1]))\n"
        "except AddressInUseError as error: print(sorted(error.pids), error)",
        str(address),
        str(pid),
    )
    assert tried.stderr == ""
    assert tried.stdout.startswith(f"[] relay.listen: {address} is taken by a process of another user")


@pytest.mark.parametrize("bind", [bind_udp, bind_tcp])
@pytest.mark.parametrize(
    "address",
    ["203.0.113.10:0", pytest.param("[2001:db8::10]:0", marks=needs_ipv6)],
)
def test_address_of_another_machine_is_named(bind: Bind, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind("relay.listen", Address.parse(address))
    assert caught.value.field == "relay.listen"
    assert f"{Address.parse(address).ip} is no address of this machine" in str(caught.value)


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_low_port_as_unprivileged_user_tells_the_way_out(kind: str) -> None:
    first_open = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_open <= 1:
        pytest.skip("this machine gives every port to everyone (net.ipv4.ip_unprivileged_port_start)")
    tried = run_unprivileged(
        "import sys\nfrom host import sockets\nfrom host.errors import ConfigError\n"
        "from wire.address import Address\n"
        "try: getattr(sockets, sys.argv[1])('transceiver.http', Address.parse('127.0.0.1:1'))\n"
        "except ConfigError as error: print(error.field, error, sep='\\n')",
        f"bind_{kind}",
    )
    assert tried.stderr == ""
    field, message = tried.stdout.splitlines()
    assert field == "transceiver.http"
    assert message == ("transceiver.http: port 1 needs root or CAP_NET_BIND_SERVICE; choose one above 1023")


def test_reuseport_group_of_another_process_is_found_by_the_probe(hold_address: HoldAddress) -> None:
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    pid = hold_address(address, "SOCK_DGRAM", reuseport=True)
    bind_udp("relay.listen", address, reuseport=True).close()  # why the probe exists: this succeeds
    with pytest.raises(AddressInUseError, match=rf"relay\.listen: {address} is taken by pid {pid} "):
        check_free_udp("relay.listen", address)


@pytest.mark.parametrize(("kind", "bind"), KINDS)
def test_error_tells_the_pids_of_all_holders(hold_address: HoldAddress, kind: str, bind: Bind) -> None:
    address = Address.from_host("127.0.0.1", free_port(getattr(socket, kind)))
    pids = {hold_address(address, kind, reuseport=True) for _ in range(2)}
    with pytest.raises(AddressInUseError) as caught:
        bind("relay.listen", address)
    assert caught.value.pids == pids
    assert all(f"pid {pid} " in str(caught.value) for pid in pids)


MODULES = [pytest.param("relay.worker", id="worker"), pytest.param("transceiver.process", id="transceiver")]


@pytest.mark.parametrize("module", MODULES)
def test_process_that_a_dead_supervisor_left_is_named_as_such(hold_address: HoldAddress, module: str) -> None:
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    pid = hold_address(address, "SOCK_DGRAM", module=module)
    with pytest.raises(AddressInUseError) as caught:
        bind_udp("relay.listen", address)
    assert f"is taken by pid {pid}, left behind by a relayctl that died (`relayctl start`" in str(
        caught.value
    )
    assert caught.value.pids == {pid}


@pytest.mark.parametrize("module", MODULES)
def test_process_of_a_living_supervisor_is_named_by_it(hold_address: HoldAddress, module: str) -> None:
    """It is the supervisor that is to be stopped; who holds the address is the child all the same."""
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    supervisor = hold_address(address, "SOCK_DGRAM", module=module, parent="start")
    with pytest.raises(AddressInUseError) as caught:
        bind_udp("relay.listen", address)
    assert f"is taken by relayctl, pid {supervisor} (`relayctl stop`" in str(caught.value)
    assert caught.value.pids == {child.pid for child in psutil.Process(supervisor).children()}


@pytest.mark.parametrize(
    ("ours", "free"),
    [
        pytest.param((), False, id="none is ours"),
        pytest.param((0,), False, id="one of two is ours"),
        pytest.param((0, 1), True, id="both are ours"),
    ],
)
def test_address_that_only_our_processes_hold_counts_as_free(
    hold_address: HoldAddress, ours: tuple[int, ...], free: bool
) -> None:
    """Workers that a dead supervisor left behind share their address with their successors."""
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    pids = [hold_address(address, "SOCK_DGRAM", reuseport=True) for _ in range(2)]
    our_pids = {pids[index] for index in ours} | {1}
    if free:
        check_free_udp("relay.listen", address, our_pids)
        bind_udp("relay.listen", address, reuseport=True).close()
        return
    with pytest.raises(AddressInUseError) as caught:
        check_free_udp("relay.listen", address, our_pids)
    assert caught.value.pids == set(pids)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_probe_leaves_a_free_address_free(host: str) -> None:
    address = Address.from_host(host, free_port(socket.SOCK_DGRAM, host))
    check_free_udp("relay.listen", address)
    bind_udp("relay.listen", address).close()


def test_probe_of_any_port_asks_nothing() -> None:
    check_free_udp("relay.listen", Address.parse("203.0.113.10:0"))


def test_group_of_ours_shares_one_port() -> None:
    with closing(bind_udp("relay.listen", LOOPBACK, reuseport=True)) as first:
        with closing(bind_udp("relay.listen", bound_address(first), reuseport=True)) as second:
            assert bound_address(first) == bound_address(second)


def test_udp_port_is_ours_alone_unless_asked_otherwise() -> None:
    with closing(bind_udp("relay.fleet_listen", LOOPBACK)) as first:
        with pytest.raises(AddressInUseError, match=f"pid {os.getpid()} "):
            bind_udp("relay.fleet_listen", bound_address(first))


@pytest.mark.parametrize("address", [LOOPBACK, pytest.param(LOOPBACK_6, marks=needs_ipv6)], ids=str)
def test_sockets_do_not_block_and_know_their_address(address: Address) -> None:
    with closing(bind_udp("x", address)) as udp, closing(bind_tcp("x", address)) as tcp:
        for sock in (udp, tcp):
            assert not sock.getblocking()
            assert bound_address(sock).host == address.host
            assert bound_address(sock).port > 0
            assert not sock.get_inheritable()
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_packets_have_room_while_a_worker_restarts() -> None:
    """A capped buffer is what the kernel gives without CAP_NET_ADMIN."""
    wanted = 8 * 1024 * 1024 if os.geteuid() == 0 else int(Path("/proc/sys/net/core/rmem_max").read_text())
    with closing(bind_udp("x", LOOPBACK)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= wanted


@needs_ipv6
def test_ipv6_socket_takes_no_ipv4() -> None:
    with closing(bind_udp("x", LOOPBACK_6)) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_tcp_port_can_be_taken_again_at_once_after_connections() -> None:
    """A restart must not wait for TIME_WAIT."""
    with closing(bind_tcp("transceiver.http", LOOPBACK)) as listener:
        address = bound_address(listener)
        with closing(socket.create_connection((str(address.ip), address.port))) as client:
            listener.setblocking(True)
            accepted, _ = listener.accept()
            accepted.close()  # the listening side closes first and so keeps the TIME_WAIT
            assert client.recv(1) == b""
    bind_tcp("transceiver.http", address).close()


def test_refused_socket_is_closed(hold_address: HoldAddress) -> None:
    address = Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM))
    hold_address(address, "SOCK_DGRAM")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with suppress(AddressInUseError):
            bind_udp("relay.listen", address)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_packets_without_a_checksum_are_taken(host: str) -> None:
    """RFC 768 allows them; of IPv6 the kernel drops them unless it is told otherwise (RFC 6936)."""
    receiver = bind_udp("test", Address.from_host(host, 0))
    sender = socket.socket(receiver.family, socket.SOCK_DGRAM)
    try:
        take_without_checksum(receiver)
        receiver.settimeout(5)
        # SO_NO_CHECK for IPv4, UDP_NO_CHECK6_TX for IPv6
        if sender.family == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_UDP, 101, 1)
        else:
            sender.setsockopt(socket.SOL_SOCKET, 11, 1)
        sender.sendto(b"unproven", receiver.getsockname()[:2])
        assert receiver.recv(100) == b"unproven"
    finally:
        receiver.close()
        sender.close()
