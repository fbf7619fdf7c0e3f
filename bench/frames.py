"""The frames that the generator sends: whose they are, what is fixed in them, and where the rest goes.

A payload looks like RTP and says what it is: the sink counts nothing else. ``c/generator.c`` writes per frame what
``Template.fill`` shows in Python; ``c/sink.c`` reads it.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.live_frames import checksum
from wire.address import Address
from wire.spp import HEADER_BYTES as SPP_BYTES
from wire.spp import encode_header

# Flow i is that of client FIRST_CLIENT + i / 16, port FIRST_PORT + i % 16: RFC 2544's own network, 198.18.0.0/15, has
# room for two million, and no client has more flows than a relay takes from one address.
FLOWS_A_CLIENT = 16
FIRST_CLIENT = int.from_bytes(bytes((198, 18, 1, 0)), "big")
FIRST_PORT = 20_000
CLIENT_NETWORK = "198.18.0.0/15"

# Beginning of RTP, then: total length - 20 2 (where STUN has its own length) | 0 4 | magic 4 | flow 4 | time sent 8
_MARKER = struct.Struct("!BBHI4s")
_FLOW_AND_TIME = struct.Struct("=IQ")
MAGIC = b"rlyb"
MARKER_BYTES = _MARKER.size + _FLOW_AND_TIME.size
_MARKER_FLOW = _MARKER.size
_LENGTH_OFFSET = 20

ETHERNET_BYTES, IP_BYTES, UDP_BYTES = 14, 20, 8
PAYLOAD_AT = ETHERNET_BYTES + IP_BYTES + UDP_BYTES
IP_SOURCE_AT, IP_DESTINATION_AT = ETHERNET_BYTES + 12, ETHERNET_BYTES + 16
SOURCE_PORT_AT, DESTINATION_PORT_AT = PAYLOAD_AT - 8, PAYLOAD_AT - 6
SPP_CLIENT_AT, SPP_CLIENT_PORT_AT = PAYLOAD_AT + 2 + 12, PAYLOAD_AT + 34
CHANNEL = 0x4000
_CHANNEL_BYTES = 4
_IPV4, _UDP = b"\x08\x00", 17


class Framing(IntEnum):
    """What stands in front of the payload; the value is its length."""

    PLAIN = 0
    CHANNEL_DATA = _CHANNEL_BYTES  # RFC 8656 section 12.4
    SPP = SPP_BYTES

    @property
    def marker_at(self) -> int:
        """Where the payload begins in the frame."""
        return PAYLOAD_AT + self.value


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Packets from one host to the next; None stands for the flow's own client.

    vip: what the SPP header names. ports: the destination's by flow, in place of the one of ``destination``.
    sources, destinations: how many hosts take turns by flow, from that address on; of one of the two only.
    """

    source: Address | None
    destination: Address | None
    framing: Framing = Framing.PLAIN
    vip: Address | None = None
    ports: tuple[int, ...] = ()
    sources: int = 1
    destinations: int = 1

    @property
    def turns(self) -> int:
        """How many hosts take turns."""
        return max(self.sources, self.destinations)

    @property
    def turn_at(self) -> int:
        """Where the frame has the host whose turn it is; 0 for nowhere."""
        return IP_SOURCE_AT if self.sources > 1 else IP_DESTINATION_AT if self.destinations > 1 else 0

    @property
    def first_of_turns(self) -> Address | None:
        """The host of flow 0."""
        return self.source if self.sources > 1 else self.destination

    @property
    def host_at(self) -> int:
        """Where the frame has the flow's client address; 0 for nowhere."""
        if self.framing is Framing.SPP:
            return SPP_CLIENT_AT
        return IP_SOURCE_AT if self.source is None else IP_DESTINATION_AT if self.destination is None else 0

    @property
    def port_at(self) -> int:
        """Where the frame has the flow's port, or its entry of ``ports``; 0 for nowhere."""
        if self.ports:
            return DESTINATION_PORT_AT
        return {0: 0, SPP_CLIENT_AT: SPP_CLIENT_PORT_AT, IP_SOURCE_AT: SOURCE_PORT_AT}.get(
            self.host_at, DESTINATION_PORT_AT
        )


