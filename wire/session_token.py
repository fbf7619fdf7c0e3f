"""The token in a session resource's URL: which transceiver process owns the session, readable by the fleet only.

It authorises changes to the session, so it is sealed with a key of its own and never with that of the ufrag.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from struct import Struct

from cryptography.exceptions import InvalidTag

from wire.address import Address
from wire.errors import WireError, WireFault
from wire.keys import KeyRing

# version 1 | owner address 16 (IPv4 mapped) | owner port 2 | session id 8
_TOKEN = Struct("!B16sH8s")
_VERSION = 1
_PURPOSE = b"session token"
SESSION_ID_BYTES = 8
TOKEN_CHARS = -(-(1 + 16 + _TOKEN.size) * 4 // 3)


@dataclass(frozen=True, slots=True)
class SessionToken:
    """``owner`` is the internal HTTP address of the owning process; ``session_id`` has 8 bytes."""

    owner: Address
    session_id: bytes


def seal_token(keys: KeyRing, token: SessionToken) -> str:
    """The token in URL-safe base64 without padding."""
    key_id = bytes((keys.sealing.key_id,))
    plain = _TOKEN.pack(_VERSION, token.owner.mapped, token.owner.port, token.session_id)
    sealed = keys.sealing.session_token.encrypt(plain, [_PURPOSE, key_id])
    return urlsafe_b64encode(key_id + sealed).decode().rstrip("=")


def open_token_untrusted(keys: KeyRing, text: str) -> SessionToken:
    """Unseal a token. Raises WireError (TOKEN_FORGED)."""
    if len(text) != TOKEN_CHARS or not text.isascii():
        raise WireError(WireFault.TOKEN_FORGED, f"no session token has {len(text)} characters")
    try:
        sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if urlsafe_b64encode(sealed).decode().rstrip("=") != text:
            raise WireError(WireFault.TOKEN_FORGED, "session token is not in canonical base64")
        key = keys.get(sealed[0])
        if key is None:
            raise WireError(WireFault.TOKEN_FORGED, f"no key {sealed[0]}")
        version, host, port, session_id = _TOKEN.unpack(
            key.session_token.decrypt(sealed[1:], [_PURPOSE, sealed[:1]])
        )
    except (Base64Error, InvalidTag):
        raise WireError(WireFault.TOKEN_FORGED, "session token does not open") from None
    if version != _VERSION:
        raise WireError(WireFault.TOKEN_FORGED, f"session token of unknown version {version}")
    return SessionToken(Address.from_mapped(host, port), session_id)
