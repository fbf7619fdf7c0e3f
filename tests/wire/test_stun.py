"""STUN: the RFC's vectors, an independent implementation, and everything that a sender can get wrong."""

from hashlib import sha1
from hmac import digest
from struct import pack
from zlib import crc32

import aioice.stun
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.network import ADDRESSES, cut_short, fault_of, one_byte_flipped
from wire.address import Address
from wire.errors import WireError, WireFault
from wire.stun import (
    MAX_ATTRIBUTES,
    MAX_USERNAME_BYTES,
    Attribute,
    StunClass,
    StunMessage,
    parse_stun_untrusted,
    verify_integrity,
    write_binding_error,
    write_binding_request,
    write_binding_success,
)

TRANSACTION_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
KEY = b"VOkJxbRl1RmTxUk/WvJxBt"  # the password of RFC 5769 section 2
SOFTWARE = 0x8022
META_DTLS_IN_STUN = 0xC070  # of the comprehension-optional range, as WARP's
RFC_REQUEST = bytes.fromhex(  # https://www.rfc-editor.org/rfc/rfc5769#section-2.1
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RFC_RESPONSE_V4 = bytes.fromhex(  # https://www.rfc-editor.org/rfc/rfc5769#section-2.2
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RFC_RESPONSE_V6 = bytes.fromhex(  # https://www.rfc-editor.org/rfc/rfc5769#section-2.3
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)
RFC_VECTORS = [
    pytest.param(RFC_REQUEST, id="2.1 request"),
    pytest.param(RFC_RESPONSE_V4, id="2.2 IPv4 response"),
    pytest.param(RFC_RESPONSE_V6, id="2.3 IPv6 response"),
]

USERNAME = (Attribute.USERNAME, b"evtj:h6vY")
PRIORITY = (Attribute.PRIORITY, bytes.fromhex("6e0001ff"))


def attribute(kind: int, value: bytes) -> bytes:
    return pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def stun(*attributes: tuple[int, bytes], message_type: int = 0x0001) -> bytes:
    """A message of these attributes with nothing added."""
    return with_header(b"".join(attribute(*each) for each in attributes), message_type)


def with_header(body: bytes, message_type: int = 0x0001) -> bytes:
    return pack("!HHI", message_type, len(body), 0x2112A442) + TRANSACTION_ID + body


def signed(datagram: bytes, key: bytes = KEY) -> bytes:
    """``datagram`` with MESSAGE-INTEGRITY at its end."""
    covered = datagram[:2] + pack("!H", len(datagram) - 20 + 24) + datagram[4:]
    return covered + attribute(Attribute.MESSAGE_INTEGRITY, digest(key, covered, sha1))


def fingerprinted(datagram: bytes) -> bytes:
    """``datagram`` with FINGERPRINT at its end."""
    covered = datagram[:2] + pack("!H", len(datagram) - 20 + 8) + datagram[4:]
    return covered + attribute(Attribute.FINGERPRINT, pack("!I", crc32(covered) ^ 0x5354554E))


def followed_by(datagram: bytes, *attributes: tuple[int, bytes]) -> bytes:
    """``datagram`` with more attributes at its end, and its length mended."""
    return with_header(datagram[20:] + b"".join(attribute(*each) for each in attributes))


def authenticated(datagram: bytes, key: bytes = KEY) -> bool:
    """Whether a receiver would act on ``datagram``."""
    try:
        message = parse_stun_untrusted(datagram)
    except WireError:
        return False
    return verify_integrity(datagram, message, key)


@pytest.mark.parametrize(
    ("datagram", "parsed"),
    [
        pytest.param(
            RFC_REQUEST,
            StunMessage(
                0x0001,
                StunClass.REQUEST,
                TRANSACTION_ID,
                {
                    SOFTWARE: b"STUN test client",
                    Attribute.PRIORITY: bytes.fromhex("6e0001ff"),
                    Attribute.ICE_CONTROLLED: bytes.fromhex("932ff9b151263b36"),
                    Attribute.USERNAME: b"evtj:h6vY",
                    Attribute.MESSAGE_INTEGRITY: bytes.fromhex("9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"),
                },
                76,
            ),
            id="2.1 request",
        ),
        pytest.param(
            RFC_RESPONSE_V4,
            StunMessage(
                0x0001,
                StunClass.SUCCESS,
                TRANSACTION_ID,
                {
                    SOFTWARE: b"test vector",
                    Attribute.XOR_MAPPED_ADDRESS: bytes.fromhex("0001a147e112a643"),
                    Attribute.MESSAGE_INTEGRITY: bytes.fromhex("2b91f599fd9e90c38c7489f92af9ba53f06be7d7"),
                },
                48,
            ),
            id="2.2 IPv4 response",
        ),
        pytest.param(
            RFC_RESPONSE_V6,
            StunMessage(
                0x0001,
                StunClass.SUCCESS,
                TRANSACTION_ID,
                {
                    SOFTWARE: b"test vector",
                    Attribute.XOR_MAPPED_ADDRESS: bytes.fromhex("0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"),
                    Attribute.MESSAGE_INTEGRITY: bytes.fromhex("a382954e4be67bf11784c97c8292c275bfe3ed41"),
                },
                60,
            ),
            id="2.3 IPv6 response",
        ),
    ],
)
def test_rfc5769_vector_is_read(datagram: bytes, parsed: StunMessage) -> None:
    assert parse_stun_untrusted(datagram) == parsed


def test_rfc5769_username() -> None:
    assert parse_stun_untrusted(RFC_REQUEST).ufrags_untrusted == ("evtj", "h6vY")


@pytest.mark.parametrize("datagram", RFC_VECTORS)
def test_rfc5769_integrity_fits_its_password_only(datagram: bytes) -> None:
    message = parse_stun_untrusted(datagram)
    assert verify_integrity(datagram, message, KEY)
    assert not verify_integrity(datagram, message, KEY[:-1])
    assert not verify_integrity(datagram, message, b"")


@pytest.mark.parametrize("datagram", RFC_VECTORS)
def test_rfc5769_fingerprint_notices_every_flipped_byte(datagram: bytes) -> None:
    transaction_id, fingerprint = range(8, 20), range(len(datagram) - 4, len(datagram))
    for at in (*transaction_id, *fingerprint):
        flipped = datagram[:at] + bytes((datagram[at] ^ 0x01,)) + datagram[at + 1 :]
        assert fault_of(parse_stun_untrusted, flipped) is WireFault.STUN_FINGERPRINT


@pytest.mark.parametrize(
    ("datagram", "mapped"),
    [
        pytest.param(RFC_RESPONSE_V4, "192.0.2.1:32853", id="2.2 IPv4"),
        pytest.param(RFC_RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853", id="2.3 IPv6"),
    ],
)
def test_writer_xors_the_address_as_rfc5769_does(datagram: bytes, mapped: str) -> None:
    written = parse_stun_untrusted(write_binding_success(TRANSACTION_ID, Address.parse(mapped), KEY))
    expected = parse_stun_untrusted(datagram).attributes[Attribute.XOR_MAPPED_ADDRESS]
    assert written.attributes[Attribute.XOR_MAPPED_ADDRESS] == expected


@given(st.binary(min_size=12, max_size=12), ADDRESSES, st.binary(min_size=1, max_size=64))
def test_success_answer_is_read_by_aioice(transaction_id: bytes, mapped: Address, key: bytes) -> None:
    message = aioice.stun.parse_message(write_binding_success(transaction_id, mapped, key))
    assert message.check_message_integrity(key)
    assert message.message_class is aioice.stun.Class.RESPONSE
    assert message.message_method is aioice.stun.Method.BINDING
    assert message.transaction_id == transaction_id
    assert message.attributes["XOR-MAPPED-ADDRESS"] == (str(mapped.ip), mapped.port)
    assert "FINGERPRINT" in message.attributes


@given(
    st.binary(min_size=12, max_size=12),
    st.integers(0, 0xFFFFFFFF),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_check_is_read_by_aioice(
    transaction_id: bytes, priority: int, controlling: int | None, controlled: int | None, use_candidate: bool
) -> None:
    datagram = write_binding_request(
        transaction_id,
        "evtj:h6vY",
        KEY,
        priority=priority,
        controlling_tie_breaker=controlling,
        controlled_tie_breaker=controlled,
        use_candidate=use_candidate,
    )
    message = aioice.stun.parse_message(datagram)
    assert message.check_message_integrity(KEY)
    assert message.message_class is aioice.stun.Class.REQUEST
    assert message.transaction_id == transaction_id
    assert message.attributes["USERNAME"] == "evtj:h6vY"
    assert message.attributes["PRIORITY"] == priority
    assert message.attributes.get("ICE-CONTROLLING") == controlling
    assert message.attributes.get("ICE-CONTROLLED") == controlled
    assert ("USE-CANDIDATE" in message.attributes) == use_candidate
    assert parse_stun_untrusted(datagram).use_candidate == use_candidate


def test_role_conflict_is_read_by_aioice() -> None:
    message = aioice.stun.parse_message(write_binding_error(TRANSACTION_ID, 487, "Role Conflict", KEY))
    assert message.check_message_integrity(KEY)
    assert message.message_class is aioice.stun.Class.ERROR
    assert message.attributes["ERROR-CODE"] == (487, "Role Conflict")


def test_check_of_aioice_is_read() -> None:
    check = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST, TRANSACTION_ID)
    check.attributes |= {"USERNAME": "ours:theirs", "PRIORITY": 1, "USE-CANDIDATE": None}
    check.add_message_integrity(KEY)
    message = parse_stun_untrusted(bytes(check))
    assert message.is_binding_request
    assert message.use_candidate
    assert message.ufrags_untrusted == ("ours", "theirs")
    assert verify_integrity(bytes(check), message, KEY)


@pytest.mark.parametrize(
    ("message_type", "method", "message_class", "is_binding_request"),
    [
        pytest.param(0x0001, 1, StunClass.REQUEST, True, id="Binding request"),
        pytest.param(0x0011, 1, StunClass.INDICATION, False, id="Binding indication"),
        pytest.param(0x0101, 1, StunClass.SUCCESS, False, id="Binding success"),
        pytest.param(0x0111, 1, StunClass.ERROR, False, id="Binding error"),
        pytest.param(0x0003, 3, StunClass.REQUEST, False, id="TURN Allocate"),
    ],
)
def test_message_type(
    message_type: int, method: int, message_class: StunClass, is_binding_request: bool
) -> None:
    message = parse_stun_untrusted(stun(message_type=message_type))
    assert (message.method, message.message_class) == (method, message_class)
    assert message.is_binding_request is is_binding_request


def repeated(count: int) -> list[tuple[int, bytes]]:
    return [(SOFTWARE, b"")] * count


MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(stun()[:-1], id="header cut short"),
    pytest.param(stun(USERNAME)[:4] + b"\x21\x12\xa4\x43" + stun(USERNAME)[8:], id="wrong cookie"),
    pytest.param(stun(USERNAME)[:4] + bytes(4) + stun(USERNAME)[8:], id="RFC 3489, no cookie"),
    pytest.param(stun(message_type=0x4001), id="second bit set"),
    pytest.param(stun(message_type=0x8001), id="first bit set"),
    pytest.param(stun(message_type=0xC001), id="first two bits set"),
    pytest.param(stun(PRIORITY)[:-4], id="datagram shorter than the length says"),
    pytest.param(stun(PRIORITY) + bytes(4), id="datagram longer than the length says"),
    pytest.param(stun(PRIORITY) + stun(), id="two messages in a datagram"),
    pytest.param(with_header(bytes(2)), id="length 2"),
    pytest.param(with_header(attribute(*PRIORITY) + bytes(1)), id="length 9"),
    pytest.param(with_header(pack("!HH", SOFTWARE, 1)), id="attribute overruns by its padding"),
    pytest.param(with_header(pack("!HH", SOFTWARE, 5) + bytes(4)), id="attribute overruns by a byte"),
    pytest.param(with_header(pack("!HH", SOFTWARE, 0xFFFF) + bytes(8)), id="attribute overruns by 64 KB"),
    pytest.param(
        stun(USERNAME, (Attribute.MESSAGE_INTEGRITY, bytes(19))), id="MESSAGE-INTEGRITY of 19 bytes"
    ),
    pytest.param(
        stun(USERNAME, (Attribute.MESSAGE_INTEGRITY, bytes(21))), id="MESSAGE-INTEGRITY of 21 bytes"
    ),
    pytest.param(
        stun(USERNAME, (Attribute.MESSAGE_INTEGRITY, bytes(32))), id="MESSAGE-INTEGRITY of 32 bytes"
    ),
    pytest.param(stun(USERNAME, (Attribute.MESSAGE_INTEGRITY, b"")), id="MESSAGE-INTEGRITY empty"),
    pytest.param(followed_by(fingerprinted(stun()), PRIORITY), id="FINGERPRINT not last"),
    pytest.param(fingerprinted(fingerprinted(stun())), id="FINGERPRINT doubled"),
    pytest.param(stun((Attribute.FINGERPRINT, bytes(3))), id="FINGERPRINT of 3 bytes"),
    pytest.param(stun((Attribute.FINGERPRINT, bytes(8))), id="FINGERPRINT of 8 bytes"),
    pytest.param(stun(*repeated(MAX_ATTRIBUTES + 1)), id="33 attributes"),
    pytest.param(stun(*repeated(16_000)), id="64 KB of empty attributes"),
]


@pytest.mark.parametrize("datagram", MALFORMED)
def test_malformed_message_is_refused(datagram: bytes) -> None:
    assert fault_of(parse_stun_untrusted, datagram) is WireFault.STUN_MALFORMED


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(stun((Attribute.FINGERPRINT, bytes(4))), id="zeros"),
        pytest.param(
            stun((Attribute.FINGERPRINT, pack("!I", crc32(stun((Attribute.FINGERPRINT, b"1234"))[:20])))),
            id="no XOR",
        ),
        pytest.param(fingerprinted(stun(USERNAME))[:-1] + b"\x00", id="last byte lost"),
        pytest.param(fingerprinted(stun(USERNAME)).replace(b"evtj", b"evtk"), id="message changed under it"),
    ],
)
def test_wrong_fingerprint_is_refused(datagram: bytes) -> None:
    assert fault_of(parse_stun_untrusted, datagram) is WireFault.STUN_FINGERPRINT


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(stun(USERNAME, USERNAME), id="USERNAME doubled"),
        pytest.param(stun(USERNAME, PRIORITY, (Attribute.USERNAME, b"other:h6vY")), id="another USERNAME"),
        pytest.param(
            stun((Attribute.USERNAME, b"a:" + b"b" * (MAX_USERNAME_BYTES - 1))), id="USERNAME of 509 bytes"
        ),
    ],
)
def test_ambiguous_or_long_username_is_refused(datagram: bytes) -> None:
    assert fault_of(parse_stun_untrusted, datagram) is WireFault.STUN_USERNAME


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(stun(PRIORITY), id="no USERNAME"),
        pytest.param(followed_by(signed(stun(PRIORITY)), USERNAME), id="USERNAME after MESSAGE-INTEGRITY"),
        pytest.param(stun((Attribute.USERNAME, b"")), id="empty"),
        pytest.param(stun((Attribute.USERNAME, b"evtj")), id="no colon"),
        pytest.param(stun((Attribute.USERNAME, b":")), id="colon alone"),
        pytest.param(stun((Attribute.USERNAME, b":h6vY")), id="no server ufrag"),
        pytest.param(stun((Attribute.USERNAME, b"evtj:")), id="no client ufrag"),
        pytest.param(stun((Attribute.USERNAME, "évtj:h6vY".encode())), id="not ASCII in the server ufrag"),
        pytest.param(stun((Attribute.USERNAME, b"evtj:\xff")), id="not ASCII in the client ufrag"),
    ],
)
def test_username_that_names_no_ufrags(datagram: bytes) -> None:
    message = parse_stun_untrusted(datagram)
    assert fault_of(lambda: message.ufrags_untrusted) is WireFault.STUN_USERNAME


