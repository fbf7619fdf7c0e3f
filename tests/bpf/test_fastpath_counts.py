"""What XDP notes of what it forwards: counts, times, the way to the client, a transceiver's goodbye."""

from dataclasses import dataclass, field

import pytest

from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import Direction, FlowC, FlowFlag, FlowKeyC, LinkPath
from tests.bpf.assured import (
    ALL_TAGS,
    CLIENT_LINK,
    CREATED_NS,
    ELSEWHERE,
    HOP_LINK,
    PLAIN,
    TWO_VLANS,
    VLAN,
    XDP_TX,
    Link,
    Packet,
    Relay,
    coarse_ns,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.relay.network import (
    BINDING_INDICATION,
    CALL,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    DTLS_ALERT,
    OTHER_CALL,
    RTP,
    SERVER_HELLO,
    answer,
    check,
    stun,
)
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

UP, DOWN = Direction.DIRECTION_UP, Direction.DIRECTION_DOWN
ASSURED = FlowFlag.FLOW_IS_ASSURED
RELEASED = ASSURED | FlowFlag.FLOW_IS_RELEASED


def up(payload: bytes, link: Link = CLIENT_LINK, client: Address = CLIENT_V4, padding: bytes = b"") -> bytes:
    """A client's packet, as a frame."""
    packet = Packet(client, listen_of(0 if client.family == 4 else 1), payload)
    return framed(link, packet, padding=padding)


def down(payload: bytes, padding: bytes = b"") -> bytes:
    """A packet of the client's transceiver, as a frame."""
    datagram = encode_header(CLIENT_V4, vip_of(0)) + payload
    packet = Packet(CALL.transceiver, fleet_socket(CALL.transceiver), datagram)
    return framed(HOP_LINK.back(), packet, 0, padding=padding)


@pytest.fixture
def key(assured: Relay) -> FlowKeyC:
    """An assured flow, with the ways both ways."""
    assured.know_hop(CALL.transceiver)
    return assured.know_flow(CLIENT_V4, client_link=CLIENT_LINK.back())


@dataclass
class Notes:
    """What a flow says, its times as whether they are new."""

    packets: tuple[int, int] = (0, 0)
    payload_bytes: tuple[int, int] = (0, 0)
    new_times: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, flow: FlowC, since_ns: int, until_ns: int) -> "Notes":
        times = {name: getattr(flow, name) for name in ("last_seen_ns", "down_seen_ns", "ufrag_seen_ns")}
        assert all(time == 0 or since_ns <= time <= until_ns for time in times.values())
        return cls(
            (flow.packets_up, flow.packets_down),
            (flow.bytes_up, flow.bytes_down),
            {name for name, time in times.items() if time},
        )


SEEN, SEEN_DOWN, SEEN_UFRAG = {"last_seen_ns"}, {"last_seen_ns", "down_seen_ns"}, {"last_seen_ns", "ufrag_seen_ns"}  # fmt: skip
CHECK = check(CALL)


@pytest.mark.parametrize(
    ("frame", "verdict", "notes"),
    [
        pytest.param(up(RTP), Verdict.FORWARD_FLOW, Notes((1, 0), (len(RTP), 0), SEEN), id="RTP up"),
        pytest.param(up(b"\x80"), Verdict.FORWARD_FLOW, Notes((1, 0), (1, 0), SEEN), id="one byte up"),
        pytest.param(
            up(CLIENT_HELLO), Verdict.FORWARD_FLOW, Notes((1, 0), (len(CLIENT_HELLO), 0), SEEN), id="DTLS up"
        ),
        pytest.param(
            up(DTLS_ALERT), Verdict.FORWARD_FLOW, Notes((1, 0), (len(DTLS_ALERT), 0), SEEN), id="alert up"
        ),
        pytest.param(
            up(CHECK), Verdict.FORWARD_STUN, Notes((1, 0), (len(CHECK), 0), SEEN_UFRAG), id="its check"
        ),
        pytest.param(
            up(RTP, padding=bytes(30)),
            Verdict.FORWARD_FLOW,
            Notes((1, 0), (len(RTP), 0), SEEN),
            id="RTP up, padding is not counted",
        ),
        pytest.param(down(RTP), Verdict.FORWARD_CLIENT, Notes((0, 1), (0, len(RTP)), SEEN_DOWN), id="RTP down"),
        pytest.param(down(b"\x80"), Verdict.FORWARD_CLIENT, Notes((0, 1), (0, 1), SEEN_DOWN), id="one byte down"),
        pytest.param(
            down(answer(CALL)),
            Verdict.FORWARD_CLIENT,
            Notes((0, 1), (0, len(answer(CALL))), SEEN_DOWN),
            id="answer down",
        ),
        pytest.param(
            down(CHECK), Verdict.FORWARD_CLIENT, Notes((0, 1), (0, len(CHECK)), SEEN_DOWN), id="check down"
        ),
        pytest.param(
            down(RTP, padding=bytes(30)),
            Verdict.FORWARD_CLIENT,
            Notes((0, 1), (0, len(RTP)), SEEN_DOWN),
            id="RTP down, padding is not counted",
        ),
    ],
)  # fmt: skip
def test_one_packet(assured: Relay, key: FlowKeyC, frame: bytes, verdict: Verdict, notes: Notes) -> None:
    counted, total = assured.programs.counts(), assured.forwarded_bytes()
    before, since = assured.flow(key), coarse_ns()
    assert assured.meets(frame).action == XDP_TX
    until, flow = coarse_ns(), assured.flow(key)
    assert Notes.of(flow, since, until) == notes
    counted[verdict] += 1
    assert assured.programs.counts() == counted
    up_bytes, down_bytes = notes.payload_bytes
    assert assured.forwarded_bytes() == {UP: total[UP] + up_bytes, DOWN: total[DOWN] + down_bytes}
    # What is a worker's to write stays.
    assert bytes(flow.transceiver) == bytes(before.transceiver)
    assert (flow.flags, flow.created_ns, flow.ufrag_tag) == (ASSURED, CREATED_NS, CALL.tag.encode())


