"""Tell the protocols that share one WebRTC port apart by their first byte (RFC 7983 section 7, RFC 9443)."""

from enum import Enum


class PacketClass(Enum):
    """What a datagram on a WebRTC port is."""

    STUN = "stun"
    ZRTP = "zrtp"
    DTLS = "dtls"
    TURN_CHANNEL = "turn_channel"
    RTP = "rtp"
    """RTP and RTCP, plain or secured: they are told apart by their second byte (RFC 5761 section 4)."""
    UNKNOWN = "unknown"


def _class_of(first_byte: int) -> PacketClass:
    # https://www.rfc-editor.org/rfc/rfc7983#section-7
    if first_byte <= 3:
        return PacketClass.STUN
    if 16 <= first_byte <= 19:
        return PacketClass.ZRTP
    if 20 <= first_byte <= 63:
        return PacketClass.DTLS
    if 64 <= first_byte <= 79:
        return PacketClass.TURN_CHANNEL
    if 128 <= first_byte <= 191:
        return PacketClass.RTP
    return PacketClass.UNKNOWN


_CLASSES = tuple(_class_of(first_byte) for first_byte in range(256))


def classify(datagram: bytes) -> PacketClass:
    """Class of a datagram by its first byte; an empty one is UNKNOWN."""
    return _CLASSES[datagram[0]] if datagram else PacketClass.UNKNOWN