def test_longest_username_is_read() -> None:
    client_ufrag = "b" * (MAX_USERNAME_BYTES - 2)
    message = parse_stun_untrusted(stun((Attribute.USERNAME, f"a:{client_ufrag}".encode())))
    assert message.ufrags_untrusted == ("a", client_ufrag)


@pytest.mark.parametrize(
    "late",
    [
        pytest.param((Attribute.USERNAME, b"evil:h6vY"), id="a second USERNAME"),
        pytest.param((Attribute.USERNAME, bytes(600)), id="a USERNAME too long"),
        pytest.param((Attribute.MESSAGE_INTEGRITY, bytes(20)), id="a second MESSAGE-INTEGRITY"),
        pytest.param((Attribute.MESSAGE_INTEGRITY, bytes(3)), id="a MESSAGE-INTEGRITY of 3 bytes"),
        pytest.param((Attribute.USE_CANDIDATE, b""), id="a nomination"),
        pytest.param((0x001C, bytes(32)), id="MESSAGE-INTEGRITY-SHA256"),
    ],
)
def test_what_follows_message_integrity_is_ignored(late: tuple[int, bytes]) -> None:
    before = signed(stun(USERNAME))
    datagram = followed_by(before, late)
    message = parse_stun_untrusted(datagram)
    assert message == parse_stun_untrusted(before)
    assert verify_integrity(datagram, message, KEY)