@dataclass(frozen=True)
class Template:
    """A frame with zeros where flow and time go, and the sums of all else for its checksums, as the machine adds words."""

    leg: Leg
    frame: bytes
    ip_sum: int
    udp_sum: int

    @property
    def header(self) -> bytes:
        """What the generator writes anew for each frame."""
        return self.frame[: self.leg.framing.marker_at + MARKER_BYTES]

    def fill(self, flow: int, sent_ns: int) -> bytes:
        """The frame of a flow, as the generator sends it."""
        frame = bytearray(self.frame)
        leg, marker_at = self.leg, self.leg.framing.marker_at
        client = flow_client(flow)
        variable = _FLOW_AND_TIME.pack(flow, sent_ns)
        frame[marker_at + _MARKER_FLOW : marker_at + MARKER_BYTES] = variable
        ip_sum, udp_sum = self.ip_sum, self.udp_sum + sum_words(variable)
        if leg.host_at:
            frame[leg.host_at : leg.host_at + 4] = client.host
            udp_sum += sum_words(client.host)
            ip_sum += sum_words(client.host) if leg.host_at < PAYLOAD_AT else 0
        if leg.port_at:
            port = (leg.ports[flow] if leg.ports else client.port).to_bytes(2, "big")
            frame[leg.port_at : leg.port_at + 2] = port
            udp_sum += sum_words(port)
        if leg.turn_at:
            # within the last byte of the address (make_template sees to it), so the sums grow as it does
            turn = flow % leg.turns
            frame[leg.turn_at + 3] += turn
            ip_sum += sum_words(bytes((0, turn)))
            udp_sum += sum_words(bytes((0, turn)))
        struct.pack_into("=H", frame, ETHERNET_BYTES + 10, _complete(ip_sum))
        struct.pack_into("=H", frame, PAYLOAD_AT - 2, _complete(udp_sum) or 0xFFFF)
        return bytes(frame)

    def fill_many(self, flows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The frames of these flows, one a row, as ``fill`` makes them; time sent is 0."""
        leg, count = self.leg, len(flows)
        frames = np.tile(np.frombuffer(self.frame, np.uint8), (count, 1))
        ip_sum, udp_sum = np.full(count, self.ip_sum), np.full(count, self.udp_sum)

        def put(at: int, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
            frames[:, at : at + values.itemsize] = values.view(np.uint8).reshape(count, -1)
            words: npt.NDArray[np.int64] = values.view("=u2").reshape(count, -1).sum(axis=1, dtype=np.int64)
            return words

        udp_sum += put(leg.framing.marker_at + _MARKER_FLOW, flows.astype("=u4"))
        if leg.host_at:
            words = put(leg.host_at, (FIRST_CLIENT + flows // FLOWS_A_CLIENT).astype(">u4"))
            udp_sum += words
            ip_sum += words if leg.host_at < PAYLOAD_AT else 0
        if leg.port_at:
            ports = np.array(leg.ports)[flows] if leg.ports else FIRST_PORT + flows % FLOWS_A_CLIENT
            udp_sum += put(leg.port_at, ports.astype(">u2"))
        if leg.turn_at:
            turns = flows % leg.turns
            frames[:, leg.turn_at + 3] += turns.astype(np.uint8)
            words = turns.astype(">u2").view("=u2").astype(np.int64)
            ip_sum += words
            udp_sum += words
        put(ETHERNET_BYTES + 10, _complete_all(ip_sum))
        udp = _complete_all(udp_sum)
        put(PAYLOAD_AT - 2, np.where(udp == 0, np.uint16(0xFFFF), udp))
        return frames


def flow_client(flow: int) -> Address:
    """The client of a flow."""
    host, port = divmod(flow, FLOWS_A_CLIENT)
    return Address((FIRST_CLIENT + host).to_bytes(4, "big"), FIRST_PORT + port)


def make_template(leg: Leg, payload_bytes: int, to_mac: bytes, from_mac: bytes) -> Template:
    """``payload_bytes`` are the client's, whatever is in front of them. Raises ValueError."""
    if not MARKER_BYTES <= payload_bytes <= 1400:
        raise ValueError(f"payload: {payload_bytes} bytes, not {MARKER_BYTES} to 1400")
    payload = _in_front(leg, payload_bytes) + mark(payload_bytes)
    nobody = Address(bytes(4), 0)
    source, destination = leg.source or nobody, leg.destination or nobody
    if leg.turn_at and (source, destination)[leg.turn_at == IP_DESTINATION_AT].host[-1] + leg.turns > 256:
        raise ValueError(f"{leg.turns} hosts from {leg.first_of_turns} on are not of one /24")
    if leg.ports:
        destination = Address(destination.host, 0)
    ip, udp, pseudo = _headers(source, destination, len(payload))
    frame = to_mac + from_mac + _IPV4 + ip + udp + payload
    return Template(leg, frame, sum_words(ip), sum_words(pseudo + udp + payload))


def udp_frame(source: Address, destination: Address, payload: bytes, to_mac: bytes, from_mac: bytes) -> bytes:
    """An Ethernet frame with full checksums."""
    ip, udp, pseudo = _headers(source, destination, len(payload))
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp + payload) or 0xFFFF)
    return to_mac + from_mac + _IPV4 + ip + udp + payload


