"""What clients get has a full, correct UDP checksum, whatever the transceiver's kernel left in its own."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core.verdict import Verdict
from tests.bpf.assured import (
    CLIENT_LINK,
    HOP_LINK,
    TWO_VLANS,
    XDP_TX,
    Packet,
    Passed,
    Relay,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.bpf.checksums import full_checksum, ipv4_checksum, partial_checksum
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, RTP, Call
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

# bpf/include/checksum.h; links of more than the usual 1500 bytes are needed for it.
LONGEST = 1536
LARGE_MTU = 9000
ENDS = {
    f"IPv{client.family} client, IPv{call.transceiver.family} transceiver": (client, vip_index, call)
    for client, vip_index in ((CLIENT_V4, 0), (CLIENT_V6, 1))
    for call in (CALL, CALL_V6)
}
Ends = tuple[Address, int, Call]
EVERY_END = pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)


def sent_down(ends: Ends, payload: bytes) -> Packet:
    """As the transceiver sends it."""
    client, vip_index, call = ends
    header = encode_header(client, vip_of(vip_index))
    return Packet(call.transceiver, fleet_socket(call.transceiver), header + payload)


def delivered(ends: Ends, payload: bytes) -> Packet:
    """As the client gets it."""
    client, vip_index, _ = ends
    return Packet(listen_of(vip_index), client, payload, hop_limit=63)


def know(relay: Relay, ends: Ends) -> None:
    client, vip_index, call = ends
    relay.programs.set_mtu(LARGE_MTU)
    relay.know_flow(client, vip_index, call.transceiver, client_link=CLIENT_LINK.back())


def payload_with_sum_of_zero(ends: Ends, length: int) -> bytes:
    """A payload of that length whose checksum is 0, and so must be sent as ffff."""
    client, vip_index, _ = ends
    payload = bytes(at * 31 % 251 for at in range(length - 2)) if length > 2 else b""
    # The last whole word takes what is missing; an odd byte may follow it.
    word_at = (length - 2) // 2 * 2
    payload = payload[:word_at] + bytes(2) + payload[word_at:]
    missing = full_checksum(listen_of(vip_index), client, payload)
    payload = payload[:word_at] + struct.pack("!H", missing) + payload[word_at + 2 :]
    assert len(payload) == length
    assert full_checksum(listen_of(vip_index), client, payload) == 0xFFFF
    return payload


@EVERY_END
def test_every_length(assured: Relay, ends: Ends) -> None:
    know(assured, ends)
    noise = bytes(at * 37 % 256 for at in range(1, LONGEST + 2))
    for length in range(1, LONGEST + 1):
        payload = noise[:length]
        passed = assured.meets(framed(HOP_LINK.back(), sent_down(ends, payload), 0))
        expected = framed(CLIENT_LINK.back(), delivered(ends, payload))
        assert passed == Passed(XDP_TX, Verdict.FORWARD_CLIENT, expected), length
    assured.hands_up(framed(HOP_LINK.back(), sent_down(ends, noise), 0))


@EVERY_END
@pytest.mark.parametrize("fill", [b"\0", b"\xff"], ids=["zeros", "ones"])
def test_every_length_of_extremes(assured: Relay, ends: Ends, fill: bytes) -> None:
    """Most carries, and none at all."""
    know(assured, ends)
    for length in range(1, LONGEST + 1):
        payload = fill * length
        passed = assured.meets(framed(HOP_LINK.back(), sent_down(ends, payload), 0))
        assert passed.frame == framed(CLIENT_LINK.back(), delivered(ends, payload)), length


@EVERY_END
@pytest.mark.parametrize("length", [2, 3, 4, 5, 31, 32, 33, 64, 100, 1200, LONGEST - 1, LONGEST])
def test_checksum_of_zero_is_sent_as_ones(assured: Relay, ends: Ends, length: int) -> None:
    know(assured, ends)
    payload = payload_with_sum_of_zero(ends, length)
    passed = assured.meets(framed(HOP_LINK.back(), sent_down(ends, payload), 0))
    assert passed.frame == framed(CLIENT_LINK.back(), delivered(ends, payload), 0xFFFF)


def checksums_that_come(packet: Packet) -> Iterator[int]:
    """None, right, left to the NIC, wrong."""
    ends = packet.source, packet.destination, packet.payload
    yield from (0, full_checksum(*ends), partial_checksum(*ends), 0x1234, 0xFFFF, 0xFF00, 1)


@EVERY_END
def test_checksum_that_came_does_not_matter(assured: Relay, ends: Ends) -> None:
    know(assured, ends)
    packet = sent_down(ends, RTP)
    for checksum in checksums_that_come(packet):
        passed = assured.meets(framed(HOP_LINK.back(), packet, checksum))
        expected = framed(CLIENT_LINK.back(), delivered(ends, RTP))
        assert passed == Passed(XDP_TX, Verdict.FORWARD_CLIENT, expected), hex(checksum)


@EVERY_END
def test_client_s_checksum_is_not_passed_on_to_the_transceiver(assured: Relay, ends: Ends) -> None:
    know(assured, ends)
    client, vip_index, call = ends
    assured.know_hop(call.transceiver)
    packet = Packet(client, listen_of(vip_index), RTP)
    sent = Packet(
        fleet_socket(call.transceiver),
        call.transceiver,
        encode_header(client, vip_of(vip_index)) + RTP,
        hop_limit=63,
    )
    for checksum in checksums_that_come(packet):
        passed = assured.meets(framed(CLIENT_LINK, packet, checksum))
        assert passed == Passed(XDP_TX, Verdict.FORWARD_FLOW, framed(HOP_LINK, sent, 0)), hex(checksum)


@EVERY_END
@pytest.mark.parametrize("padding", [b"\0", b"\xff" * 3, b"\xa5" * 60], ids=len)
def test_padding_behind_the_packet_is_not_summed(assured: Relay, ends: Ends, padding: bytes) -> None:
    know(assured, ends)
    for payload in (RTP, RTP[:-1], RTP[:1]):
        frame = framed(HOP_LINK.back(), sent_down(ends, payload), 0, padding=padding)
        passed = assured.meets(frame)
        assert passed.frame == framed(CLIENT_LINK.back(), delivered(ends, payload), padding=padding)


# Neither hop limits nor classes that a test has thought of. No packet leaves anything that the next could see.
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ends=st.sampled_from(list(ENDS.values())),
    payload=st.binary(min_size=1, max_size=1400),
    checksum=st.integers(0, 0xFFFF),
    traffic_class=st.integers(0, 255),
    hop_limit=st.integers(2, 255),
    host_bits=st.integers(1, 0xFFFE),
    port=st.integers(1, 0xFFFF),
)
def test_any_packet_down(
    assured: Relay,
    ends: Ends,
    payload: bytes,
    checksum: int,
    traffic_class: int,
    hop_limit: int,
    host_bits: int,
    port: int,
) -> None:
    client, vip_index, call = ends
    client = Address(client.host[:-2] + struct.pack("!H", host_bits), port)
    assured.programs.set_mtu(LARGE_MTU)
    link = CLIENT_LINK._replace(tags=TWO_VLANS)
    key = assured.know_flow(client, vip_index, call.transceiver, client_link=link.back())
    header = encode_header(client, vip_of(vip_index))
    came = Packet(
        call.transceiver, fleet_socket(call.transceiver), header + payload, traffic_class, 0, hop_limit
    )
    passed = assured.meets(framed(HOP_LINK.back(), came, checksum))
    sent = Packet(listen_of(vip_index), client, payload, traffic_class, 0, hop_limit - 1)
    assert passed == Passed(XDP_TX, Verdict.FORWARD_CLIENT, framed(link.back(), sent))
    assured.programs.maps["flows"].delete(key)


def test_helper_knows_the_checksum_of_an_example() -> None:
    """RFC 1071 section 3 sums these words to ddf2; a header from Wikipedia has b861 for its checksum."""
    assert ipv4_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert ipv4_checksum(bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7")) == 0xB861
