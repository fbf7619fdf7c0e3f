"""What XDP does not forward although the flow is assured: it goes the long way, untouched and not counted twice."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from relay.core.verdict import Verdict
from tests.bpf.assured import (
    CLIENT_LINK,
    HOP_LINK,
    OPEN,
    XDP_TX,
    Packet,
    Relay,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.bpf.loading import HASH_KEY, beat
from tests.relay.network import (
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    FLEET_SOCKET_V4,
    OTHER_CLIENT_V4,
    RTP,
    Call,
    check,
)
from tests.relay.packets import LINK_MTU
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

ENDS = {
    f"IPv{client.family} client, IPv{call.transceiver.family} transceiver": (client, vip_index, call)
    for client, vip_index in ((CLIENT_V4, 0), (CLIENT_V6, 1))
    for call in (CALL, CALL_V6)
}
EVERY_END = pytest.mark.parametrize(("client", "vip_index", "call"), ENDS.values(), ids=ENDS)
JUMBO = 3400


def up(
    payload: bytes = RTP, *, client: Address = CLIENT_V4, vip_index: int = 0, hop_limit: int = 64
) -> Packet:
    return Packet(client, listen_of(vip_index), payload, hop_limit=hop_limit)


def down(
    payload: bytes = RTP,
    *,
    client: Address = CLIENT_V4,
    vip_index: int = 0,
    call: Call = CALL,
    hop_limit: int = 64,
) -> Packet:
    datagram = encode_header(client, vip_of(vip_index)) + payload
    return Packet(call.transceiver, fleet_socket(call.transceiver), datagram, hop_limit=hop_limit)


UP, DOWN = framed(CLIENT_LINK, up()), framed(HOP_LINK.back(), down())


def know_both_ways(
    relay: Relay, client: Address = CLIENT_V4, vip_index: int = 0, call: Call = CALL, mtu: int = LINK_MTU
) -> None:
    relay.programs.set_mtu(mtu)
    relay.know_hop(call.transceiver, mtu=mtu)
    relay.know_flow(client, vip_index, call.transceiver, tag=call.tag, client_link=CLIENT_LINK.back())


def forwards(relay: Relay, frame: bytes) -> bool:
    """Whether XDP forwards it; what it does not, it leaves as it was."""
    if relay.meets(frame).action == XDP_TX:
        return True
    relay.hands_up(frame)
    return False


Change = Callable[[Relay], object]


@pytest.mark.parametrize(
    ("change", "is_up", "is_down"),
    [
        pytest.param(lambda relay: None, True, True, id="nothing, to compare with"),
        pytest.param(lambda relay: relay.forget_hop(CALL.transceiver), False, True, id="no next hop"),
        pytest.param(lambda relay: relay.know_flow(CLIENT_V4), True, False, id="no way to the client yet"),
        pytest.param(lambda relay: relay.know_hop(CALL.transceiver, mtu=0), False, True, id="next hop of no MTU"),
        pytest.param(lambda relay: relay.programs.set_mtu(0), True, False, id="MTU not known"),
        pytest.param(lambda relay: relay.programs.set_fastpath(False), False, False, id="switched off"),
        pytest.param(
            lambda relay: relay.know_flow(CLIENT_V4, transceiver=CALL_V6.transceiver, client_link=CLIENT_LINK),
            False,
            False,
            id="flow of another transceiver, to which no way is known",
        ),
    ],
)  # fmt: skip
def test_what_must_be_known(assured: Relay, change: Change, is_up: bool, is_down: bool) -> None:
    know_both_ways(assured)
    change(assured)
    assert (forwards(assured, DOWN), forwards(assured, UP)) == (is_down, is_up)


@pytest.mark.parametrize("frame", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize("name", ["none", "provisional"])
def test_flow_must_be_assured(assured: Relay, frame: bytes, name: str) -> None:
    assured.know_hop(CALL.transceiver)
    if name == "provisional":
        assured.know_flow(CLIENT_V4, client_link=CLIENT_LINK.back(), name=name)
    assured.hands_up(frame)


@pytest.mark.parametrize(
    ("client", "vip_index"),
    [
        pytest.param(OTHER_CLIENT_V4, 0, id="another host"),
        pytest.param(Address(CLIENT_V4.host, CLIENT_V4.port + 1), 0, id="another port"),
        pytest.param(CLIENT_V4, 2, id="another VIP"),
    ],
)
def test_flow_is_that_of_client_and_vip(assured: Relay, client: Address, vip_index: int) -> None:
    know_both_ways(assured)
    assured.hands_up(framed(CLIENT_LINK, up(client=client, vip_index=vip_index)))
    assured.hands_up(framed(HOP_LINK.back(), down(client=client, vip_index=vip_index)))


@EVERY_END
@pytest.mark.parametrize(("hop_limit", "is_forwarded"), [(0, False), (1, False), (2, True)])
def test_hop_limit(
    assured: Relay, client: Address, vip_index: int, call: Call, hop_limit: int, is_forwarded: bool
) -> None:
    know_both_ways(assured, client, vip_index, call)
    packet = down(client=client, vip_index=vip_index, call=call, hop_limit=hop_limit)
    assert forwards(assured, framed(HOP_LINK.back(), packet)) is is_forwarded
    packet = up(client=client, vip_index=vip_index, hop_limit=hop_limit)
    assert forwards(assured, framed(CLIENT_LINK, packet)) is is_forwarded


@EVERY_END
@pytest.mark.parametrize("mtu", [576, 1280, 1499, 1500, 1501])
def test_longest_packet_is_the_link_s(
    assured: Relay, client: Address, vip_index: int, call: Call, mtu: int
) -> None:
    know_both_ways(assured, client, vip_index, call, mtu)
    headers = {4: 20 + 8, 6: 40 + 8}
    longest_up, longest_down = mtu - headers[call.transceiver.family] - 38, mtu - headers[client.family]
    for extra, is_forwarded in ((0, True), (1, False)):
        packet = up(b"\x80" * (longest_up + extra), client=client, vip_index=vip_index)
        assert forwards(assured, framed(CLIENT_LINK, packet)) is is_forwarded
        packet = down(b"\x80" * (longest_down + extra), client=client, vip_index=vip_index, call=call)
        assert forwards(assured, framed(HOP_LINK.back(), packet)) is is_forwarded


def test_limit_up_is_the_next_hop_s_and_down_that_of_all_interfaces(assured: Relay) -> None:
    know_both_ways(assured)
    assured.programs.set_mtu(300)
    assert forwards(assured, framed(CLIENT_LINK, up(b"\x80" * 1000)))
    assured.hands_up(framed(HOP_LINK.back(), down(b"\x80" * 1000)))
    assured.programs.set_mtu(1500)
    assured.know_hop(CALL.transceiver, mtu=300)
    assured.hands_up(framed(CLIENT_LINK, up(b"\x80" * 1000)))
    assert forwards(assured, framed(HOP_LINK.back(), down(b"\x80" * 1000)))


@pytest.mark.parametrize(
    ("size", "is_forwarded"), [(1536, True), (1537, False), (1538, False), (2048, False), (2049, False)]
)
def test_longest_payload_whose_checksum_is_made(assured: Relay, size: int, is_forwarded: bool) -> None:
    know_both_ways(assured, mtu=JUMBO)
    frame = framed(HOP_LINK.back(), down(b"\x80" * size))
    if size > 2048:
        assured.hands_up(frame, Verdict.DROP_OVERSIZE)
    else:
        assert forwards(assured, frame) is is_forwarded


@pytest.mark.parametrize("size", [1500, 2047, 2048])
def test_large_packets_up_over_large_links(assured: Relay, size: int) -> None:
    know_both_ways(assured, mtu=JUMBO)
    assert forwards(assured, framed(CLIENT_LINK, up(b"\x80" * size)))


def test_packet_too_large_for_webrtc_is_dropped_over_large_links_too(assured: Relay) -> None:
    """The worker's limit (MAX_DATAGRAM_BYTES) does not depend on links."""
    know_both_ways(assured, mtu=JUMBO)
    assured.hands_up(framed(CLIENT_LINK, up(b"\x80" * 2049)), Verdict.DROP_OVERSIZE)


