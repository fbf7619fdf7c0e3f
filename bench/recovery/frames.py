"""Frames of a link, taken apart: whose packet it is, and what. IPv4 and UDP; RTP headers are in clear in SRTP."""

from enum import Enum
from struct import Struct
from typing import NamedTuple

from wire.demux import PacketClass, classify
from wire.spp import HEADER_BYTES, MAGIC

_ETHERNET_BYTES, _UDP_BYTES = 14, 8
_IPV4, _UDP = b"\x08\x00", 17
# Type and length behind both MACs; then in IPv4 the protocol, and both addresses.
_ETHERTYPE, _PROTOCOL = slice(12, 14), 23
_ADDRESSES = Struct("!4s4s")
_PORTS = Struct("!HH")
# Behind SPP's magic: the client's address (mapped into 16 bytes), the VIP's, the client's port.
_SPP = Struct("!H12x4s16xH")
# RFC 3550 section 5.1: flags 1 | marker and payload type 1 | sequence number 2 | timestamp 4 | SSRC 4
_RTP = Struct("!xxHxxxxI")
# RFC 5761 section 4: second bytes of RTCP.
_RTCP_TYPES = range(192, 224)
_REQUEST = b"\x00\x01"
# What of a frame has to be kept to be read here: all headers, SPP among them, and RTP's.
SNAP_BYTES = 128

Endpoint = tuple[bytes, int]


class Kind(Enum):
    """What a payload is. PROMPT: an SPP header with nothing behind it."""

    MEDIA = "media"
    RTCP = "rtcp"
    DTLS = "dtls"
    CHECK = "check"
    STUN = "stun"
    PROMPT = "prompt"
    OTHER = "other"


class Seen(NamedTuple):
    """A UDP packet; ``ssrc`` and ``number`` are media's, else 0. ``client``: as SPP says where ``is_spp``."""

    source: Endpoint
    destination: Endpoint
    client: Endpoint | None
    kind: Kind
    ssrc: int
    number: int

    @property
    def is_spp(self) -> bool:
        """Whether it is a packet of the fleet's."""
        return self.client is not None


def read_frame_untrusted(frame: bytes) -> Seen | None:
    """None if it is no UDP over IPv4, or is cut where it would have to be read."""
    if frame[_ETHERTYPE] != _IPV4 or len(frame) <= 34 or frame[_PROTOCOL] != _UDP:
        return None
    udp = _ETHERNET_BYTES + (frame[_ETHERNET_BYTES] & 0x0F) * 4
    if len(frame) < udp + _UDP_BYTES:
        return None
    from_ip, to_ip = _ADDRESSES.unpack_from(frame, 26)
    from_port, to_port = _PORTS.unpack_from(frame, udp)
    # Short frames are padded to Ethernet's least.
    size = int.from_bytes(frame[udp + 4 : udp + 6], "big")
    payload = frame[udp + _UDP_BYTES : udp + size]
    client = None
    if len(payload) >= HEADER_BYTES:
        magic, client_ip, client_port = _SPP.unpack_from(payload)
        if magic == MAGIC:
            client = (client_ip, client_port)
            payload = payload[HEADER_BYTES:]
    kind, ssrc, number = _judge(payload, is_spp=client is not None)
    return Seen((from_ip, from_port), (to_ip, to_port), client, kind, ssrc, number)


def _judge(payload: bytes, *, is_spp: bool) -> tuple[Kind, int, int]:
    if is_spp and not payload:
        return Kind.PROMPT, 0, 0
    packet_class = classify(payload)
    if packet_class is PacketClass.RTP and len(payload) >= _RTP.size:
        if payload[1] in _RTCP_TYPES:
            return Kind.RTCP, 0, 0
        number, ssrc = _RTP.unpack_from(payload)
        return Kind.MEDIA, ssrc, number
    if packet_class is PacketClass.STUN:
        return (Kind.CHECK if payload[:2] == _REQUEST else Kind.STUN), 0, 0
    return (Kind.DTLS if packet_class is PacketClass.DTLS else Kind.OTHER), 0, 0
