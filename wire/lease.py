"""What relays and transceivers tell of themselves in a registry that others may write to: a JSON object, sealed under its name.

It tells of addresses that the fleet's own credential is shown to; so what was altered, or put under another name, does not
open. The stamp in it tells an old one that was put back.
"""

import json
from struct import Struct
from typing import Any

from cryptography.exceptions import InvalidTag

from wire.admin import decode_message_untrusted
from wire.errors import WireError, WireFault
from wire.keys import KeyRing, RecordKeys

# key id 1 | AES-SIV's tag 16 | version 1 | sealed at 4 (unix s) | JSON
_STAMP = Struct("!BI")
_VERSION = 1
_PURPOSE = b"lease"
_HEAD_BYTES = 1 + 16 + _STAMP.size
MAX_LEASE_BYTES = 1024


def seal_lease(keys: KeyRing | RecordKeys, name: str, document: dict[str, Any], unix_s: int) -> bytes:
    """The value for the registry; ``unix_s`` is now. Raises ValueError if it has more than MAX_LEASE_BYTES."""
    key_id = bytes((keys.sealing.key_id,))
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if _HEAD_BYTES + len(text) > MAX_LEASE_BYTES:
        raise ValueError(f"lease {name} has {_HEAD_BYTES + len(text)} bytes, more than {MAX_LEASE_BYTES}")
    plain = _STAMP.pack(_VERSION, unix_s) + text
    return key_id + keys.sealing.lease.encrypt(plain, [_PURPOSE, key_id, name.encode()])


def open_lease_untrusted(keys: KeyRing | RecordKeys, name: str, sealed: bytes) -> tuple[dict[str, Any], int]:
    """What was sealed under that name, and when (unix s). Raises WireError (RECORD_FORGED, ADMIN_MALFORMED)."""
    if not _HEAD_BYTES < len(sealed) <= MAX_LEASE_BYTES:
        raise WireError(WireFault.RECORD_FORGED, f"no lease has {len(sealed)} bytes")
    key = keys.get(sealed[0])
    if key is None:
        raise WireError(WireFault.RECORD_FORGED, f"no key {sealed[0]}")
    try:
        plain = key.lease.decrypt(sealed[1:], [_PURPOSE, sealed[:1], name.encode(errors="replace")])
    except InvalidTag:
        raise WireError(WireFault.RECORD_FORGED, f"lease does not open with key {key.key_id}") from None
    version, sealed_at = _STAMP.unpack_from(plain)
    if version != _VERSION:
        raise WireError(WireFault.RECORD_FORGED, f"lease of unknown version {version}")
    return decode_message_untrusted(plain[_STAMP.size :]), sealed_at
