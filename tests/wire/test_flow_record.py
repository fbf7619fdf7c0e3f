"""Flows that relays hand on: plain within a host, sealed in a cache that others may write to."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.address import Address
from wire.errors import WireError, WireFault
from wire.flow_record import (
    RECORD_BYTES,
    SEALED_BYTES,
    FlowRecord,
    open_flow_untrusted,
    seal_flow,
)
from wire.keys import FleetKey, KeyRing

KEYS = KeyRing([FleetKey(1, bytes(range(32))), FleetKey(2, bytes(32))], 1)
CLIENT, VIP = Address.parse("203.0.113.2:40000"), Address.parse("203.0.113.10:3478")
RECORD = FlowRecord(CLIENT, VIP, Address.parse("10.0.1.7:5000"), "abcd1234")
NOW = 1_700_000_000

_ADDRESSES = st.builds(
    Address.from_mapped, st.binary(min_size=16, max_size=16), st.integers(0, 65_535)
) | st.builds(Address, st.binary(min_size=4, max_size=4), st.integers(0, 65_535))
_TAGS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)
_RECORDS = st.builds(FlowRecord, _ADDRESSES, _ADDRESSES, _ADDRESSES, _TAGS)


@given(_RECORDS)
def test_packed_and_unpacked(record: FlowRecord) -> None:
    assert FlowRecord.unpack_untrusted(record.pack()) == record
    assert FlowRecord.from_json(record.to_json()) == record


@given(_RECORDS, st.integers(0, 2**32 - 1))
def test_sealed_and_opened(record: FlowRecord, now: int) -> None:
    sealed = seal_flow(KEYS, record, now)
    assert len(sealed) == SEALED_BYTES == 48
    assert open_flow_untrusted(KEYS, record.client, record.vip, sealed) == (record, now)


@given(st.binary(max_size=2 * RECORD_BYTES) | st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES))
def test_any_bytes_unpack_or_raise_wire_errors(packed: bytes) -> None:
    with contextlib.suppress(WireError):
        record = FlowRecord.unpack_untrusted(packed)
        assert FlowRecord.unpack_untrusted(record.pack()) == record


@given(st.binary(max_size=100) | st.binary(min_size=SEALED_BYTES, max_size=SEALED_BYTES))
def test_no_bytes_but_ours_open(sealed: bytes) -> None:
    with pytest.raises(WireError) as caught:
        open_flow_untrusted(KEYS, CLIENT, VIP, sealed)
    assert caught.value.fault is WireFault.RECORD_FORGED


@pytest.mark.parametrize(
    ("client", "vip", "change"),
    [
        pytest.param("203.0.113.3:40000", str(VIP), lambda value: value, id="another client's"),
        pytest.param("203.0.113.2:40001", str(VIP), lambda value: value, id="another port's"),
        pytest.param(str(CLIENT), "203.0.113.11:3478", lambda value: value, id="another VIP's"),
        pytest.param(str(CLIENT), str(VIP), lambda value: value[:-1], id="truncated"),
        pytest.param(str(CLIENT), str(VIP), lambda value: value + b"\0", id="longer"),
        pytest.param(str(CLIENT), str(VIP), lambda value: b"", id="empty"),
        pytest.param(str(CLIENT), str(VIP), lambda value: b"\2" + value[1:], id="under another key id"),
        pytest.param(str(CLIENT), str(VIP), lambda value: b"\7" + value[1:], id="under no key"),
    ],
)
def test_forged(client: str, vip: str, change: object) -> None:
    assert callable(change)
    sealed = change(seal_flow(KEYS, RECORD, NOW))
    with pytest.raises(WireError) as caught:
        open_flow_untrusted(KEYS, Address.parse(client), Address.parse(vip), sealed)
    assert caught.value.fault is WireFault.RECORD_FORGED


@given(st.integers(0, SEALED_BYTES - 1), st.integers(1, 255))
def test_one_changed_byte_is_enough(place: int, change: int) -> None:
    sealed = bytearray(seal_flow(KEYS, RECORD, NOW))
    sealed[place] ^= change
    with pytest.raises(WireError):
        open_flow_untrusted(KEYS, CLIENT, VIP, bytes(sealed))


def test_a_retired_key_still_opens() -> None:
    sealed = seal_flow(KEYS, RECORD, NOW)
    rotated = KeyRing([FleetKey(1, bytes(range(32))), FleetKey(2, bytes(32))], 2)
    assert open_flow_untrusted(rotated, CLIENT, VIP, sealed) == (RECORD, NOW)
    assert seal_flow(rotated, RECORD, NOW)[0] == 2