def test_fleet_without_an_address_of_the_transceiver_s_family(assured: Relay) -> None:
    know_both_ways(assured, call=CALL_V6)
    assured.programs.configure(OPEN, [FLEET_SOCKET_V4], HASH_KEY)
    assured.hands_up(UP)


@pytest.mark.parametrize(
    ("to_mac", "is_learned"),
    [
        pytest.param("ffffffffffff", False, id="broadcast"),
        pytest.param("01005e000001", False, id="multicast"),
        pytest.param("333300000001", False, id="IPv6 multicast"),
        pytest.param("020000000001", True, id="locally administered"),
        pytest.param("fe0101010101", True, id="ones elsewhere"),
        pytest.param("000000000000", True, id="zeros, as on loopback"),
    ],
)
def test_packet_that_was_not_for_us_alone_shows_no_way_back(
    assured: Relay, to_mac: str, is_learned: bool
) -> None:
    assured.know_hop(CALL.transceiver)
    key = assured.know_flow(CLIENT_V4)
    link = CLIENT_LINK._replace(to_mac=bytes.fromhex(to_mac))
    assert forwards(assured, framed(link, up())) is is_learned
    path = link.back().path() if is_learned else type(link.path())()
    assert bytes(assured.flow(key).client_path) == bytes(path)


def test_flow_released_or_of_any_flags_is_still_forwarded(assured: Relay) -> None:
    know_both_ways(assured)
    ((key, _),) = assured.programs.maps["flows"].items()
    for flags in range(16):
        assured.change_flow(key, flags=flags)
        assert forwards(assured, UP)
        assert forwards(assured, DOWN)


