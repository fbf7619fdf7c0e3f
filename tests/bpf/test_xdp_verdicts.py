"""One table of packets, two implementations: what XDP drops, the worker would drop for the same reason."""

import pytest

from relay.core.verdict import Verdict
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.frames import judge, udp_frame
from tests.relay.network import CALL, CLIENT_V4, CLIENT_V6, FLEET_SOCKET_V4, FLEET_SOCKET_V6, POLICY, RTP
from tests.relay.packets import ROWS, PacketRow
from wire.address import Address
from wire.spp import HEADER_BYTES, encode_header

pytestmark = pytest.mark.bpf

# What XDP can tell by itself. Everything else needs keys, flows or attributes, and is handed up.
KERNEL_VERDICTS = {
    Verdict.DROP_MALFORMED,
    Verdict.DROP_OVERSIZE,
    Verdict.DROP_SOURCE_PORT_ZERO,
    Verdict.DROP_MARTIAN,
    Verdict.DROP_NOT_WEBRTC,
    Verdict.DROP_STUN_MALFORMED,
    Verdict.DROP_SPP_SOURCE,
    Verdict.DROP_SPP_MALFORMED,
    Verdict.DROP_SPP_PROXY,
    Verdict.DROP_SPP_CLIENT,
}
# Malformed deeper than the STUN header, another service of our own host, a header with nothing behind it: only a worker can tell.
UNSURE_VERDICTS = {Verdict.DROP_STUN_MALFORMED, Verdict.DROP_SPP_CLIENT, Verdict.DROP_SPP_MALFORMED}
LISTEN_V4, LISTEN_V6 = (vip.listen for vip in POLICY.vips[:2])


def frame_of(row: PacketRow) -> bytes | None:
    """The row as a frame; None where no frame can carry it (a client of the other family)."""
    if row.side == "public":
        destination = POLICY.vips[row.vip_index].listen
    else:
        destination = FLEET_SOCKET_V4 if row.source.family == 4 else FLEET_SOCKET_V6
    return (
        udp_frame(row.source, destination, row.datagram) if row.source.family == destination.family else None
    )


CARRIED = [(row, frame) for row in ROWS if (frame := frame_of(row)) is not None]


@pytest.mark.parametrize(
    ("row", "frame"), [pytest.param(row, frame, id=row.description) for row, frame in CARRIED]
)
@pytest.mark.parametrize("vlans", [(), (7,), (7, 8)], ids=["plain", "VLAN", "two VLANs"])
def test_xdp_and_worker_agree(
    xdp: RelayPrograms, row: PacketRow, frame: bytes, vlans: tuple[int, ...]
) -> None:
    if vlans:
        tags = b"".join(b"\x81\x00" + vlan.to_bytes(2, "big") for vlan in vlans)
        frame = frame[:12] + tags + frame[12:]
    verdict = judge(xdp, frame)
    if verdict is not Verdict.HAND_UP:
        assert verdict is row.verdict
    elif row.verdict in KERNEL_VERDICTS:
        assert row.verdict in UNSURE_VERDICTS
        assert row.verdict is not Verdict.DROP_SPP_MALFORMED or len(row.datagram) == HEADER_BYTES


@pytest.mark.parametrize("length", range(38))
def test_header_that_is_cut_short_is_no_word_of_a_transceiver(xdp: RelayPrograms, length: int) -> None:
    """Nor is what the frame has behind it."""
    frame = udp_frame(
        CALL.transceiver, FLEET_SOCKET_V4, encode_header(CLIENT_V4, POLICY.vips[0].address)[:length]
    )
    for padding in (b"", bytes(40)):
        assert judge(xdp, frame + padding) is Verdict.DROP_SPP_MALFORMED


def test_table_is_large_and_reaches_every_verdict_of_the_kernel(xdp: RelayPrograms) -> None:
    seen = {judge(xdp, frame) for _, frame in CARRIED}
    assert len(CARRIED) >= 60
    assert seen == KERNEL_VERDICTS | {Verdict.HAND_UP}


_GOOD = udp_frame(CLIENT_V4, LISTEN_V4, RTP)
_GOOD_V6 = udp_frame(CLIENT_V6, LISTEN_V6, RTP)


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        pytest.param(_GOOD, Verdict.HAND_UP, id="a good packet, to compare with"),
        pytest.param(_GOOD + bytes(40), Verdict.HAND_UP, id="padding behind the datagram"),
        pytest.param(
            udp_frame(CLIENT_V4, LISTEN_V4, RTP, fragment=0x2000), Verdict.DROP_FRAGMENT, id="first fragment"
        ),
        pytest.param(
            udp_frame(CLIENT_V4, LISTEN_V4, RTP, fragment=0x4000), Verdict.HAND_UP, id="do not fragment"
        ),
        pytest.param(udp_frame(CLIENT_V4, LISTEN_V4, RTP, fragment=0x0010), None, id="later fragment"),
        pytest.param(
            udp_frame(CLIENT_V4, LISTEN_V4, RTP, udp_length=7), Verdict.DROP_MALFORMED, id="UDP length 7"
        ),
        pytest.param(
            udp_frame(CLIENT_V4, LISTEN_V4, RTP, udp_length=900),
            Verdict.DROP_MALFORMED,
            id="UDP length too large",
        ),
        pytest.param(
            udp_frame(CLIENT_V6, LISTEN_V6, RTP, udp_length=900), Verdict.DROP_MALFORMED, id="the same, IPv6"
        ),
        pytest.param(udp_frame(CLIENT_V4, LISTEN_V4, RTP, ip_options=bytes(4)), None, id="IPv4 options"),
        pytest.param(udp_frame(CLIENT_V4, Address(LISTEN_V4.host, 53), RTP), None, id="another port of ours"),
        pytest.param(
            udp_frame(CLIENT_V4, Address.parse("192.0.2.200:3478"), RTP), None, id="another address"
        ),
        pytest.param(_GOOD[:23] + b"\x06" + _GOOD[24:], None, id="TCP"),
        pytest.param(_GOOD_V6[:20] + b"\x2c" + _GOOD_V6[21:], None, id="IPv6 fragment header"),
        pytest.param(_GOOD[:12] + b"\x08\x06" + _GOOD[14:], None, id="ARP"),
        pytest.param(_GOOD[:14] + b"\x44" + _GOOD[15:], None, id="IHL below its minimum"),
        pytest.param(_GOOD[:30], None, id="cut in the IP header"),
        pytest.param(_GOOD[:40], None, id="cut in the UDP header"),
    ],
)
def test_frames_around_the_datagram(xdp: RelayPrograms, frame: bytes, verdict: Verdict | None) -> None:
    assert judge(xdp, frame) is verdict
