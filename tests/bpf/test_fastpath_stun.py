"""Whose check it is: XDP's bounded walk over attributes, against a plain reading of the same bytes."""

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import UFRAG_TAG_BYTES, UFRAG_TAG_OFFSET
from tests.bpf.assured import (
    CLIENT_LINK,
    HOP_LINK,
    XDP_TX,
    Packet,
    Passed,
    Relay,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.relay.network import (
    BINDING_ERROR,
    BINDING_INDICATION,
    BINDING_REQUEST,
    BINDING_SUCCESS,
    CALL,
    CALL_V6,
    CLIENT_V4,
    CLIENT_V6,
    OTHER_CALL,
    SOFTWARE,
    USERNAME,
    attribute,
    check,
    stun,
    username,
)
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

# bpf/include/webrtc.h
READ_ATTRIBUTES, SHORTEST_UFRAG = 8, 47
OWN, OTHER = username(CALL)[1], username(OTHER_CALL)[1]
TRANSACTION = bytes(range(12))
ENDS = pytest.mark.parametrize(
    ("client", "vip_index"), [(CLIENT_V4, 0), (CLIENT_V6, 1)], ids=["IPv4", "IPv6"]
)


def names_own_tag(message: bytes) -> bool:
    """A good STUN header of a Binding request, and the first USERNAME, among the first eight attributes, has the tag."""
    if len(message) < 20:
        return False
    kind, length, cookie = struct.unpack_from("!HHI", message)
    if kind != BINDING_REQUEST or cookie != 0x2112A442 or length % 4 or len(message) != 20 + length:
        return False
    rest = message[20:]
    for _ in range(READ_ATTRIBUTES):
        if len(rest) < 4:
            return False
        name, size = struct.unpack_from("!HH", rest)
        value, rest = rest[4:], rest[4 + (size + 3) // 4 * 4 :]
        if 4 + len(value) < 4 + (size + 3) // 4 * 4:
            return False
        if name == USERNAME:
            found = value[UFRAG_TAG_OFFSET : UFRAG_TAG_OFFSET + UFRAG_TAG_BYTES]
            return size > SHORTEST_UFRAG and found == CALL.tag.encode()
    return False


def know_flow(relay: Relay, client: Address = CLIENT_V4, vip_index: int = 0) -> None:
    relay.know_hop(CALL.transceiver, mtu=4000)
    relay.know_flow(client, vip_index)


def sends(
    relay: Relay,
    message: bytes,
    client: Address = CLIENT_V4,
    vip_index: int = 0,
    *,
    padding: bytes = b"",
    cut: int = 0,
) -> Verdict | None:
    """What becomes of the message; what is forwarded must be forwarded whole, and all else be left as it was."""
    packet = Packet(client, listen_of(vip_index), message)
    frame = framed(CLIENT_LINK, packet, padding=padding)
    frame = frame[: len(frame) - cut]
    passed = relay.meets(frame)
    if passed.action != XDP_TX:
        assert passed.frame == frame
        return passed.verdict
    payload = encode_header(client, vip_of(vip_index)) + message
    sent = Packet(fleet_socket(CALL.transceiver), CALL.transceiver, payload, hop_limit=63)
    assert passed == Passed(XDP_TX, Verdict.FORWARD_STUN, framed(HOP_LINK, sent, 0, padding=padding))
    return passed.verdict


def message_of(body: bytes, *, kind: int = BINDING_REQUEST, length: int | None = None) -> bytes:
    """A STUN message with this behind its header."""
    size = len(body) if length is None else length
    return struct.pack("!HHI", kind, size, 0x2112A442) + TRANSACTION + body


FORWARD, HAND_UP, MALFORMED = Verdict.FORWARD_STUN, Verdict.HAND_UP, Verdict.DROP_STUN_MALFORMED
_FILLER = (SOFTWARE, b"tests")
_EMPTY = (SOFTWARE, b"")


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        pytest.param(check(CALL), FORWARD, id="a browser's"),
        *[
            pytest.param(
                stun(*[filler] * before, (USERNAME, OWN)),
                FORWARD if before < READ_ATTRIBUTES else HAND_UP,
                id=f"behind {before} attributes of {len(filler[1])} bytes",
            )
            for before in range(10)
            for filler in (_FILLER, _EMPTY)
        ],
        *[
            pytest.param(
                stun(*[_EMPTY] * before, (USERNAME, OWN), *[_FILLER] * 20), FORWARD, id=f"{before} before, 20 behind"
            )
            for before in (0, 7)
        ],
        pytest.param(stun((SOFTWARE, b"x" * 700), (USERNAME, OWN)), FORWARD, id="behind a long one"),
        pytest.param(stun((SOFTWARE, b"x" * 1900), (USERNAME, OWN)), FORWARD, id="behind a very long one"),
        pytest.param(stun((USERNAME, OTHER)), HAND_UP, id="another call's"),
        pytest.param(stun((USERNAME, OTHER), (USERNAME, OWN)), HAND_UP, id="the second USERNAME"),
        pytest.param(stun((USERNAME, OWN), (USERNAME, OTHER)), FORWARD, id="the first USERNAME"),
        pytest.param(stun((USERNAME, b"")), HAND_UP, id="empty"),
        pytest.param(stun((USERNAME, OWN[:2])), HAND_UP, id="two characters"),
        pytest.param(stun((USERNAME, OWN[:10])), HAND_UP, id="the tag and no more"),
        pytest.param(stun((USERNAME, OWN[:47])), HAND_UP, id="no room for a colon"),
        pytest.param(stun((USERNAME, OWN[:48])), FORWARD, id="up to the colon"),
        pytest.param(stun((USERNAME, OWN[:47] + b"x")), FORWARD, id="something else than a colon"),
        pytest.param(stun((USERNAME, b"x" + OWN)), HAND_UP, id="the tag one place on"),
        pytest.param(stun((USERNAME, OWN[1:])), HAND_UP, id="the tag one place back"),
        *[
            pytest.param(
                stun((USERNAME, OWN[:at] + bytes([OWN[at] ^ 1]) + OWN[at + 1 :])), HAND_UP, id=f"bit {at} of the tag"
            )
            for at in range(UFRAG_TAG_OFFSET, UFRAG_TAG_OFFSET + UFRAG_TAG_BYTES)
        ],
        *[
            pytest.param(
                stun((USERNAME, OWN[:at] + bytes([OWN[at] ^ 1]) + OWN[at + 1 :])), FORWARD, id=f"character {at}"
            )
            for at in (0, 1, 10, 47)
        ],
        *[
            pytest.param(stun((kind, OWN)), HAND_UP, id=f"in attribute {kind:#06x}")
            for kind in (0x0005, 0x0007, 0x0600, 0x8006, 0x0106, 0x0000)
        ],
        *[
            pytest.param(stun((USERNAME, OWN), message_type=kind), HAND_UP, id=f"message type {kind:#06x}")
            for kind in (BINDING_INDICATION, BINDING_SUCCESS, BINDING_ERROR, 0x0003, 0x0002, 0x0100, 0x0000, 0x0301)
        ],
        pytest.param(stun(), HAND_UP, id="no attribute"),
        pytest.param(message_of(attribute(USERNAME, OWN)[:8]), HAND_UP, id="longer than the message"),
        pytest.param(message_of(b"\0\6\xff\xff" + OWN), HAND_UP, id="of 65535 bytes"),
        pytest.param(message_of(b"\x80\x22\xff\xfd" + attribute(USERNAME, OWN)), HAND_UP, id="behind 65533 bytes"),
        pytest.param(message_of(b"\x80\x22\xff\xff" + attribute(USERNAME, OWN)), HAND_UP, id="behind 65535 bytes"),
        pytest.param(
            # back to the same attribute, if places were counted in 11 bits
            message_of(struct.pack("!HH", SOFTWARE, 2048 - 4) + attribute(USERNAME, OWN)), HAND_UP, id="behind 2044 bytes"
        ),
        pytest.param(message_of(attribute(USERNAME, OWN), length=0), MALFORMED, id="header says 0 bytes"),
        pytest.param(message_of(attribute(USERNAME, OWN) + b"\0"), MALFORMED, id="one byte behind"),
        pytest.param(message_of(attribute(USERNAME, OWN), length=0xFFFC), MALFORMED, id="header says 65532 bytes"),
        pytest.param(check(CALL)[:4] + b"\x21\x12\xa4\x43" + check(CALL)[8:], MALFORMED, id="wrong cookie"),
        pytest.param(b"\3" + check(CALL)[1:], HAND_UP, id="first byte 3"),
    ],
)  # fmt: skip
@ENDS
def test_check(assured: Relay, client: Address, vip_index: int, message: bytes, verdict: Verdict) -> None:
    know_flow(assured, client, vip_index)
    assert names_own_tag(message) is (verdict is FORWARD)
    assert sends(assured, message, client, vip_index) is verdict