def test_dead_control_plane_ends_no_call(assured: Relay) -> None:
    """What XDP forwards goes on; only what would be handed up is dropped."""
    know_both_ways(assured)
    beat(assured.programs, 0, ago_s=2 * OPEN.heartbeat_timeout_s)
    for frame in (UP, DOWN, framed(CLIENT_LINK, up(check(CALL))), framed(CLIENT_LINK, up(CLIENT_HELLO))):
        assert assured.meets(frame).action == XDP_TX
    assured.forget_hop(CALL.transceiver)
    assured.hands_up(UP, Verdict.DROP_NO_WORKER)


def test_transceiver_s_host_is_the_key_and_not_its_port(assured: Relay) -> None:
    know_both_ways(assured)
    neighbour = Address(CALL.transceiver.host, 6001)
    assured.know_flow(CLIENT_V4, transceiver=neighbour)
    assert forwards(assured, UP)
    assured.hands_up(DOWN)


@pytest.mark.parametrize(("client", "vip_index"), [(CLIENT_V4, 0), (CLIENT_V6, 1)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("call", [CALL, CALL_V6], ids=["from IPv4", "from IPv6"])
def test_every_byte_of_the_transceiver_s_address_counts(
    assured: Relay, client: Address, vip_index: int, call: Call
) -> None:
    know_both_ways(assured, client, vip_index, call)
    packet = down(client=client, vip_index=vip_index, call=call)
    assert forwards(assured, framed(HOP_LINK.back(), packet))
    host, port = call.transceiver
    neighbours = [
        Address(host[:at] + bytes([host[at] ^ 4]) + host[at + 1 :], port) for at in range(len(host))
    ]
    for source in [*neighbours, Address(host, port ^ 1), Address(host, port ^ 256)]:
        in_fleet = any(source.ip in network for network in OPEN.transceiver_networks)
        verdict = Verdict.HAND_UP if in_fleet else Verdict.DROP_SPP_SOURCE
        assured.hands_up(framed(HOP_LINK.back(), replace(packet, source=source)), verdict)


IP_LENGTH_AT, PROTOCOL_AT, UDP_LENGTH_AT = 14 + 2, 14 + 8, 14 + 20 + 4


def with_number(frame: bytes, at: int, change: int) -> bytes:
    """The 16-bit number there, changed by that much."""
    number = int.from_bytes(frame[at : at + 2], "big") + change
    return frame[:at] + number.to_bytes(2, "big") + frame[at + 2 :]


@pytest.mark.parametrize("frame", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize(
    ("break_it", "verdict"),
    [
        pytest.param(lambda frame: frame[:-1], Verdict.HAND_UP, id="frame one byte short"),
        pytest.param(lambda frame: frame[: 2 - len(RTP)], Verdict.HAND_UP, id="frame much too short"),
        pytest.param(
            lambda frame: with_number(frame, UDP_LENGTH_AT, 1),
            Verdict.DROP_MALFORMED,
            id="UDP longer than IP",
        ),
        pytest.param(
            lambda frame: with_number(frame, IP_LENGTH_AT, -1),
            Verdict.DROP_MALFORMED,
            id="IP shorter than UDP",
        ),
        pytest.param(
            lambda frame: with_number(with_number(frame, IP_LENGTH_AT, 1), UDP_LENGTH_AT, 1),
            Verdict.HAND_UP,
            id="both lengths beyond the frame",
        ),
        pytest.param(
            lambda frame: frame[:20] + b"\x20" + frame[21:], Verdict.DROP_FRAGMENT, id="first fragment"
        ),
        pytest.param(lambda frame: with_number(frame, PROTOCOL_AT, 1), None, id="another protocol"),
    ],
)
def test_broken_packets_go_the_long_way(
    assured: Relay, frame: bytes, break_it: Callable[[bytes], bytes], verdict: Verdict | None
) -> None:
    know_both_ways(assured)
    broken = break_it(frame)
    if verdict is None:
        passed = assured.meets(broken)
        assert (passed.frame, passed.verdict) == (broken, None)
    else:
        assured.hands_up(broken, verdict)


def test_ip_packet_longer_than_its_datagram_is_forwarded_without_the_rest(assured: Relay) -> None:
    """What is behind the UDP datagram becomes padding behind the IP packet."""
    know_both_ways(assured)
    for frame, link, packet, checksum in (
        (UP, HOP_LINK, Packet(FLEET_SOCKET_V4, CALL.transceiver, down().payload, hop_limit=63), 0),
        (DOWN, CLIENT_LINK.back(), Packet(listen_of(0), CLIENT_V4, RTP, hop_limit=63), None),
    ):
        longer = with_number(frame, IP_LENGTH_AT, 5) + b"extra"
        assert assured.meets(longer).frame == framed(link, packet, checksum, padding=b"extra")
