"""The fleet's keys: one secret a key id, from which every purpose has its own key (HKDF, RFC 5869)."""

from collections.abc import Iterable
from functools import cached_property

from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_BYTES = 32


class FleetKey:
    """One generation of the fleet's secret: 32 random bytes under a key id of 0 to 255."""

    def __init__(self, key_id: int, secret: bytes) -> None:
        if not 0 <= key_id <= 255:
            raise ValueError(f"key id {key_id} does not fit one byte (0 to 255)")
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"the secret of key {key_id} has {len(secret)} bytes, not {SECRET_BYTES}")
        self.key_id = key_id
        self.secret = secret

    def __repr__(self) -> str:  # never the secret: this ends up in logs
        return f"FleetKey({self.key_id})"

    @cached_property
    def ufrag(self) -> AESSIV:
        """Seals routing hints."""
        return AESSIV(self._derive(b"relayctl ufrag", 64))

    @cached_property
    def ice_pwd(self) -> bytes:
        """HMAC key from which a ufrag's ice-pwd follows."""
        return self._derive(b"relayctl ice-pwd", 32)

    @cached_property
    def session_token(self) -> AESSIV:
        """Seals session resource tokens: never the key of ufrags, which travel in clear."""
        return AESSIV(self._derive(b"relayctl session token", 64))

    @cached_property
    def internal_http(self) -> str:
        """What one transceiver process shows another when it passes a signaling request on."""
        return self._derive(b"relayctl internal http", 32).hex()

    def _derive(self, purpose: bytes, length: int) -> bytes:
        return HKDF(SHA256(), length, salt=None, info=purpose).derive(self.secret)


class KeyRing:
    """Every key that still opens, and the one that seals.

    Rotation: a new key is first given to every relay, then made the sealing one at the transceivers; a retired key
    stays until the longest session that it sealed is over.
    """

    def __init__(self, keys: Iterable[FleetKey], sealing_key_id: int) -> None:
        self._keys = {key.key_id: key for key in keys}
        if sealing_key_id not in self._keys:
            raise ValueError(f"sealing key {sealing_key_id} is not among the keys {sorted(self._keys)}")
        self.sealing = self._keys[sealing_key_id]

    def __iter__(self) -> "Iterable[FleetKey]":
        return iter(self._keys.values())

    def get(self, key_id: int) -> FleetKey | None:
        """The key of that id, or None."""
        return self._keys.get(key_id)
