"""Many sessions on one UDP socket, behind the relays.

Checks find their session by the ufrag, everything else by the address that a check validated. Datagrams carry SPP in both
directions: the socket's peer is always a relay, the client is in the header.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from host import sockets
from transceiver.ice import CheckResult, IceLiteAgent, Path
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.errors import WireError
from wire.spp import HEADER_BYTES, decode_header_untrusted, encode_header
from wire.stun import StunMessage, parse_stun_untrusted

_RECEIVE_BYTES = 4096
_BATCH = 64

# A call's packets name the same few addresses again and again.
_relay_of = lru_cache(maxsize=4096)(Address.from_host)
_sockaddr = lru_cache(maxsize=4096)(sockets.sockaddr)
_header = lru_cache(maxsize=16_384)(encode_header)


class MuxEndpoint(Protocol):
    """What a session shows to the mux."""

    agent: IceLiteAgent

    def path_validated(self) -> None:
        """A fresh check was answered."""
        ...

    def dtls_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        """A DTLS datagram from a validated path."""
        ...

    def srtp_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        """An SRTP or SRTCP packet from a validated path."""
        ...


class Mux:
    """The socket, the index of sessions, and counters by outcome."""

    def __init__(
        self,
        sock: socket.socket,
        relay_networks: tuple[IPv4Network | IPv6Network, ...],
        clock: Callable[[], float],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._sock = sock
        self._clock = clock
        self._by_ufrag: dict[str, MuxEndpoint] = {}
        # By SPP header, which names the path: what arrives is found without being taken apart.
        self._by_path: dict[bytes, tuple[MuxEndpoint, Path]] = {}
        self._is_relay = lru_cache(maxsize=4096)(
            lambda host: any(Address(host, 0).ip in network for network in relay_networks)
        )

    def start(self) -> None:
        """Read the socket from the running event loop."""
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def stop(self) -> None:
        """Stop reading and close the socket."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def add(self, endpoint: MuxEndpoint) -> None:
        """Serve a session under its ufrags; call again after an ICE restart."""
        for server_ufrag in endpoint.agent.server_ufrags:
            self._by_ufrag[server_ufrag] = endpoint

    def remove_ufrags(self, server_ufrags: list[str]) -> None:
        """Ufrags that are no longer valid."""
        for server_ufrag in server_ufrags:
            self._by_ufrag.pop(server_ufrag, None)

    def remove(self, endpoint: MuxEndpoint) -> None:
        """Forget a session."""
        self.remove_ufrags(list(endpoint.agent.server_ufrags))
        for path in endpoint.agent.paths:
            self._remove_path(endpoint, path)

    def send(self, datagram: bytes, path: Path, relay: Address) -> None:
        """Send to a client through a relay; a refusal by the kernel is counted, as a lost packet would be."""
        try:
            self._sock.sendto(_header(*path) + datagram, _sockaddr(relay))
        except OSError:
            self.counters["send_failed"] += 1

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                datagram, source = self._sock.recvfrom(_RECEIVE_BYTES)
            except OSError:  # empty, or an error that the kernel queued for an earlier send
                return
            self.receive_untrusted(datagram, _relay_of(source[0], source[1]))

    def receive_untrusted(self, datagram: bytes, relay: Address) -> None:
        """Handle one datagram of the socket; every outcome is counted, none raises."""
        if not self._is_relay(relay.host):
            self.counters["foreign_relay"] += 1
            return
        payload = datagram[HEADER_BYTES:]
        packet_class = classify(payload)
        if packet_class is PacketClass.RTP or packet_class is PacketClass.DTLS:
            known = self._by_path.get(datagram[:HEADER_BYTES])
            if known is not None:
                self._receive_media(known, payload, packet_class, relay)
                return
        try:
            self._receive_other_untrusted(datagram, payload, packet_class, relay)
        except WireError as error:
            self.counters[error.fault.value] += 1

    def _receive_media(
        self, known: tuple[MuxEndpoint, Path], datagram: bytes, packet_class: PacketClass, relay: Address
    ) -> None:
        endpoint, path = known
        if not endpoint.agent.receive_datagram(len(datagram), path):
            self.counters["unknown_path"] += 1
            return
        self.counters["media"] += 1
        if packet_class is PacketClass.RTP:
            endpoint.srtp_received(datagram, path, relay)
        else:
            endpoint.agent.receive_dtls(path, relay)
            endpoint.dtls_received(datagram, path, relay)

    def _receive_other_untrusted(
        self, datagram: bytes, payload: bytes, packet_class: PacketClass, relay: Address
    ) -> None:
        path = Path(*decode_header_untrusted(datagram))
        if not payload:
            self._receive_question(path, relay)
        elif packet_class is PacketClass.STUN:
            self._receive_stun_untrusted(payload, path, relay)
        elif packet_class in (PacketClass.DTLS, PacketClass.RTP):
            self.counters["unknown_path"] += 1
        else:
            self.counters["not_webrtc"] += 1

    def _receive_question(self, path: Path, relay: Address) -> None:
        """A relay that found us in a cache asks whether a session here has that path: if so, it gets the bare header back.

        Nothing of the session changes: who asks need not carry it.
        """
        endpoint = self._owner(path)
        if endpoint is None or endpoint.agent.is_expired(self._clock()):
            self.counters["not_confirmed"] += 1
            return
        self.counters["confirmed"] += 1
        self.send(b"", path, relay)

    def _receive_stun_untrusted(self, datagram: bytes, path: Path, relay: Address) -> None:
        message = parse_stun_untrusted(datagram)
        if not message.is_binding_request:
            self.counters["stun_non_request"] += 1
            return
        ufrags = message.ufrags_untrusted
        endpoint = self._by_ufrag.get(ufrags[0])
        if endpoint is None:
            self.counters["unknown_ufrag"] += 1
            return
        self._receive_check(endpoint, datagram, message, ufrags, path, relay)

    def _receive_check(
        self,
        endpoint: MuxEndpoint,
        datagram: bytes,
        message: StunMessage,
        ufrags: tuple[str, str],
        path: Path,
        relay: Address,
    ) -> None:
        now = self._clock()
        owner = self._owner(path)
        if owner is not None and owner is not endpoint and owner.agent.is_active_on(path, now):
            # Somebody with a session of his own claims the address of a live one: his media would never be ours.
            self.counters["path_contested"] += 1
            return
        result: CheckResult = endpoint.agent.receive_check(datagram, message, ufrags, path, relay, now)
        if result.refusal is not None:
            self.counters[result.refusal.value] += 1
            return
        self.counters["checks"] += 1
        self.send(result.answer, path, relay)
        if result.removed is not None:
            self._remove_path(endpoint, result.removed)
        if result.validated:
            self._by_path[_header(*path)] = endpoint, path
            endpoint.path_validated()

    def _owner(self, path: Path) -> MuxEndpoint | None:
        known = self._by_path.get(_header(*path))
        return None if known is None else known[0]

    def _remove_path(self, endpoint: MuxEndpoint, path: Path) -> None:
        if self._owner(path) is endpoint:
            del self._by_path[_header(*path)]
