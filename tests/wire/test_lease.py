"""Leases: they open under the name and keys that they were sealed for, and nothing else opens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import WireError, WireFault
from wire.keys import FleetKey, KeyRing
from wire.lease import MAX_LEASE_BYTES, open_lease_untrusted, seal_lease

KEYS = KeyRing([FleetKey(1, bytes(range(32)))], 1)
NAME, NOW = "transceiver:10.0.1.7:5000", 1_700_000_000
DOCUMENT = {"state": "ready", "sessions": 3, "load": 0.5, "vips": ["203.0.113.10:3478"], "note": None}

# Short: a character may take twelve in JSON, and a lease has 1024 bytes.
_DOCUMENTS = st.dictionaries(
    st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text(max_size=4), max_size=5
)


@given(st.text(st.characters(codec="ascii"), max_size=40), _DOCUMENTS, st.integers(0, 2**32 - 1))
def test_sealed_and_opened(name: str, document: dict[str, Any], now: int) -> None:
    sealed = seal_lease(KEYS, name, document, now)
    assert len(sealed) <= MAX_LEASE_BYTES
    assert open_lease_untrusted(KEYS, name, sealed) == (document, now)


@given(st.text(max_size=20), st.binary(max_size=MAX_LEASE_BYTES + 10))
def test_no_bytes_but_ours_open(name: str, sealed: bytes) -> None:
    with pytest.raises(WireError) as caught:
        open_lease_untrusted(KEYS, name, sealed)
    assert caught.value.fault is WireFault.RECORD_FORGED


def test_forged() -> None:
    sealed = seal_lease(KEYS, NAME, DOCUMENT, NOW)
    others = KeyRing([FleetKey(1, bytes(32))], 1)
    for keys, name, value in [
        (KEYS, "transceiver:10.0.1.8:5000", sealed),
        (KEYS, NAME, sealed[:-1]),
        (KEYS, NAME, sealed + b" "),
        (KEYS, NAME, sealed[:40] + bytes((sealed[40] ^ 1,)) + sealed[41:]),
        (KEYS, NAME, b"\2" + sealed[1:]),
        (others, NAME, sealed),
    ]:
        with pytest.raises(WireError):
            open_lease_untrusted(keys, name, value)


def test_a_flow_is_no_lease() -> None:
    with pytest.raises(WireError):
        open_lease_untrusted(KEYS, NAME, b"\1" + KEYS.sealing.flow_record.encrypt(b"x" * 20, [NAME.encode()]))


def test_a_lease_that_is_too_long_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="more than 1024"):
        seal_lease(KEYS, NAME, {"note": "x" * 1000}, NOW)