def mark(payload_bytes: int) -> bytes:
    """A payload of that length that the sink knows, with zeros for flow and time."""
    head = _MARKER.pack(0x80, 111, payload_bytes - _LENGTH_OFFSET, 0, MAGIC) + bytes(_FLOW_AND_TIME.size)
    return head + bytes(0x55 + i % 64 for i in range(payload_bytes - len(head)))


def transaction_id(flow: int) -> bytes:
    """Of a STUN message: the sink finds magic and flow where it does in a payload of ``mark``."""
    return MAGIC + struct.pack("=II", flow, 0)


def sum_words(data: bytes) -> int:
    """16-bit words in the order of the machine, as ones' complement allows (RFC 1071 section 2)."""
    return int(sum(struct.unpack(f"={(len(data) + 1) // 2}H", data + bytes(len(data) % 2))))


def _headers(source: Address, destination: Address, payload_bytes: int) -> tuple[bytes, bytes, bytes]:
    """IP and UDP with zeros for checksums, and RFC 768's pseudo header."""
    udp_length = UDP_BYTES + payload_bytes
    addresses = source.host + destination.host
    # version and header length, DSCP EF (RFC 8837), length, identification, do not fragment, TTL, protocol, checksum
    ip = struct.pack("!BBHHHBBH", 0x45, 0xB8, IP_BYTES + udp_length, 0, 0x4000, 64, _UDP, 0) + addresses
    udp = struct.pack("!HHHH", source.port, destination.port, udp_length, 0)
    return ip, udp, addresses + struct.pack("!HH", _UDP, udp_length)


def _in_front(leg: Leg, payload_bytes: int) -> bytes:
    if leg.framing is Framing.CHANNEL_DATA:
        return struct.pack("!HH", CHANNEL, payload_bytes)
    if leg.framing is Framing.SPP:
        if leg.vip is None:
            raise ValueError("SPP names a VIP")
        return encode_header(Address(bytes(4), 0), leg.vip)
    return b""


def _complete_all(totals: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """``_complete`` of each."""
    while (totals > 0xFFFF).any():
        totals = (totals & 0xFFFF) + (totals >> 16)
    return (0xFFFF ^ totals).astype(np.uint16)


def _complete(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total
