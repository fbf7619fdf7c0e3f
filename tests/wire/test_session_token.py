"""The session token: names the owner of a session, opens for the fleet only, and is never a ufrag."""

import string
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.network import ADDRESSES, fault_of, text_damaged
from wire.address import Address
from wire.errors import WireFault
from wire.keys import FleetKey, KeyRing
from wire.session_token import TOKEN_CHARS, SessionToken, open_token_untrusted, seal_token
from wire.ufrag import RouteHint, open_ufrag_untrusted, seal_ufrag

URL_SAFE = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"  # in base64's order

OLD, NEW = FleetKey(1, bytes(range(32))), FleetKey(2, bytes(range(32, 64)))
RING = KeyRing([OLD], sealing_key_id=1)
OWNER = Address.parse("10.1.2.3:8080")
TOKEN = SessionToken(OWNER, b"session1")
PLAIN = bytes.fromhex("01 00000000000000000000ffff0a010203 1f90 73657373696f6e31")
TEXT = seal_token(RING, TOKEN)

TOKENS = st.builds(SessionToken, ADDRESSES, st.binary(min_size=8, max_size=8))


def text_of(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).decode().rstrip("=")


def bytes_of(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_layout_that_other_processes_of_the_fleet_read() -> None:
    sealed = bytes_of(TEXT)
    assert sealed[0] == 1
    assert OLD.session_token.decrypt(sealed[1:], [b"session token", b"\x01"]) == PLAIN


@given(TOKENS)
def test_owner_and_session_are_read_back_from_url_safe_text(token: SessionToken) -> None:
    text = seal_token(RING, token)
    assert len(text) == TOKEN_CHARS == 59
    assert set(text) <= set(URL_SAFE)
    assert open_token_untrusted(RING, text) == token


def test_rotation_opens_both_keys_and_seals_with_the_named_one() -> None:
    during = KeyRing([OLD, NEW], 2)
    new_text = seal_token(during, TOKEN)
    assert bytes_of(new_text)[0] == 2
    assert open_token_untrusted(during, TEXT) == open_token_untrusted(during, new_text) == TOKEN
    assert fault_of(open_token_untrusted, RING, new_text) is WireFault.TOKEN_FORGED


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(TEXT[:-1], id="a character short"),
        pytest.param(TEXT + "A", id="a character long"),
        pytest.param(TEXT + "=", id="with padding"),
        pytest.param(TEXT[:-1] + "=", id="padding inside"),
        pytest.param(TEXT[:20] + "+" + TEXT[21:], id="standard base64 +"),
        pytest.param(TEXT[:20] + "/" + TEXT[21:], id="standard base64 /"),
        pytest.param(TEXT[:20] + "%" + TEXT[21:], id="percent"),
        pytest.param(TEXT[:20] + "é" + TEXT[21:], id="not ASCII"),
        pytest.param("A" * 59, id="unknown key"),
        pytest.param(text_of(b"\x01" + bytes(43)), id="zeros"),
        pytest.param(
            "!" * 59,
            id="no character of base64",
        ),
    ],
)
def test_text_that_is_no_token(text: str) -> None:
    assert fault_of(open_token_untrusted, RING, text) is WireFault.TOKEN_FORGED


@pytest.mark.parametrize("spelling", [1, 2, 3])
def test_token_has_one_spelling_only(spelling: int) -> None:
    other = TEXT[:-1] + URL_SAFE[URL_SAFE.index(TEXT[-1]) + spelling]
    assert bytes_of(other) == bytes_of(TEXT)
    assert fault_of(open_token_untrusted, RING, other) is WireFault.TOKEN_FORGED


def sealed_by_hand(plain: bytes, purpose: bytes = b"session token") -> str:
    """A token that was sealed with the fleet's key, whatever it says."""
    return text_of(b"\x01" + OLD.session_token.encrypt(plain, [purpose, b"\x01"]))


def test_hand_sealed_token_opens() -> None:
    assert open_token_untrusted(RING, sealed_by_hand(PLAIN)) == TOKEN


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(sealed_by_hand(b"\x02" + PLAIN[1:]), id="version 2"),
        pytest.param(sealed_by_hand(PLAIN, purpose=b"ufrag"), id="other purpose"),
        pytest.param(text_of(b"\x01" + OLD.session_token.encrypt(PLAIN, [b"\x01"])), id="no purpose"),
        pytest.param(
            text_of(b"\x01" + OLD.session_token.encrypt(PLAIN, [b"session token", b"\x02"])),
            id="key id is not what was sealed",
        ),
        pytest.param(text_of(b"\x01" + OLD.ufrag.encrypt(PLAIN, [b"\x01"])), id="key of ufrags"),
        pytest.param(
            text_of(b"\x01" + OLD.ufrag.encrypt(PLAIN, [b"session token", b"\x01"])),
            id="key of ufrags, purpose of tokens",
        ),
        pytest.param(
            seal_token(KeyRing([FleetKey(1, b"another fleet's secret, 32 bytes")], 1), TOKEN),
            id="other fleet",
        ),
    ],
)
def test_forged_token_is_refused(text: str) -> None:
    assert fault_of(open_token_untrusted, RING, text) is WireFault.TOKEN_FORGED


def test_token_does_not_open_under_another_key_id_of_the_ring() -> None:
    relabelled = text_of(b"\x02" + bytes_of(TEXT)[1:])
    assert fault_of(open_token_untrusted, KeyRing([OLD, NEW], 2), relabelled) is WireFault.TOKEN_FORGED


@pytest.mark.parametrize("transceiver", ["10.1.2.3:5000", "[fd00::3]:5000"])
def test_ufrag_is_no_token(transceiver: str) -> None:
    ufrag = seal_ufrag(RING, RouteHint(1, Address.parse(transceiver), 1_700_000_000, b"nonce"))
    assert fault_of(open_token_untrusted, RING, ufrag) is WireFault.TOKEN_FORGED
    for associated_data in ([b"\x01"], [b"session token", b"\x01"]):
        with pytest.raises(InvalidTag):
            OLD.session_token.decrypt(
                bytes_of(ufrag.translate(str.maketrans("+/", "-_")))[1:], associated_data
            )


@given(TOKENS)
def test_token_is_no_ufrag(token: SessionToken) -> None:
    text = seal_token(RING, token)
    assert fault_of(open_ufrag_untrusted, RING, text) is WireFault.UFRAG_FORGED
    for associated_data in ([b"\x01"], [b"session token", b"\x01"]):
        with pytest.raises(InvalidTag):
            OLD.ufrag.decrypt(bytes_of(text)[1:], associated_data)


@given(text_damaged(TEXT, URL_SAFE))
def test_damaged_token_never_opens(text: str) -> None:
    assert fault_of(open_token_untrusted, RING, text) is WireFault.TOKEN_FORGED


@given(st.binary(min_size=43, max_size=43))
def test_guessed_token_never_opens(sealed: bytes) -> None:
    assert fault_of(open_token_untrusted, RING, text_of(b"\x01" + sealed)) is WireFault.TOKEN_FORGED


@given(st.text() | st.text(URL_SAFE, min_size=59, max_size=59))
def test_any_url_safe_text_raises_only_token_forged(text: str) -> None:
    assert fault_of(open_token_untrusted, RING, text) is WireFault.TOKEN_FORGED


@given(st.text(st.characters(max_codepoint=0x7F), min_size=59, max_size=59))
@example("!" * 59)
def test_any_text_of_a_tokens_size_raises_only_token_forged(text: str) -> None:
    assert fault_of(open_token_untrusted, RING, text) is WireFault.TOKEN_FORGED