def test_packets_add_up_over_what_is_there(assured: Relay, key: FlowKeyC) -> None:
    """Counts go on from what workers have written; sizes are those of payloads."""
    assured.change_flow(key, packets_up=2**40, bytes_up=2**41, packets_down=2**42, bytes_down=2**43)
    total = assured.forwarded_bytes()
    sizes_up, sizes_down = range(1, 1400, 7), range(1, 1400, 11)
    for size in sizes_up:
        assured.meets(up(b"\x80" * size))
    for size in sizes_down:
        assured.meets(down(b"\x80" * size))
    flow = assured.flow(key)
    assert (flow.packets_up, flow.bytes_up) == (2**40 + len(sizes_up), 2**41 + sum(sizes_up))
    assert (flow.packets_down, flow.bytes_down) == (2**42 + len(sizes_down), 2**43 + sum(sizes_down))
    assert assured.forwarded_bytes() == {UP: total[UP] + sum(sizes_up), DOWN: total[DOWN] + sum(sizes_down)}


def test_flows_are_counted_apart(assured: Relay, key: FlowKeyC) -> None:
    others = [
        assured.know_flow(CLIENT_V6, 1),
        assured.know_flow(CLIENT_V4, 2),
        assured.know_flow(Address(CLIENT_V4.host, 1)),
    ]
    before = [bytes(assured.flow(each)) for each in others]
    assured.meets(up(RTP))
    assured.meets(down(RTP))
    assert [bytes(assured.flow(each)) for each in others] == before
    assert assured.flow(key).packets_up == assured.flow(key).packets_down == 1


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(check(OTHER_CALL), id="another call's check"),
        pytest.param(stun(message_type=BINDING_INDICATION), id="indication"),
        pytest.param(answer(CALL), id="answer"),
        pytest.param(RTP.ljust(1435), id="too long for the link"),
    ],
)
def test_what_is_handed_up_leaves_no_note(assured: Relay, key: FlowKeyC, payload: bytes) -> None:
    """Not even of the way that it came."""
    before, counted = bytes(assured.flow(key)), assured.programs.counts()
    assured.hands_up(up(payload, CLIENT_LINK._replace(tags=VLAN)))
    counted[Verdict.HAND_UP] += 1
    assert assured.programs.counts() == counted
    assert bytes(assured.flow(key)) == before


ALERT_OF_ONE_BYTE = b"\x15"


@pytest.mark.parametrize(
    ("payloads", "flags"),
    [
        pytest.param([RTP], ASSURED, id="RTP"),
        pytest.param([DTLS_ALERT], RELEASED, id="alert"),
        pytest.param([ALERT_OF_ONE_BYTE], RELEASED, id="alert of one byte"),
        pytest.param([DTLS_ALERT, DTLS_ALERT], RELEASED, id="alert twice"),
        pytest.param([DTLS_ALERT, RTP], ASSURED, id="RTP goes on"),
        pytest.param([DTLS_ALERT, SERVER_HELLO], ASSURED, id="DTLS begins anew"),
        pytest.param([DTLS_ALERT, answer(CALL)], ASSURED, id="check answered"),
        pytest.param([b"\x14" + DTLS_ALERT[1:]], ASSURED, id="change of cipher"),
        pytest.param([b"\x16" + DTLS_ALERT[1:]], ASSURED, id="handshake"),
        pytest.param([RTP[:1] + DTLS_ALERT], ASSURED, id="alert behind the first byte"),
    ],
)
@pytest.mark.parametrize("others", [0, FlowFlag.FLOW_MEDIA_UP | FlowFlag.FLOW_MEDIA_DOWN])
def test_alert_down_is_a_goodbye(
    assured: Relay, key: FlowKeyC, payloads: list[bytes], flags: FlowFlag, others: int
) -> None:
    assured.change_flow(key, flags=ASSURED | others)
    for payload in payloads:
        assert assured.meets(down(payload)).action == XDP_TX
    assert assured.flow(key).flags == flags | others


