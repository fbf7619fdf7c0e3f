"""The sealed ufrag: opens for the fleet only, under every key of the ring, in exactly one spelling."""

import hmac
import string
from base64 import b64decode, b64encode
from collections.abc import Callable
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.network import ADDRESSES, fault_of, text_damaged
from wire.address import Address
from wire.errors import WireFault
from wire.keys import FleetKey, KeyRing
from wire.stun import parse_stun_untrusted, verify_integrity, write_binding_request
from wire.ufrag import (
    RouteHint,
    derive_ice_pwd,
    open_session_untrusted,
    open_ufrag_untrusted,
    seal_ufrag,
)

ICE_CHARS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"  # in base64's order

OLD, NEW = FleetKey(1, bytes(range(32))), FleetKey(2, bytes(range(32, 64)))
RING = KeyRing([OLD], sealing_key_id=1)
HINT_V4 = RouteHint(7, Address.parse("10.1.2.3:5000"), 1_700_000_000, b"nonce")
HINT_V6 = RouteHint(7, Address.parse("[fd00::3]:5000"), 1_700_000_000, b"nonce")
UFRAG_V4, UFRAG_V6 = seal_ufrag(RING, HINT_V4), seal_ufrag(RING, HINT_V6)
UFRAGS = [pytest.param(UFRAG_V4, id="IPv4"), pytest.param(UFRAG_V6, id="IPv6")]

Opener = Callable[[KeyRing, str], object]

HINTS = st.builds(
    RouteHint,
    st.integers(0, 0xFFFF),
    ADDRESSES,
    st.integers(0, 0xFFFFFFFF),
    st.binary(min_size=5, max_size=5),
)


def hkdf_sha256(secret: bytes, purpose: bytes, length: int) -> bytes:
    """RFC 5869 by hand, without a salt, up to two blocks."""
    prk = hmac.digest(bytes(32), secret, "sha256")
    first = hmac.digest(prk, purpose + b"\x01", "sha256")
    return (first + hmac.digest(prk, first + purpose + b"\x02", "sha256"))[:length]


def unpadded_base64(sealed: bytes) -> str:
    return b64encode(sealed).decode().rstrip("=")


def bytes_of(ufrag: str) -> bytes:
    return b64decode(ufrag + "=" * (-len(ufrag) % 4), validate=True)


def sealed_by_hand(plain: bytes, key: FleetKey = OLD) -> str:
    """A ufrag that was sealed with the fleet's key, whatever it says."""
    key_id = bytes((key.key_id,))
    return unpadded_base64(key_id + key.ufrag.encrypt(plain, [key_id]))


@pytest.mark.parametrize(
    ("hint", "chars", "plain"),
    [
        pytest.param(HINT_V4, 47, "14 0007 0a010203 1388 6553f100 6e6f6e6365", id="IPv4"),
        pytest.param(
            HINT_V6, 63, "16 0007 fd000000000000000000000000000003 1388 6553f100 6e6f6e6365", id="IPv6"
        ),
    ],
)
def test_layout_that_other_versions_of_the_fleet_read(hint: RouteHint, chars: int, plain: str) -> None:
    ufrag = seal_ufrag(RING, hint)
    sealed = bytes_of(ufrag)
    key = AESSIV(hkdf_sha256(OLD.secret, b"relayctl ufrag", 64))
    assert len(ufrag) == chars
    assert sealed[0] == OLD.key_id
    assert key.decrypt(sealed[1:], [b"\x01"]) == bytes.fromhex(plain)


@pytest.mark.parametrize("ufrag", UFRAGS)
def test_ice_pwd_that_other_versions_of_the_fleet_derive(ufrag: str) -> None:
    key = hkdf_sha256(OLD.secret, b"relayctl ice-pwd", 32)
    assert derive_ice_pwd(RING, ufrag) == b64encode(hmac.digest(key, ufrag.encode(), "sha256")).decode()[:32]


