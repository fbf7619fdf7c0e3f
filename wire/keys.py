"""The fleet's keys: one secret a key id, from which every purpose has its own key (HKDF, RFC 5869)."""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET_BYTES = 32
_SIV_BYTES = 64


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
    def flow_record(self) -> AESSIV:
        """Seals flows in a cache that relays share."""
        return AESSIV(self.flow_record_secret)

    @cached_property
    def lease(self) -> AESSIV:
        """Seals what relays and transceivers tell of themselves."""
        return AESSIV(self.lease_secret)

    @property
    def flow_record_secret(self) -> bytes:
        """What ``flow_record`` is made of."""
        return self._derive(b"relayctl flow record", _SIV_BYTES)

    @property
    def lease_secret(self) -> bytes:
        """What ``lease`` is made of."""
        return self._derive(b"relayctl lease", _SIV_BYTES)

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

    def get(self, key_id: int) -> FleetKey | None:
        """The key of that id, or None."""
        return self._keys.get(key_id)

    def internal_http(self) -> list[str]:
        """What a sibling process may show, one for each key that is still valid."""
        return [key.internal_http for key in self._keys.values()]

    def record_keys(self) -> "RecordKeys":
        """The part of each that whoever speaks with a shared cache needs; nothing else follows from it."""
        keys = [RecordKey(k.key_id, k.flow_record_secret, k.lease_secret) for k in self._keys.values()]
        return RecordKeys(keys, self.sealing.key_id)

    def to_json(self) -> dict[str, Any]:
        """``{"sealing": 1, "keys": [{"id": 1, "secret": "<base64>"}]}``: the form of the key file. It holds secrets."""
        keys = [{"id": k.key_id, "secret": b64encode(k.secret).decode()} for k in self._keys.values()]
        return {"sealing": self.sealing.key_id, "keys": keys}

    @classmethod
    def from_json(cls, document: Any) -> "KeyRing":
        """The inverse of ``to_json``. Raises ValueError naming the field."""
        match document:
            case {"sealing": int(sealing), "keys": [_, *_] as entries} if sealing is not True:
                keys = [_key_from_json(f"keys[{index}]", entry) for index, entry in enumerate(entries)]
            case _:
                raise ValueError('needs "sealing" (a key id) and "keys" (a list of at least one)')
        if len({key.key_id for key in keys}) != len(keys):
            raise ValueError("keys: two have the same id; give each its own (0 to 255)")
        return cls(keys, sealing)


class RecordKey:
    """What of a FleetKey seals flow records and leases: two keys derived from it, 64 bytes each."""

    def __init__(self, key_id: int, flow_record: bytes, lease: bytes) -> None:
        self.key_id = key_id
        self.flow_record = AESSIV(flow_record)
        self.lease = AESSIV(lease)
        self._secrets = {"flow_record": flow_record, "lease": lease}

    def __repr__(self) -> str:  # never the secrets: this ends up in logs
        return f"RecordKey({self.key_id})"

    def to_json(self) -> dict[str, Any]:
        """``{"id": 1, "flow_record": "<base64>", "lease": "<base64>"}``: it holds secrets."""
        return {"id": self.key_id, **{name: b64encode(s).decode() for name, s in self._secrets.items()}}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RecordKey":
        """The inverse of ``to_json``, from a process of ours. Raises KeyError or ValueError."""
        return cls(document["id"], b64decode(document["flow_record"]), b64decode(document["lease"]))


class RecordKeys:
    """A KeyRing's part for flow records and leases."""

    def __init__(self, keys: Iterable[RecordKey], sealing_key_id: int) -> None:
        self._keys = {key.key_id: key for key in keys}
        self.sealing = self._keys[sealing_key_id]

    def get(self, key_id: int) -> RecordKey | None:
        """The key of that id, or None."""
        return self._keys.get(key_id)

    def to_json(self) -> dict[str, Any]:
        """``{"sealing": 1, "keys": [...]}``: it holds secrets."""
        return {"sealing": self.sealing.key_id, "keys": [key.to_json() for key in self._keys.values()]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RecordKeys":
        """The inverse of ``to_json``, from a process of ours. Raises KeyError or ValueError."""
        return cls(map(RecordKey.from_json, document["keys"]), document["sealing"])


def _key_from_json(field: str, entry: Any) -> FleetKey:
    match entry:
        case {"id": int(key_id), "secret": str(secret)} if key_id is not True:
            try:
                return FleetKey(key_id, b64decode(secret, validate=True))
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        case _:
            raise ValueError(f'{field}: needs "id" (0 to 255) and "secret" (32 bytes, base64)')
