"""An attacker on the client's host: hears what the client sends, sends from an address of its own, and in the client's name."""

import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import aiohttp

from bench.live_frames import checksum
from bench.path import Kind, kind_of
from host.keystore import load_keys
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance
from tests.transceiver.offers import VOICE
from wire.address import Address
from wire.ufrag import open_ufrag_untrusted

IP = "203.0.113.66"
# What leaves a host is shown to those only who ask for everything.
_ETH_P_ALL = 0x0003
# version and header length, service, length, id, fragment, lifetime, protocol, checksum, source, destination
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PSEUDO = struct.Struct("!4s4sBBH")


@dataclass
class Attacker:
    """``captured``: what the victim sent, by kind; ``bytes_sent`` and ``received``: of its own address."""

    vip: Address
    sniffing: socket.socket
    own: socket.socket
    spoofing: socket.socket
    captured: dict[Kind, list[bytes]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    bytes_sent: int = 0
    received: list[bytes] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def on(cls, network: Network, vip: str) -> Iterator[Self]:
        """On the host ``here``."""
        network.here.run_ip(f"address add {IP}/24 dev eth0")
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as sniffing,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as spoofing,
        ):
            sniffing.bind(("eth0", _ETH_P_ALL))
            own.bind((IP, 0))
            for sock in (sniffing, own):
                sock.setblocking(False)
            yield cls(Address.parse(vip), sniffing, own, spoofing)

    def listen(self, victim: Address) -> None:
        """Take what has come by since the last time."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._note(self.sniffing.recv(65_535), victim)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.received.append(self.own.recv(65_535))

    def send(self, datagram: bytes) -> None:
        """From its own address."""
        self.own.sendto(datagram, (str(self.vip.ip), self.vip.port))
        self.bytes_sent += len(datagram)

    def send_as(self, victim: Address, datagram: bytes) -> None:
        """From the victim's."""
        length = _UDP.size + len(datagram)
        head = _UDP.pack(victim.port, self.vip.port, length, 0)
        pseudo = _PSEUDO.pack(victim.host, self.vip.host, 0, socket.IPPROTO_UDP, length)
        summed = checksum(pseudo + head + datagram) or 0xFFFF
        udp = _UDP.pack(victim.port, self.vip.port, length, summed) + datagram
        # the kernel fills in the checksum of the IP header
        ip = _IP.pack(0x45, 0, _IP.size + length, 0, 0, 64, socket.IPPROTO_UDP, 0, victim.host, self.vip.host)
        self.spoofing.sendto(ip + udp, (str(self.vip.ip), 0))

    def received_kinds(self) -> Counter[Kind]:
        """What came to its own address."""
        return Counter(map(kind_of, self.received))

    def _note(self, packet: bytes, victim: Address) -> None:
        if packet[0] >> 4 != 4:
            return
        header_bytes = 4 * (packet[0] & 15)
        source, destination = packet[12:16], packet[16:20]
        if packet[9] != socket.IPPROTO_UDP or (source, destination) != (victim.host, self.vip.host):
            return
        source_port, destination_port, length, _ = _UDP.unpack_from(packet, header_bytes)
        if (source_port, destination_port) == (victim.port, self.vip.port):
            datagram = packet[header_bytes + _UDP.size : header_bytes + length]
            self.captured[kind_of(datagram)].append(datagram)


@dataclass(frozen=True)
class RawSession:
    """A session that was signaled, and that nobody has joined: whoever knows these may check."""

    server_ufrag: str
    client_ufrag: str
    ice_pwd: str
    transceiver: str

    @property
    def username(self) -> str:
        """Of a check (RFC 8445 section 7.2.2)."""
        return f"{self.server_ufrag}:{self.client_ufrag}"


async def raw_session(instance: Instance) -> RawSession:
    """By an offer whose DTLS certificate nobody has."""
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {instance.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{instance.url}whip", data=VOICE) as response,
    ):
        answer = await response.text()
        assert response.status == 201, answer
    server_ufrag, ice_pwd = _value(answer, "ice-ufrag"), _value(answer, "ice-pwd")
    keys = load_keys(instance.state_dir.keys_file)
    transceiver = open_ufrag_untrusted(keys, server_ufrag).transceiver
    return RawSession(server_ufrag, _value(VOICE, "ice-ufrag"), ice_pwd, str(transceiver))


def _value(sdp: str, name: str) -> str:
    return next(line.partition(":")[2] for line in sdp.splitlines() if line.startswith(f"a={name}:"))