def test_first_of_an_attribute_counts() -> None:
    message = parse_stun_untrusted(stun((SOFTWARE, b"first"), (SOFTWARE, b"second")))
    assert message.attributes == {SOFTWARE: b"first"}


def test_32_attributes_are_read() -> None:
    assert parse_stun_untrusted(stun(*repeated(MAX_ATTRIBUTES))).attributes == {SOFTWARE: b""}


@pytest.mark.parametrize("size", [0, 1, 3, 4, 255, 1200, 1399, 1400])
def test_large_unknown_attribute_is_kept(size: int) -> None:
    dtls = bytes(at * 7 % 256 for at in range(size))
    datagram = fingerprinted(signed(stun(USERNAME, (META_DTLS_IN_STUN, dtls), (0x7FFF, b"?"), PRIORITY)))
    message = parse_stun_untrusted(datagram)
    assert message.attributes[META_DTLS_IN_STUN] == dtls
    assert message.attributes[0x7FFF] == b"?"
    assert message.ufrags_untrusted == ("evtj", "h6vY")
    assert verify_integrity(datagram, message, KEY)


@pytest.mark.parametrize(
    ("datagram", "key", "fits"),
    [
        pytest.param(signed(stun(USERNAME)), KEY, True, id="signed"),
        pytest.param(fingerprinted(signed(stun(USERNAME))), KEY, True, id="signed, then FINGERPRINT"),
        pytest.param(signed(stun()), KEY, True, id="signed without attributes"),
        pytest.param(stun(USERNAME), KEY, False, id="not signed"),
        pytest.param(signed(stun(USERNAME), b"guess"), KEY, False, id="signed with another key"),
        pytest.param(stun(USERNAME, (Attribute.MESSAGE_INTEGRITY, bytes(20))), KEY, False, id="zeros"),
    ],
)
def test_integrity(datagram: bytes, key: bytes, fits: bool) -> None:
    assert authenticated(datagram, key) is fits


