"""Packets of assured flows, byte for byte: what leaves the XDP program is what the table of packets says a worker sends."""

from dataclasses import replace

import pytest

from relay.core.verdict import Verdict
from tests.bpf.assured import (
    ALL_TAGS,
    CLIENT_LINK,
    ELSEWHERE,
    FORWARDED,
    HOP_LINK,
    INGRESS,
    XDP_REDIRECT,
    XDP_TX,
    Link,
    Packet,
    Passed,
    Relay,
    Tags,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.bpf.test_xdp_verdicts import KERNEL_VERDICTS, UNSURE_VERDICTS
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, OTHER_CALL, RTP, Call
from tests.relay.packets import ROWS, PacketRow
from wire.address import Address
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

TAGS = pytest.mark.parametrize("tags", ALL_TAGS.values(), ids=ALL_TAGS)
HOP_TAGS = pytest.mark.parametrize("hop_tags", ALL_TAGS.values(), ids=ALL_TAGS)


def is_carried(row: PacketRow) -> bool:
    """Whether a frame can carry the row: its client has the family of its VIP."""
    return row.side == "fleet" or row.source.family == listen_of(row.vip_index).family


def rows(*, side: str, in_kernel: bool) -> list[object]:
    """Parameters of a test."""
    chosen = [row for row in ROWS if is_carried(row) and (row.side, row.in_kernel) == (side, in_kernel)]
    return [pytest.param(row, id=row.description) for row in chosen]


def know_flow_of(relay: Relay, row: PacketRow, link: Link) -> None:
    """The flow that the row says is known, and the way to its client and to every transceiver."""
    for call in (CALL, CALL_V6, OTHER_CALL):
        relay.know_hop(call.transceiver)
    if row.known_flow != "none":
        relay.know_flow(
            row.client,
            row.vip_index,
            row.call.transceiver,
            tag=row.call.tag,
            client_link=link.back(),
            name="flows" if row.known_flow == "assured" else "provisional",
        )


def arriving(row: PacketRow, **header: int) -> Packet:
    """The row as it comes to the relay."""
    destination = listen_of(row.vip_index) if row.side == "public" else fleet_socket(row.source)
    return Packet(row.source, destination, row.datagram, **header)


def test_table_has_every_family_and_vip_that_xdp_forwards_for() -> None:
    fast = [row for row in ROWS if row.in_kernel]
    assert all(row.known_flow == "assured" for row in fast)
    for side in ("public", "fleet"):
        seen = {(row.client.family, row.call.transceiver.family) for row in fast if row.side == side}
        assert seen == {(4, 4), (4, 6), (6, 4), (6, 6)}, side
        assert {row.vip_index for row in fast if row.side == side} == {0, 1, 2}, side
    assert {row.verdict for row in fast if row.forwarded} == set(FORWARDED)
    assert all(is_carried(row) for row in fast)


@TAGS
@HOP_TAGS
@pytest.mark.parametrize("row", rows(side="public", in_kernel=True))
def test_to_the_transceiver(assured: Relay, row: PacketRow, tags: Tags, hop_tags: Tags) -> None:
    came, hop = CLIENT_LINK._replace(tags=tags), HOP_LINK._replace(tags=hop_tags)
    know_flow_of(assured, row, came)
    assured.know_hop(row.call.transceiver, hop)
    passed = assured.meets(framed(came, arriving(row), ip_id=7))
    # A worker would drop some, having read more of them: they are forwarded as they are.
    forwarded = row.forwarded or encode_header(row.source, vip_of(row.vip_index)) + row.datagram
    destination = row.destination or row.call.transceiver
    sent = Packet(fleet_socket(destination), destination, forwarded, hop_limit=63)
    assert passed.frame == framed(hop, sent, 0)
    assert passed.action == XDP_TX
    expected = Verdict.FORWARD_STUN if row.datagram[0] <= 3 else Verdict.FORWARD_FLOW
    assert passed.verdict is expected
    assert row.verdict in (expected, Verdict.DROP_STUN_MALFORMED, Verdict.DROP_STUN_USERNAME)


@TAGS
@HOP_TAGS
@pytest.mark.parametrize("row", rows(side="fleet", in_kernel=True))
def test_to_the_client(assured: Relay, row: PacketRow, tags: Tags, hop_tags: Tags) -> None:
    clients, hop = CLIENT_LINK._replace(tags=tags), HOP_LINK._replace(tags=hop_tags)
    know_flow_of(assured, row, clients)
    passed = assured.meets(framed(hop.back(), arriving(row), 0, ip_id=7))
    assert row.forwarded is not None
    assert row.destination is not None
    sent = Packet(listen_of(row.vip_index), row.destination, row.forwarded, hop_limit=63)
    assert passed == Passed(XDP_TX, row.verdict, framed(clients.back(), sent))


@TAGS
@pytest.mark.parametrize("row", [*rows(side="public", in_kernel=False), *rows(side="fleet", in_kernel=False)])
def test_what_is_left_to_the_worker_is_untouched(assured: Relay, row: PacketRow, tags: Tags) -> None:
    came = CLIENT_LINK._replace(tags=tags)
    know_flow_of(assured, row, came)
    frame = framed(came, arriving(row), ip_id=7)
    unsure = row.verdict in UNSURE_VERDICTS
    is_dropped = row.verdict in KERNEL_VERDICTS
    if unsure:
        is_dropped = assured.meets(frame).verdict is row.verdict
    assured.hands_up(frame, row.verdict if is_dropped else Verdict.HAND_UP)


CLIENTS = pytest.mark.parametrize(
    ("client", "vip_index"), [(CLIENT_V4, 0), (CLIENT_V6, 1)], ids=["IPv4 client", "IPv6 client"]
)
CALLS = pytest.mark.parametrize("call", [CALL, CALL_V6], ids=["IPv4 transceiver", "IPv6 transceiver"])
LABEL = 0xABCDE


@CLIENTS
@CALLS
@pytest.mark.parametrize("hop_limit", [2, 3, 64, 128, 255])
def test_class_and_hop_limit_travel_on(
    assured: Relay, client: Address, vip_index: int, call: Call, hop_limit: int
) -> None:
    """DSCP and ECN of both directions; the flow label where both sides have one."""
    transceiver = call.transceiver
    assured.know_hop(transceiver)
    assured.know_flow(client, vip_index, transceiver, client_link=CLIENT_LINK.back())
    up = Packet(client, listen_of(vip_index), RTP)
    up_out = Packet(fleet_socket(transceiver), transceiver, encode_header(client, vip_of(vip_index)) + RTP)
    down = Packet(transceiver, fleet_socket(transceiver), up_out.payload)
    down_out = Packet(listen_of(vip_index), client, RTP)
    for link, packet, out, way, checksum in (
        (CLIENT_LINK, up, up_out, HOP_LINK, 0),
        (HOP_LINK.back(), down, down_out, CLIENT_LINK.back(), None),
    ):
        label = LABEL if packet.source.family == 6 else 0
        label_out = label if out.source.family == 6 else 0
        for traffic_class in range(256):
            came = replace(packet, traffic_class=traffic_class, flow_label=label, hop_limit=hop_limit)
            sent = replace(out, traffic_class=traffic_class, flow_label=label_out, hop_limit=hop_limit - 1)
            passed = assured.meets(framed(link, came))
            assert passed.frame == framed(way, sent, checksum), traffic_class
            assert passed.action == XDP_TX


@pytest.mark.parametrize(
    ("ifindex", "action"), [(INGRESS, XDP_TX), (ELSEWHERE, XDP_REDIRECT)], ids=["same", "other"]
)
def test_way_out_is_the_way_in_or_another(assured: Relay, ifindex: int, action: int) -> None:
    hop, clients = HOP_LINK._replace(ifindex=ifindex), CLIENT_LINK.back()._replace(ifindex=ifindex)
    assured.know_hop(CALL.transceiver, hop)
    assured.know_flow(CLIENT_V4, client_link=clients)
    header = encode_header(CLIENT_V4, vip_of(0))
    down = Packet(CALL.transceiver, fleet_socket(CALL.transceiver), header + RTP)
    passed = assured.meets(framed(HOP_LINK.back(), down, 0))
    sent = framed(clients, Packet(listen_of(0), CLIENT_V4, RTP, hop_limit=63))
    assert passed == Passed(action, Verdict.FORWARD_CLIENT, sent)
    passed = assured.meets(framed(CLIENT_LINK, Packet(CLIENT_V4, listen_of(0), RTP)))
    sent = framed(
        hop, Packet(fleet_socket(CALL.transceiver), CALL.transceiver, header + RTP, hop_limit=63), 0
    )
    assert passed == Passed(action, Verdict.FORWARD_FLOW, sent)


def test_two_flows_of_one_client_go_to_their_own_transceivers(assured: Relay) -> None:
    for vip_index, call in ((0, CALL), (2, OTHER_CALL)):
        assured.know_hop(call.transceiver)
        assured.know_flow(CLIENT_V4, vip_index, call.transceiver)
    for vip_index, call in ((0, CALL), (2, OTHER_CALL)):
        passed = assured.meets(framed(CLIENT_LINK, Packet(CLIENT_V4, listen_of(vip_index), RTP)))
        payload = encode_header(CLIENT_V4, vip_of(vip_index)) + RTP
        sent = Packet(fleet_socket(call.transceiver), call.transceiver, payload, hop_limit=63)
        assert passed == Passed(XDP_TX, Verdict.FORWARD_FLOW, framed(HOP_LINK, sent, 0))


def test_there_and_back_is_where_it_came_from(assured: Relay) -> None:
    """Nothing but packets: what the client's last packet showed is the way back."""
    assured.know_hop(CALL.transceiver)
    assured.know_flow(CLIENT_V4)
    link = CLIENT_LINK._replace(tags=ALL_TAGS["two VLANs"])
    up = assured.meets(framed(link, Packet(CLIENT_V4, listen_of(0), RTP, traffic_class=0xB9)))
    payload = up.frame[-len(RTP) - 38 :]
    down = Packet(CALL.transceiver, fleet_socket(CALL.transceiver), payload, traffic_class=0xB9)
    passed = assured.meets(framed(HOP_LINK.back(), down, 0))
    sent = Packet(listen_of(0), CLIENT_V4, RTP, traffic_class=0xB9, hop_limit=63)
    assert passed.frame == framed(link.back(), sent)
