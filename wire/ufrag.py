"""The sealed ufrag: a routing hint that a client carries in its ICE username and only the fleet can read.

ice-chars are ``A-Z a-z 0-9 + /`` (RFC 8839 section 5.4), so the text form is standard base64 without padding.
The ufrag travels in clear and authorises nothing but routing.
"""

import hmac
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from struct import Struct

from cryptography.exceptions import InvalidTag

from wire.address import Address
from wire.errors import WireError, WireFault
from wire.keys import FleetKey, KeyRing

# version and family 1 | cluster id 2 | transceiver address 4 or 16 | port 2 | issued_at 4 (unix s) | session nonce 5
_HINTS = {4: Struct("!BH4sHI5s"), 6: Struct("!BH16sHI5s")}
_VERSION = 1
_TAG_BYTES = 16
NONCE_BYTES = 5
# 1 byte key id, then AES-SIV's tag and ciphertext: 35 bytes = 47 chars (IPv4), 47 bytes = 63 chars (IPv6)
_SEALED_BYTES = {1 + _TAG_BYTES + hint.size for hint in _HINTS.values()}
UFRAG_CHARS = frozenset(-(-size * 4 // 3) for size in _SEALED_BYTES)
ICE_PWD_CHARS = 32
# Behind the key id: 48 bits of the SIV.
_UFRAG_TAG = slice(2, 10)


@dataclass(frozen=True, slots=True)
class RouteHint:
    """Where a session lives. ``issued_at`` is unix seconds; ``nonce`` (5 bytes) tells sessions apart."""

    cluster_id: int
    transceiver: Address
    issued_at: int
    nonce: bytes


def seal_ufrag(keys: KeyRing, hint: RouteHint) -> str:
    """The server_ufrag for a session: 47 ice-chars for an IPv4 transceiver, 63 for IPv6."""
    family = hint.transceiver.family
    plain = _HINTS[family].pack(
        _VERSION << 4 | family,
        hint.cluster_id,
        hint.transceiver.host,
        hint.transceiver.port,
        hint.issued_at,
        hint.nonce,
    )
    key_id = bytes((keys.sealing.key_id,))
    return b64encode(key_id + keys.sealing.ufrag.encrypt(plain, [key_id])).decode().rstrip("=")


def open_ufrag_untrusted(keys: KeyRing, ufrag: str) -> RouteHint:
    """Unseal the hint. Raises WireError: UFRAG_FORGED, or UFRAG_UNKNOWN_KEY for a key id that is not in the ring.

    Only the canonical text form opens, so that a session has exactly one ufrag. Age and network are the relay's to judge.
    """
    sealed = _decode(ufrag)
    return _unseal(_key_of(keys, sealed), sealed)


def open_session_untrusted(keys: KeyRing, ufrag: str) -> tuple[RouteHint, str]:
    """The hint and the ice-pwd of a sealed ufrag, at the price of one. Raises WireError as ``open_ufrag_untrusted``."""
    sealed = _decode(ufrag)
    key = _key_of(keys, sealed)
    return _unseal(key, sealed), _ice_pwd(key, ufrag)


def _unseal(key: FleetKey, sealed: bytes) -> RouteHint:
    try:
        plain = key.ufrag.decrypt(sealed[1:], [sealed[:1]])
    except InvalidTag:
        raise WireError(WireFault.UFRAG_FORGED, f"ufrag does not open with key {key.key_id}") from None
    family = plain[0] & 0x0F
    layout = _HINTS.get(family)
    if plain[0] >> 4 != _VERSION or layout is None or layout.size != len(plain):
        raise WireError(WireFault.UFRAG_FORGED, f"hint of unknown version or family {plain[0]:#04x}")
    _, cluster_id, host, port, issued_at, nonce = layout.unpack(plain)
    return RouteHint(cluster_id, Address(host, port), issued_at, nonce)


def ufrag_tag(ufrag: str) -> str:
    """What tells a sealed ufrag from others: 8 characters of its SIV, which is a keyed hash of the hint.

    Who forges a ufrag with the tag of another has seen that one, and could as well send it as it is.
    """
    return ufrag[_UFRAG_TAG]


def derive_ice_pwd(keys: KeyRing, ufrag: str) -> str:
    """The ice-pwd of a sealed ufrag: 32 ice-chars, the same for everyone who holds the key that sealed it.

    Raises WireError as ``open_ufrag_untrusted`` does, but does not unseal.
    """
    return _ice_pwd(_key_of(keys, _decode(ufrag)), ufrag)


def _ice_pwd(key: FleetKey, ufrag: str) -> str:
    return b64encode(hmac.digest(key.ice_pwd, ufrag.encode(), "sha256")).decode()[:ICE_PWD_CHARS]


def _decode(ufrag: str) -> bytes:
    if len(ufrag) not in UFRAG_CHARS:
        raise WireError(WireFault.UFRAG_FORGED, f"no sealed ufrag has {len(ufrag)} characters")
    try:
        sealed = a2b_base64(ufrag + "=" * (-len(ufrag) % 4), strict_mode=True)
    except (Base64Error, ValueError):
        raise WireError(WireFault.UFRAG_FORGED, "ufrag is not base64") from None
    if b2a_base64(sealed, newline=False).rstrip(b"=") != ufrag.encode():
        raise WireError(WireFault.UFRAG_FORGED, "ufrag is not in canonical base64")
    return sealed


def _key_of(keys: KeyRing, sealed: bytes) -> FleetKey:
    key = keys.get(sealed[0])
    if key is None:
        raise WireError(WireFault.UFRAG_UNKNOWN_KEY, f"no key {sealed[0]}")
    return key