UNKNOWN_KINDS = st.integers(0, 0xFFFF).filter(
    lambda kind: kind not in (Attribute.USERNAME, Attribute.MESSAGE_INTEGRITY, Attribute.FINGERPRINT)
)


@given(st.lists(st.tuples(UNKNOWN_KINDS, st.binary(max_size=40)), max_size=MAX_ATTRIBUTES - 2), st.booleans())
def test_any_attributes_are_read_back(attributes: list[tuple[int, bytes]], sign: bool) -> None:
    datagram = fingerprinted(signed(stun(*attributes))) if sign else stun(*attributes)
    message = parse_stun_untrusted(datagram)
    kept = {kind: value for kind, value in message.attributes.items() if kind != Attribute.MESSAGE_INTEGRITY}
    assert kept == dict(reversed(attributes))
    assert authenticated(datagram) is sign


CHECK = write_binding_request(TRANSACTION_ID, "evtj:h6vY", KEY, controlling_tie_breaker=7, use_candidate=True)
# FINGERPRINT catches accidents before MESSAGE-INTEGRITY is looked at: an attacker leaves it out
CHECK_WITHOUT_FINGERPRINT = with_header(CHECK[20:-8])


def test_check_without_fingerprint_is_still_signed() -> None:
    assert authenticated(CHECK)
    assert authenticated(CHECK_WITHOUT_FINGERPRINT)