@given(HINTS)
def test_hint_is_read_back_from_ice_chars(hint: RouteHint) -> None:
    ufrag = seal_ufrag(RING, hint)
    assert len(ufrag) == (47 if hint.transceiver.family == 4 else 63)
    assert set(ufrag) <= set(ICE_CHARS)
    assert open_ufrag_untrusted(RING, ufrag) == hint
    assert open_session_untrusted(RING, ufrag) == (hint, derive_ice_pwd(RING, ufrag))


@pytest.mark.parametrize("hint", [pytest.param(HINT_V4, id="IPv4"), pytest.param(HINT_V6, id="IPv6")])
def test_rotation_opens_both_keys_and_seals_with_the_named_one(hint: RouteHint) -> None:
    before, during, after = KeyRing([OLD], 1), KeyRing([OLD, NEW], 2), KeyRing([NEW], 2)
    old_ufrag, new_ufrag = seal_ufrag(before, hint), seal_ufrag(during, hint)
    assert (bytes_of(old_ufrag)[0], bytes_of(new_ufrag)[0]) == (1, 2)
    assert open_ufrag_untrusted(during, old_ufrag) == open_ufrag_untrusted(during, new_ufrag) == hint
    assert new_ufrag == seal_ufrag(after, hint)
    assert seal_ufrag(KeyRing([OLD, NEW], 1), hint) == old_ufrag
    assert derive_ice_pwd(during, old_ufrag) == derive_ice_pwd(before, old_ufrag)
    assert derive_ice_pwd(during, new_ufrag) == derive_ice_pwd(after, new_ufrag)


@pytest.mark.parametrize("use", [open_ufrag_untrusted, open_session_untrusted, derive_ice_pwd])
@pytest.mark.parametrize("ufrag", UFRAGS)
def test_ufrag_of_a_key_that_the_ring_lacks(use: Opener, ufrag: str) -> None:
    assert fault_of(use, KeyRing([NEW], 2), ufrag) is WireFault.UFRAG_UNKNOWN_KEY


@pytest.mark.parametrize(
    "ufrag",
    [
        pytest.param("", id="empty"),
        pytest.param("evtj", id="a browser's own ufrag"),
        pytest.param(UFRAG_V4[:-1], id="46 chars"),
        pytest.param(UFRAG_V4 + "A", id="48 chars"),
        pytest.param(UFRAG_V6[:-1], id="62 chars"),
        pytest.param(UFRAG_V6 + "A", id="64 chars"),
        pytest.param(UFRAG_V6[:47], id="IPv6 ufrag cut to IPv4 size"),
        pytest.param(UFRAG_V4[:-1] + "=", id="padding inside"),
        pytest.param(UFRAG_V4[:20] + "-" + UFRAG_V4[21:], id="base64url -"),
        pytest.param(UFRAG_V4[:20] + "_" + UFRAG_V4[21:], id="base64url _"),
        pytest.param(UFRAG_V4[:20] + " " + UFRAG_V4[21:], id="space"),
        pytest.param(UFRAG_V4[:-1] + "\n", id="newline"),
        pytest.param(UFRAG_V4[:20] + "é" + UFRAG_V4[21:], id="not ASCII"),
        pytest.param(UFRAG_V4[:20] + "\ud800" + UFRAG_V4[21:], id="lone surrogate"),
    ],
)
@pytest.mark.parametrize("use", [open_ufrag_untrusted, open_session_untrusted, derive_ice_pwd])
def test_text_that_is_no_sealed_ufrag(use: Opener, ufrag: str) -> None:
    assert fault_of(use, RING, ufrag) is WireFault.UFRAG_FORGED


@pytest.mark.parametrize("spelling", [1, 2, 3])
@pytest.mark.parametrize("ufrag", UFRAGS)
@pytest.mark.parametrize("use", [open_ufrag_untrusted, open_session_untrusted, derive_ice_pwd])
def test_session_has_one_spelling_only(use: Opener, ufrag: str, spelling: int) -> None:
    other = ufrag[:-1] + ICE_CHARS[ICE_CHARS.index(ufrag[-1]) + spelling]
    assert bytes_of(other) == bytes_of(ufrag)
    assert fault_of(use, RING, other) is WireFault.UFRAG_FORGED


