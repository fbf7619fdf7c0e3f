"""STUN (RFC 8489) as far as ICE (RFC 8445) needs it: a bounded reader, the integrity check, three writers."""

import hmac
from binascii import crc32
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from wire.address import Address
from wire.errors import WireError, WireFault

# https://www.rfc-editor.org/rfc/rfc8489#section-5
# type 2 (two zero bits, then method and class interleaved) | length of the attributes 2 | cookie 4 | transaction id 12
_HEADER = Struct("!HHI12s")
# https://www.rfc-editor.org/rfc/rfc8489#section-14: type 2 | length 2, then the value, padded to 4
_ATTRIBUTE = Struct("!HH")

HEADER_BYTES = _HEADER.size
MAGIC_COOKIE = 0x2112A442
BINDING = 0x0001

_CLASS_MASK = 0x0110
_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4, "big")
_INTEGRITY_BYTES = 20  # HMAC-SHA1
_INTEGRITY_ATTRIBUTE_BYTES = _ATTRIBUTE.size + _INTEGRITY_BYTES
_FINGERPRINT_ATTRIBUTE_BYTES = _ATTRIBUTE.size + 4
_FINGERPRINT_XOR = 0x5354554E

# A check of Chromium or Firefox has 6 to 9; the bound keeps a 64 KB datagram of empty attributes cheap.
MAX_ATTRIBUTES = 32
# https://www.rfc-editor.org/rfc/rfc8489#section-14.3: fewer than 509 bytes
MAX_USERNAME_BYTES = 508


class StunClass(IntEnum):
    """The class bits of a message type (RFC 8489 section 5)."""

    REQUEST = 0x000
    INDICATION = 0x010
    SUCCESS = 0x100
    ERROR = 0x110


class Attribute(IntEnum):
    """Attribute types that are read or written here (RFC 8489 section 18.3, RFC 8445 section 20.1)."""

    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A


@dataclass(frozen=True, slots=True)
class StunMessage:
    """A well-formed message; well-formed says nothing of who sent it (``verify_integrity``).

    ``attributes`` holds the first of each type that stands before MESSAGE-INTEGRITY: what follows it is not
    authenticated (RFC 8489 section 14.5). ``integrity_offset`` is where MESSAGE-INTEGRITY starts, if it is there.
    """

    method: int
    message_class: StunClass
    transaction_id: bytes
    attributes: dict[int, bytes]
    integrity_offset: int | None

    @property
    def is_binding_request(self) -> bool:
        """Whether this is the message that ICE checks and consent checks consist of."""
        return self.method == BINDING and self.message_class is StunClass.REQUEST

    @property
    def use_candidate(self) -> bool:
        """Whether the peer nominates this path (RFC 8445 section 7.1.2)."""
        return Attribute.USE_CANDIDATE in self.attributes

    @property
    def ufrags_untrusted(self) -> tuple[str, str]:
        """(server_ufrag, client_ufrag) of a check that came to the server (RFC 8445 section 7.2.2).

        Raises WireError (STUN_USERNAME) when USERNAME is absent or is not of the form ``ours:theirs``.
        """
        username = self.attributes.get(Attribute.USERNAME)
        if username is None:
            raise WireError(WireFault.STUN_USERNAME, "no USERNAME before MESSAGE-INTEGRITY")
        server_ufrag, colon, client_ufrag = username.partition(b":")
        if not (server_ufrag and colon and client_ufrag and username.isascii()):
            raise WireError(WireFault.STUN_USERNAME, "USERNAME is not server_ufrag:client_ufrag")
        return server_ufrag.decode("ascii"), client_ufrag.decode("ascii")


def parse_stun_untrusted(datagram: bytes) -> StunMessage:
    """Read one STUN message that fills the datagram. Raises WireError.

    Refused: a wrong cookie, leading bits or length, attributes that overrun, more than MAX_ATTRIBUTES, a second
    USERNAME, MESSAGE-INTEGRITY of a wrong size, a FINGERPRINT that does not fit or is not last.
    """
    if len(datagram) < HEADER_BYTES:
        raise WireError(WireFault.STUN_MALFORMED, f"{len(datagram)} bytes are too few for a STUN header")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(datagram)
    if message_type & 0xC000 or cookie != MAGIC_COOKIE:
        raise WireError(WireFault.STUN_MALFORMED, "leading bits or magic cookie are not STUN's")
    if length % 4 or HEADER_BYTES + length != len(datagram):
        raise WireError(WireFault.STUN_MALFORMED, f"length {length} does not fit {len(datagram)} bytes")
    attributes, integrity_offset = _parse_attributes(datagram)
    return StunMessage(
        message_type & ~_CLASS_MASK & 0x3FFF,
        StunClass(message_type & _CLASS_MASK),
        transaction_id,
        attributes,
        integrity_offset,
    )