@given(one_byte_flipped(CHECK_WITHOUT_FINGERPRINT))
def test_flipped_byte_never_verifies(datagram: bytes) -> None:
    assert not authenticated(datagram)


# not in the length, which FINGERPRINT's writer sets anew
FLIPPED_BEYOND_LENGTH = one_byte_flipped(CHECK_WITHOUT_FINGERPRINT).filter(
    lambda datagram: datagram[2:4] == CHECK_WITHOUT_FINGERPRINT[2:4]
)


@given(FLIPPED_BEYOND_LENGTH.map(fingerprinted))
@example(fingerprinted(CHECK_WITHOUT_FINGERPRINT.replace(b"evtj", b"evil")))
def test_flipped_byte_under_a_new_fingerprint_never_verifies(datagram: bytes) -> None:
    assert not authenticated(datagram)


@given(cut_short(CHECK_WITHOUT_FINGERPRINT))
def test_truncated_check_never_verifies(datagram: bytes) -> None:
    assert not authenticated(datagram)
    assert not authenticated(with_header(datagram[20:]))


@given(st.binary(min_size=1, max_size=64).filter(lambda key: key.ljust(64, b"\0") != KEY.ljust(64, b"\0")))
def test_other_key_never_verifies(key: bytes) -> None:
    assert not authenticated(CHECK, key)


@given(
    st.binary(max_size=100)
    | st.binary(max_size=200).map(with_header)
    | st.lists(
        st.tuples(st.sampled_from(Attribute) | st.integers(0, 0xFFFF), st.binary(max_size=30)), max_size=40
    ).map(lambda attributes: stun(*attributes))
    | one_byte_flipped(RFC_REQUEST)
    | cut_short(RFC_REQUEST)
)
def test_any_bytes_raise_only_stun_faults(datagram: bytes) -> None:
    fault = fault_of(parse_stun_untrusted, datagram)
    assert fault in {None, WireFault.STUN_MALFORMED, WireFault.STUN_FINGERPRINT, WireFault.STUN_USERNAME}
    if fault is None:
        message = parse_stun_untrusted(datagram)
        assert not verify_integrity(datagram, message, b"not the key")
        assert fault_of(lambda: message.ufrags_untrusted) in {None, WireFault.STUN_USERNAME}