IPV4_PLAIN = bytes.fromhex("14 0007 0a010203 1388 6553f100 6e6f6e6365")
IPV6_PLAIN = bytes.fromhex("16 0007 fd000000000000000000000000000003 1388 6553f100 6e6f6e6365")


def test_hand_sealed_hint_opens() -> None:
    assert open_ufrag_untrusted(RING, sealed_by_hand(IPV4_PLAIN)) == HINT_V4
    assert open_ufrag_untrusted(RING, sealed_by_hand(IPV6_PLAIN)) == HINT_V6


@pytest.mark.parametrize(
    "ufrag",
    [
        pytest.param(sealed_by_hand(b"\x24" + IPV4_PLAIN[1:]), id="version 2"),
        pytest.param(sealed_by_hand(b"\x04" + IPV4_PLAIN[1:]), id="version 0"),
        pytest.param(sealed_by_hand(b"\x15" + IPV4_PLAIN[1:]), id="family 5"),
        pytest.param(sealed_by_hand(b"\x16" + IPV4_PLAIN[1:]), id="family 6 in an IPv4 hint"),
        pytest.param(sealed_by_hand(b"\x14" + IPV6_PLAIN[1:]), id="family 4 in an IPv6 hint"),
        pytest.param(
            sealed_by_hand(IPV4_PLAIN, FleetKey(1, b"another fleet's secret, 32 bytes")), id="other fleet"
        ),
        pytest.param(unpadded_base64(b"\x01" + bytes(34)), id="zeros"),
        pytest.param(
            unpadded_base64(b"\x01" + OLD.ufrag.encrypt(IPV4_PLAIN, [b"\x02"])),
            id="key id is not what was sealed",
        ),
        pytest.param(unpadded_base64(b"\x01" + OLD.ufrag.encrypt(IPV4_PLAIN, None)), id="key id not sealed"),
        pytest.param(
            unpadded_base64(b"\x01" + OLD.session_token.encrypt(IPV4_PLAIN, [b"\x01"])),
            id="key of session tokens",
        ),
        pytest.param(
            unpadded_base64(b"\x01" + OLD.session_token.encrypt(IPV4_PLAIN, [b"session token", b"\x01"])),
            id="key and purpose of session tokens",
        ),
    ],
)
def test_forged_hint_is_refused(ufrag: str) -> None:
    assert fault_of(open_ufrag_untrusted, RING, ufrag) is WireFault.UFRAG_FORGED


def test_ufrag_does_not_open_under_another_key_id_of_the_ring() -> None:
    relabelled = unpadded_base64(b"\x02" + bytes_of(UFRAG_V4)[1:])
    assert fault_of(open_ufrag_untrusted, KeyRing([OLD, NEW], 2), relabelled) is WireFault.UFRAG_FORGED