def _parse_attributes(datagram: bytes) -> tuple[dict[int, bytes], int | None]:
    attributes: dict[int, bytes] = {}
    integrity_offset: int | None = None
    offset, end = HEADER_BYTES, len(datagram)
    for _ in range(MAX_ATTRIBUTES):
        if offset == end:
            return attributes, integrity_offset
        # The length is a multiple of 4 and so is every step: at least one whole attribute header is left here.
        kind, length = _ATTRIBUTE.unpack_from(datagram, offset)
        following = offset + _ATTRIBUTE.size + (length + 3 & ~3)
        if following > end:
            raise WireError(WireFault.STUN_MALFORMED, f"attribute {kind:#06x} overruns the message")
        value = datagram[offset + _ATTRIBUTE.size : offset + _ATTRIBUTE.size + length]
        if kind == Attribute.FINGERPRINT:
            _check_fingerprint(datagram, offset, value, following)
        elif integrity_offset is None:
            if kind == Attribute.MESSAGE_INTEGRITY:
                if length != _INTEGRITY_BYTES:
                    raise WireError(WireFault.STUN_MALFORMED, f"MESSAGE-INTEGRITY has {length} bytes")
                integrity_offset = offset
            elif kind == Attribute.USERNAME and (kind in attributes or length > MAX_USERNAME_BYTES):
                raise WireError(WireFault.STUN_USERNAME, "USERNAME is doubled or too long")
            attributes.setdefault(kind, value)
        offset = following
    if offset == end:
        return attributes, integrity_offset
    raise WireError(WireFault.STUN_MALFORMED, f"more than {MAX_ATTRIBUTES} attributes")


def _check_fingerprint(datagram: bytes, offset: int, value: bytes, following: int) -> None:
    # https://www.rfc-editor.org/rfc/rfc8489#section-14.7
    if following != len(datagram) or len(value) != 4:
        raise WireError(WireFault.STUN_MALFORMED, "FINGERPRINT is not last or not 4 bytes")
    if int.from_bytes(value, "big") != crc32(datagram[:offset]) ^ _FINGERPRINT_XOR:
        raise WireError(WireFault.STUN_FINGERPRINT, "FINGERPRINT does not fit the message")


def verify_integrity(datagram: bytes, message: StunMessage, key: bytes) -> bool:
    """Whether MESSAGE-INTEGRITY is there and fits ``key``, the short-term credential (RFC 8489 section 14.5)."""
    offset = message.integrity_offset
    if offset is None:
        return False
    expected = _integrity(datagram[:offset], key)
    start = offset + _ATTRIBUTE.size
    return hmac.compare_digest(expected, datagram[start : start + _INTEGRITY_BYTES])


def write_binding_request(
    transaction_id: bytes,
    username: str,
    key: bytes,
    *,
    priority: int = 0x7E0000FF,
    controlling_tie_breaker: int | None = None,
    controlled_tie_breaker: int | None = None,
    use_candidate: bool = False,
) -> bytes:
    """A connectivity or consent check (RFC 8445 section 7.1, RFC 7675 section 5.1)."""
    attributes = [(Attribute.USERNAME, username.encode()), (Attribute.PRIORITY, priority.to_bytes(4, "big"))]
    if controlling_tie_breaker is not None:
        attributes.append((Attribute.ICE_CONTROLLING, controlling_tie_breaker.to_bytes(8, "big")))
    if controlled_tie_breaker is not None:
        attributes.append((Attribute.ICE_CONTROLLED, controlled_tie_breaker.to_bytes(8, "big")))
    if use_candidate:
        attributes.append((Attribute.USE_CANDIDATE, b""))
    return _write(StunClass.REQUEST, transaction_id, attributes, key)


def write_binding_success(transaction_id: bytes, mapped: Address, key: bytes) -> bytes:
    """The answer to a check; ``mapped`` is the address that the client's packet came from (RFC 8489 section 14.2)."""
    pad = _COOKIE_BYTES + transaction_id
    host = bytes(a ^ b for a, b in zip(mapped.host, pad, strict=False))
    family = 1 if mapped.family == 4 else 2
    value = bytes((0, family)) + (mapped.port ^ MAGIC_COOKIE >> 16).to_bytes(2, "big") + host
    return _write(StunClass.SUCCESS, transaction_id, [(Attribute.XOR_MAPPED_ADDRESS, value)], key)


def write_binding_error(transaction_id: bytes, code: int, reason: str, key: bytes) -> bytes:
    """An error answer, as 487 Role Conflict (RFC 8489 section 14.8)."""
    value = bytes((0, 0, code // 100, code % 100)) + reason.encode()
    return _write(StunClass.ERROR, transaction_id, [(Attribute.ERROR_CODE, value)], key)


def _write(
    message_class: StunClass, transaction_id: bytes, attributes: list[tuple[Attribute, bytes]], key: bytes
) -> bytes:
    body = b"".join(_attribute(kind, value) for kind, value in attributes)
    length = len(body) + _INTEGRITY_ATTRIBUTE_BYTES + _FINGERPRINT_ATTRIBUTE_BYTES
    message = _HEADER.pack(BINDING | message_class, length, MAGIC_COOKIE, transaction_id) + body
    message += _attribute(Attribute.MESSAGE_INTEGRITY, _integrity(message, key))
    return message + _attribute(Attribute.FINGERPRINT, (crc32(message) ^ _FINGERPRINT_XOR).to_bytes(4, "big"))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _integrity(before: bytes, key: bytes) -> bytes:
    # https://www.rfc-editor.org/rfc/rfc8489#section-14.5: the length counts up to and with MESSAGE-INTEGRITY
    length = len(before) - HEADER_BYTES + _INTEGRITY_ATTRIBUTE_BYTES
    return hmac.digest(key, before[:2] + length.to_bytes(2, "big") + before[4:], "sha1")