def test_client_cannot_release_or_hold_a_flow(assured: Relay, key: FlowKeyC) -> None:
    assured.meets(up(DTLS_ALERT))
    assert assured.flow(key).flags == ASSURED
    assured.meets(down(DTLS_ALERT))
    for payload in (RTP, check(CALL), CLIENT_HELLO):
        assured.meets(up(payload))
    assert assured.flow(key).flags == RELEASED


@pytest.mark.parametrize("tags", ALL_TAGS.values(), ids=ALL_TAGS)
@pytest.mark.parametrize("payload", [RTP, CHECK], ids=["RTP", "check"])
def test_way_to_the_client_is_learned(
    assured: Relay, tags: tuple[tuple[int, int], ...], payload: bytes
) -> None:
    assured.know_hop(CALL.transceiver)
    key = assured.know_flow(CLIENT_V4)
    assert bytes(assured.flow(key).client_path) == bytes(LinkPath())
    link = CLIENT_LINK._replace(tags=tags)
    assured.meets(up(payload, link))
    assert bytes(assured.flow(key).client_path) == bytes(link.back().path())


WAYS = {
    "first half of the router's MAC": CLIENT_LINK._replace(from_mac=b"\x06" + CLIENT_LINK.from_mac[1:]),
    "middle of the router's MAC": CLIENT_LINK._replace(
        from_mac=CLIENT_LINK.from_mac[:3] + b"\1" + CLIENT_LINK.from_mac[4:]
    ),
    "end of the router's MAC": CLIENT_LINK._replace(from_mac=CLIENT_LINK.from_mac[:5] + b"\2"),
    "beginning of our MAC": CLIENT_LINK._replace(to_mac=b"\x06" + CLIENT_LINK.to_mac[1:]),
    "middle of our MAC": CLIENT_LINK._replace(to_mac=CLIENT_LINK.to_mac[:2] + b"\1" + CLIENT_LINK.to_mac[3:]),
    "end of our MAC": CLIENT_LINK._replace(to_mac=CLIENT_LINK.to_mac[:5] + b"\2"),
    "a tag more": CLIENT_LINK._replace(tags=VLAN),
    "two tags more": CLIENT_LINK._replace(tags=TWO_VLANS),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("is_back", [False, True], ids=["changed", "changed back"])
def test_way_to_the_client_follows_its_last_packet(
    assured: Relay, key: FlowKeyC, way: Link, is_back: bool
) -> None:
    ways = (way, CLIENT_LINK) if is_back else (CLIENT_LINK, way)
    for each in ways:
        assured.meets(up(RTP, each))
    assert bytes(assured.flow(key).client_path) == bytes(ways[-1].back().path())
    sent = Packet(listen_of(0), CLIENT_V4, RTP, hop_limit=63)
    assert assured.meets(down(RTP)).frame == framed(ways[-1].back(), sent)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(((0x8100, 7),), ((0x8100, 8),), id="number"),
        pytest.param(((0x8100, 7),), ((0x8100, 0x2007),), id="priority"),
        pytest.param(((0x8100, 7),), ((0x88A8, 7),), id="type"),
        pytest.param(TWO_VLANS, (TWO_VLANS[0], (0x8100, 1)), id="inner number"),
        pytest.param(TWO_VLANS, (TWO_VLANS[0], (0x88A8, TWO_VLANS[1][1])), id="inner type"),
        pytest.param(TWO_VLANS, (TWO_VLANS[1], TWO_VLANS[0]), id="the other way round"),
        pytest.param(TWO_VLANS, TWO_VLANS[:1], id="no inner one"),
        pytest.param(VLAN, PLAIN, id="none"),
    ],
)
def test_tags_follow(
    assured: Relay,
    key: FlowKeyC,
    before: tuple[tuple[int, int], ...],
    after: tuple[tuple[int, int], ...],
) -> None:
    for tags in (before, after, before):
        link = CLIENT_LINK._replace(tags=tags)
        assured.meets(up(RTP, link))
        assert bytes(assured.flow(key).client_path) == bytes(link.back().path())


def test_interface_follows(assured: Relay, key: FlowKeyC) -> None:
    elsewhere = CLIENT_LINK.back()._replace(ifindex=ELSEWHERE)
    assured.change_flow(key, client_path=elsewhere.path())
    assured.meets(up(RTP))
    assert bytes(assured.flow(key).client_path) == bytes(CLIENT_LINK.back().path())


def test_transceiver_s_packets_show_nothing_of_the_client(assured: Relay, key: FlowKeyC) -> None:
    before = bytes(assured.flow(key).client_path)
    assured.meets(down(RTP))
    assert bytes(assured.flow(key).client_path) == before