def test_sessions_are_unlinkable() -> None:
    """Alike but for the nonce, their bytes agree no more often than random ones: 1 in 256 of 34."""
    sealed = [
        bytes_of(
            seal_ufrag(RING, RouteHint(7, HINT_V4.transceiver, 1_700_000_000, bytes((0, 0, 0, 0, nonce))))
        )[1:]
        for nonce in range(20)
    ]
    for one, other in combinations(sealed, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 5


def test_hints_that_differ_in_any_field_have_other_ufrags_and_pwds() -> None:
    hints = [
        HINT_V4,
        HINT_V6,
        RouteHint(8, HINT_V4.transceiver, HINT_V4.issued_at, HINT_V4.nonce),
        RouteHint(7, Address.parse("10.1.2.4:5000"), HINT_V4.issued_at, HINT_V4.nonce),
        RouteHint(7, Address.parse("10.1.2.3:5001"), HINT_V4.issued_at, HINT_V4.nonce),
        RouteHint(7, HINT_V4.transceiver, HINT_V4.issued_at + 1, HINT_V4.nonce),
        RouteHint(7, HINT_V4.transceiver, HINT_V4.issued_at, b"other"),
    ]
    ufrags = {seal_ufrag(RING, hint) for hint in hints}
    assert len(ufrags) == len({derive_ice_pwd(RING, ufrag) for ufrag in ufrags}) == len(hints)


@given(HINTS)
def test_ice_pwd_is_32_ice_chars_the_same_on_every_ring_with_the_secret(hint: RouteHint) -> None:
    ufrag = seal_ufrag(RING, hint)
    pwd = derive_ice_pwd(RING, ufrag)
    assert len(pwd) == 32
    assert set(pwd) <= set(ICE_CHARS)
    assert pwd == derive_ice_pwd(KeyRing([FleetKey(1, OLD.secret), NEW], 2), ufrag)
    assert pwd != derive_ice_pwd(KeyRing([FleetKey(1, NEW.secret)], 1), ufrag)


def test_relay_authenticates_a_first_check_without_a_session() -> None:
    pwd = derive_ice_pwd(RING, UFRAG_V6)
    check = write_binding_request(bytes(12), f"{UFRAG_V6}:h6vY", pwd.encode())
    message = parse_stun_untrusted(check)
    server_ufrag, _ = message.ufrags_untrusted
    assert verify_integrity(check, message, derive_ice_pwd(RING, server_ufrag).encode())
    assert not verify_integrity(check, message, derive_ice_pwd(RING, UFRAG_V4).encode())


@given(st.sampled_from([UFRAG_V4, UFRAG_V6]).flatmap(lambda ufrag: text_damaged(ufrag, ICE_CHARS)))
def test_damaged_ufrag_never_opens(ufrag: str) -> None:
    assert fault_of(open_ufrag_untrusted, RING, ufrag) in {
        WireFault.UFRAG_FORGED,
        WireFault.UFRAG_UNKNOWN_KEY,
    }


@given(st.binary(min_size=34, max_size=34) | st.binary(min_size=46, max_size=46))
def test_guessed_ufrag_never_opens(sealed: bytes) -> None:
    assert fault_of(open_ufrag_untrusted, RING, unpadded_base64(b"\x01" + sealed)) is WireFault.UFRAG_FORGED


SHAPED_TEXT = st.sampled_from([47, 63]).flatmap(
    lambda chars: st.text(ICE_CHARS, min_size=chars, max_size=chars) | st.text(min_size=chars, max_size=chars)
)


@given(st.text() | SHAPED_TEXT)
def test_any_text_raises_only_ufrag_faults(ufrag: str) -> None:
    assert fault_of(open_ufrag_untrusted, RING, ufrag) in {
        WireFault.UFRAG_FORGED,
        WireFault.UFRAG_UNKNOWN_KEY,
    }
    derive_fault = fault_of(derive_ice_pwd, RING, ufrag)
    assert derive_fault in {None, WireFault.UFRAG_FORGED, WireFault.UFRAG_UNKNOWN_KEY}


@pytest.mark.parametrize("key_id", [-1, 256])
def test_key_id_is_one_byte(key_id: int) -> None:
    with pytest.raises(ValueError, match="0 to 255"):
        FleetKey(key_id, bytes(32))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secret_is_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="not 32"):
        FleetKey(1, bytes(size))


def test_sealing_key_is_in_the_ring() -> None:
    with pytest.raises(ValueError, match="sealing key 2"):
        KeyRing([OLD], sealing_key_id=2)


def test_secret_is_never_shown() -> None:
    assert repr(FleetKey(3, b"never to be seen in any log file")) == "FleetKey(3)"


def test_each_purpose_has_its_own_key() -> None:
    derived = {OLD.ice_pwd, bytes.fromhex(OLD.internal_http), NEW.ice_pwd, bytes.fromhex(NEW.internal_http)}
    assert len(derived) == 4
    assert not derived & {OLD.secret, NEW.secret}
