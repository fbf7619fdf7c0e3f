"""Sockets that a supervisor makes and its processes inherit, and a clear word when an address is taken."""

import errno
import socket
from collections.abc import Collection
from contextlib import closing
from typing import Any

import psutil

from host.errors import AddressInUseError, ConfigError
from wire.address import Address

# Packets queue here while a worker restarts. Without CAP_NET_ADMIN the kernel caps it at net.core.rmem_max, by default
# some 270 packets.
_RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_UDP_NO_CHECK6_RX = 102  # linux/udp.h


def bind_udp(field: str, address: Address, *, reuseport: bool = False) -> socket.socket:
    """A non-blocking UDP socket on ``address`` (port 0: any). ``field`` names the setting in errors."""
    return _bind(field, address, socket.SOCK_DGRAM, reuseport=reuseport)


def bind_tcp(field: str, address: Address) -> socket.socket:
    """A non-blocking listening TCP socket on ``address`` (port 0: any)."""
    listener = _bind(field, address, socket.SOCK_STREAM, reuseport=False)
    listener.listen(512)
    return listener


def check_free_udp(field: str, address: Address, ours: Collection[int] = ()) -> None:
    """Raise AddressInUseError if anyone but the processes ``ours`` holds the address.

    A second SO_REUSEPORT bind by the same user succeeds silently, so this probe binds without it.
    """
    if not address.port:
        return
    try:
        _bind(field, address, socket.SOCK_DGRAM, reuseport=False).close()
    except AddressInUseError as error:
        # Without CAP_SYS_PTRACE nobody can tell who holds it; to share a port at all takes our user id.
        if not ours or not error.pids <= set(ours):
            raise


def bound_address(sock: socket.socket) -> Address:
    """The address that a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return Address.from_host(host, port)


def sockaddr(address: Address) -> tuple[str, int]:
    """The form that Python's socket functions take."""
    return str(address.ip), address.port


def take_without_checksum(sock: socket.socket) -> None:
    """Have a UDP socket of IPv6 take packets whose checksum is 0, as a socket of IPv4 does.

    RFC 6936: for tunnels, whose payload proves itself. XDP relays send SPP so; DTLS, SRTP and checked STUN are in it.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)


def _bind(field: str, address: Address, kind: socket.SocketKind, *, reuseport: bool) -> socket.socket:
    family = socket.AF_INET if address.family == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            _widen(sock)
        if reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(sockaddr(address))
    except OSError as error:
        sock.close()
        raise _bind_error(field, address, kind, error) from None
    return sock


def _widen(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)


def _bind_error(field: str, address: Address, kind: socket.SocketKind, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        pids = _holders(address, kind)
        holders = ", ".join(sorted(map(_describe_holder, pids))) or "a process of another user"
        return AddressInUseError(
            f"{field}: {address} is taken by {holders}; stop it or choose another port", pids
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(field, f"{address.ip} is no address of this machine; `ip address` lists them")
    if error.errno == errno.EACCES:
        return ConfigError(
            field, f"port {address.port} needs root or CAP_NET_BIND_SERVICE; choose one above 1023"
        )
    return ConfigError(field, f"cannot bind {address} ({error.strerror})")


def _holders(address: Address, kind: socket.SocketKind) -> set[int]:
    inet_kind = "udp" if kind == socket.SOCK_DGRAM else "tcp"
    connections = psutil.net_connections(inet_kind)
    return {c.pid for c in connections if c.pid and _covers(c.laddr, address)}


def _describe_holder(pid: int) -> str:
    """Its pid and name; for a process of a relayctl, the supervisor's, as that is the one to stop."""
    try:
        process = psutil.Process(pid)
        if not {"relay.worker", "transceiver.process"} & set(process.cmdline()):
            return f"pid {pid} ({process.name()})"
        supervisor = process.parent()
        if supervisor is not None and "start" in supervisor.cmdline():
            return f"relayctl, pid {supervisor.pid} (`relayctl stop` in its state directory)"
    except psutil.Error:
        return f"pid {pid}"
    return (
        f"pid {pid}, left behind by a relayctl that died (`relayctl start` in its state directory takes over, "
        "`relayctl stop` ends it)"
    )


def _covers(bound: Any, address: Address) -> bool:
    """Whether a socket that is bound there keeps others from the address; psutil gives () for one that is not."""
    if not bound or bound.port != address.port:
        return False
    host = Address.from_host(bound.ip, bound.port)
    return host == address or host.ip.is_unspecified


def is_ipv6_available() -> bool:
    """Whether this machine can bind the IPv6 loopback address."""
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True
