"""A flow as relays hand it on: plain within a host, sealed in a cache that others may write to.

A sealed value opens only under the client and VIP that it was sealed for, and tells when: so a value that was altered, or
copied to another client's key, does not open, and an old one shows its age. Whoever can write to the cache can still put an
earlier value of the same client back; therefore a transceiver is asked before a packet follows one (relay/core/recall.py).
"""

from dataclasses import dataclass
from struct import Struct
from typing import Any, Self

from cryptography.exceptions import InvalidTag

from wire.address import Address
from wire.errors import WireError, WireFault
from wire.keys import KeyRing, RecordKeys
from wire.spp import FLOW_NAME_BYTES, flow_name, parse_flow_name

# transceiver address 16 (IPv4 mapped) | port 2 | ufrag tag 8 (zeros behind a shorter one)
_TARGET = Struct("!16sH8s")
TARGET_BYTES = _TARGET.size
RECORD_BYTES = FLOW_NAME_BYTES + TARGET_BYTES
# version 1 | sealed at 4 (unix s), then the target
_STAMP = Struct("!BI")
_VERSION = 1
_PURPOSE = b"flow record"
_TAG_BYTES = 16
# key id 1, then AES-SIV's tag and ciphertext
SEALED_BYTES = 1 + _TAG_BYTES + _STAMP.size + TARGET_BYTES


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """What a worker needs to go on with a flow of another."""

    client: Address
    vip: Address
    transceiver: Address
    ufrag_tag: str

    @property
    def name(self) -> bytes:
        """What the flow is looked up by: 36 bytes."""
        return flow_name(self.client, self.vip)

    def pack(self) -> bytes:
        """The plain form, 62 bytes: name and target."""
        return self.name + pack_target(self.transceiver, self.ufrag_tag)

    @classmethod
    def unpack_untrusted(cls, packed: bytes) -> Self:
        """The inverse of ``pack``. Raises WireError (RECORD_MALFORMED)."""
        if len(packed) != RECORD_BYTES:
            raise WireError(WireFault.RECORD_MALFORMED, f"no flow record has {len(packed)} bytes")
        return cls(*parse_flow_name(packed[:FLOW_NAME_BYTES]), *_unpack_target(packed[FLOW_NAME_BYTES:]))

    def to_json(self) -> dict[str, str]:
        """The form on the channel between workers and supervisor."""
        return {
            "client": str(self.client),
            "vip": str(self.vip),
            "transceiver": str(self.transceiver),
            "ufrag_tag": self.ufrag_tag,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises KeyError or ValueError."""
        client, vip, transceiver = (
            Address.parse(document[name]) for name in ("client", "vip", "transceiver")
        )
        return cls(client, vip, transceiver, document["ufrag_tag"])


def pack_target(transceiver: Address, ufrag_tag: str) -> bytes:
    """What follows the name in the plain form, 26 bytes."""
    return _TARGET.pack(transceiver.mapped, transceiver.port, ufrag_tag.encode())


def seal_flow(keys: KeyRing | RecordKeys, record: FlowRecord, unix_s: int) -> bytes:
    """The value for a shared cache, 48 bytes; ``unix_s`` is now."""
    key_id = bytes((keys.sealing.key_id,))
    plain = _STAMP.pack(_VERSION, unix_s) + pack_target(record.transceiver, record.ufrag_tag)
    return key_id + keys.sealing.flow_record.encrypt(plain, [_PURPOSE, key_id, record.name])


def open_flow_untrusted(
    keys: KeyRing | RecordKeys, client: Address, vip: Address, sealed: bytes
) -> tuple[FlowRecord, int]:
    """What was sealed for that client and VIP, and when (unix s). Raises WireError (RECORD_FORGED); age is the reader's to judge."""
    if len(sealed) != SEALED_BYTES:
        raise WireError(WireFault.RECORD_FORGED, f"no sealed flow has {len(sealed)} bytes")
    key = keys.get(sealed[0])
    if key is None:
        raise WireError(WireFault.RECORD_FORGED, f"no key {sealed[0]}")
    try:
        plain = key.flow_record.decrypt(sealed[1:], [_PURPOSE, sealed[:1], flow_name(client, vip)])
    except InvalidTag:
        raise WireError(WireFault.RECORD_FORGED, f"flow does not open with key {key.key_id}") from None
    version, sealed_at = _STAMP.unpack_from(plain)
    if version != _VERSION:
        raise WireError(WireFault.RECORD_FORGED, f"flow of unknown version {version}")
    return FlowRecord(client, vip, *_unpack_target(plain[_STAMP.size :])), sealed_at


def _unpack_target(packed: bytes) -> tuple[Address, str]:
    host, port, tag = _TARGET.unpack(packed)
    try:
        return Address.from_mapped(host, port), tag.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise WireError(WireFault.RECORD_MALFORMED, "ufrag tag is not text") from None