@ENDS
def test_ufrag_of_an_ipv6_hint_is_longer(assured: Relay, client: Address, vip_index: int) -> None:
    assured.know_hop(CALL_V6.transceiver)
    assured.know_flow(client, vip_index, CALL_V6.transceiver, tag=CALL_V6.tag)
    packet = Packet(client, listen_of(vip_index), check(CALL_V6))
    assert assured.meets(framed(CLIENT_LINK, packet)).verdict is FORWARD
    assured.hands_up(framed(CLIENT_LINK, Packet(client, listen_of(vip_index), check(CALL))))


def test_flow_without_a_tag_forwards_no_check(assured: Relay) -> None:
    """Not even one that has zeros in its place."""
    assured.know_hop(CALL.transceiver)
    assured.know_flow(CLIENT_V4, tag="")
    assert sends(assured, check(CALL)) is HAND_UP


@ENDS
def test_every_cut_of_the_payload(assured: Relay, client: Address, vip_index: int) -> None:
    """The datagram is shorter than STUN's header says, and at every length its headers fit."""
    know_flow(assured, client, vip_index)
    whole = check(CALL)
    for length in range(1, len(whole)):
        assert sends(assured, whole[:length], client, vip_index) is MALFORMED, length
        shorter = whole[:2] + struct.pack("!H", max(0, length - 20)) + whole[4:length]
        verdict = sends(assured, shorter, client, vip_index)
        if length < 20 or length % 4:
            assert verdict is MALFORMED, length
        else:
            assert (verdict is FORWARD) is names_own_tag(shorter), length
            assert verdict in (FORWARD, HAND_UP), length


