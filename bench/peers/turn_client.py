"""As much of a TURN client (RFC 8656) as it takes to have a server relay for many clients, without authentication."""

import os
import socket
import struct
from collections.abc import Iterator

from bench.errors import BenchError
from bench.frames import CHANNEL, flow_client
from bench.topology import Host
from wire.address import Address
from wire.stun import MAGIC_COOKIE

# https://www.rfc-editor.org/rfc/rfc8656#section-17
_ALLOCATE, _CHANNEL_BIND, _SUCCESS = 0x0003, 0x0009, 0x0100
_CHANNEL_NUMBER, _LIFETIME, _XOR_PEER_ADDRESS = 0x000C, 0x000D, 0x0012
_XOR_RELAYED_ADDRESS, _REQUESTED_TRANSPORT = 0x0016, 0x0019
_LIFETIME_S = 3600
_UDP = 17
# type 2 | length of the attributes 2 | cookie 4 | transaction id 12
_HEADER = struct.Struct("!HHI12s")
_TRIES = 5


class TurnClients:
    """One allocation a flow, each with one channel to the same peer."""

    def __init__(self, host: Host, server: Address, peer: Address, flows: int) -> None:
        self._peer = peer
        self._sockets: list[socket.socket] = []
        self.ports: list[int] = []
        with host:
            for flow in range(flows):
                client = flow_client(flow)
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._sockets.append(sock)
                sock.settimeout(0.5)
                sock.bind((str(client.ip), client.port))
                sock.connect((str(server.ip), server.port))
                self.ports.append(_allocate(sock).port)
        self.bind_channels()

    def bind_channels(self) -> None:
        """A binding lasts 10 minutes, the permission of its peer's address 5 (RFC 8656 section 12)."""
        peer = _attribute(_XOR_PEER_ADDRESS, _xor(self._peer))
        for sock in self._sockets:
            channel = _attribute(_CHANNEL_NUMBER, struct.pack("!HH", CHANNEL, 0))
            _request(sock, _CHANNEL_BIND, channel + peer)

    def close(self) -> None:
        """Close every socket; allocations end with their server."""
        for sock in self._sockets:
            sock.close()


def _allocate(sock: socket.socket) -> Address:
    lifetime = _attribute(_LIFETIME, struct.pack("!I", _LIFETIME_S))
    transport = _attribute(_REQUESTED_TRANSPORT, struct.pack("!Bxxx", _UDP))
    for kind, value in _attributes(_request(sock, _ALLOCATE, transport + lifetime)):
        if kind == _XOR_RELAYED_ADDRESS:
            port, host = struct.unpack("!2xHI", value)
            return Address((host ^ MAGIC_COOKIE).to_bytes(4, "big"), port ^ MAGIC_COOKIE >> 16)
    raise BenchError("the TURN server names no relayed address")


def _request(sock: socket.socket, method: int, attributes: bytes) -> bytes:
    """The attributes of the answer."""
    transaction = os.urandom(12)
    for _ in range(_TRIES):
        sock.send(_HEADER.pack(method, len(attributes), MAGIC_COOKIE, transaction) + attributes)
        try:
            answer = sock.recv(2048)
        except TimeoutError:
            continue
        kind, length, _, answered = _HEADER.unpack_from(answer)
        if answered == transaction and kind == method | _SUCCESS:
            return answer[_HEADER.size : _HEADER.size + length]
        raise BenchError(f"the TURN server answers {kind:#06x} to {method:#06x}: {answer[20:].hex()}")
    raise BenchError(f"the TURN server does not answer {method:#06x}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        kind, length = struct.unpack_from("!HH", data)
        yield kind, data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


def _xor(address: Address) -> bytes:
    host = int.from_bytes(address.host, "big") ^ MAGIC_COOKIE
    return struct.pack("!BBHI", 0, 1, address.port ^ MAGIC_COOKIE >> 16, host)