def test_every_cut_of_the_frame(assured: Relay) -> None:
    """The headers say more than there is: handed up as long as there is a STUN header, and never forwarded."""
    know_flow(assured)
    whole = check(CALL)
    for cut in range(1, len(whole) + 1):
        left = len(whole) - cut
        verdict = sends(assured, whole, cut=cut)
        # XDP reads type, length and cookie.
        expected = HAND_UP if left >= 8 else MALFORMED if left else Verdict.DROP_MALFORMED
        assert verdict is expected, left


@pytest.mark.parametrize(
    "padding", [b"\0" * 18, b"\xff" * 60, attribute(USERNAME, OWN)], ids=["0", "ff", "USERNAME"]
)
def test_padding_behind_the_packet_is_not_read(assured: Relay, padding: bytes) -> None:
    know_flow(assured)
    assert sends(assured, check(CALL), padding=padding) is FORWARD
    assert sends(assured, stun(), padding=padding) is HAND_UP
    assert sends(assured, stun(*[_FILLER] * 3), padding=padding) is HAND_UP
    assert sends(assured, message_of(b"\0\6\0\x34"), padding=OWN) is HAND_UP
    assert sends(assured, message_of(b""), padding=padding) is HAND_UP


def test_padding_that_would_complete_a_cut_payload(assured: Relay) -> None:
    know_flow(assured)
    whole = check(CALL)
    for length in (20, 24, 40, 72, len(whole) - 4):
        cut = whole[:2] + struct.pack("!H", length - 20) + whole[4:length]
        verdict = sends(assured, cut, padding=whole[length:])
        assert (verdict is FORWARD) is names_own_tag(cut)


# What an attribute may be, and what it may say to be.
KINDS = st.sampled_from([USERNAME, USERNAME, SOFTWARE, 0x0008, 0x0024, 0x8028]) | st.integers(0, 0xFFFF)
VALUES = st.sampled_from([OWN, OWN, OTHER, OWN[:47], OWN[:48], b"", CALL.tag.encode()]) | st.binary(
    max_size=64
)


def lying(kind: int, value: bytes, says: int | None, padding: bytes) -> bytes:
    """An attribute that says another length than it has."""
    honest = attribute(kind, value)
    return honest if says is None else struct.pack("!HH", kind, says) + honest[4:] + padding


LIES = st.none() | st.none() | st.integers(0, 80) | st.integers(0, 0xFFFF)
ATTRIBUTES = st.builds(lying, KINDS, VALUES, LIES, st.binary(max_size=4))
BODIES = st.lists(ATTRIBUTES, max_size=12).map(b"".join) | st.binary(max_size=1400)


@settings(deadline=None, max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=BODIES,
    aligned=st.booleans(),
    kind=st.sampled_from([BINDING_REQUEST] * 6 + [BINDING_SUCCESS, BINDING_INDICATION]),
    padding=st.binary(max_size=40),
)
@example(attribute(USERNAME, OWN), True, BINDING_REQUEST, b"")
@example(b"", True, BINDING_REQUEST, attribute(USERNAME, OWN))
def test_any_attributes(assured: Relay, body: bytes, aligned: bool, kind: int, padding: bytes) -> None:
    know_flow(assured)
    body = body[: 1400 if not aligned else min(1400, len(body)) // 4 * 4]
    message = message_of(body, kind=kind)
    verdict = sends(assured, message, padding=padding)
    assert (verdict is FORWARD) is names_own_tag(message)
    assert verdict in ((FORWARD, HAND_UP) if len(body) % 4 == 0 else (MALFORMED,))


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, cut=st.integers(1, 1500))
def test_any_attributes_in_a_frame_that_is_too_short(assured: Relay, body: bytes, cut: int) -> None:
    know_flow(assured)
    message = message_of(body[: min(len(body), 1400) // 4 * 4])
    assert sends(assured, message, cut=min(cut, len(message))) in (HAND_UP, MALFORMED, Verdict.DROP_MALFORMED)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=1400), first=st.integers(0, 3))
def test_any_bytes_that_begin_as_stun_does(assured: Relay, rest: bytes, first: int) -> None:
    know_flow(assured)
    message = bytes([first]) + rest
    verdict = sends(assured, message)
    assert (verdict is FORWARD) is names_own_tag(message)
    assert verdict in (FORWARD, HAND_UP, MALFORMED)
