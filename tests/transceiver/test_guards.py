"""What of a client's SCTP reaches aiortc, by the state of its association."""

from struct import pack

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.rtcsctptransport import RTCSctpTransport
from aiortc.rtp import RtcpByePacket, RtcpRtpfbPacket
from google_crc32c import value as crc32c

from transceiver.guards import BoundedRouter, SctpGuard

LAST_RECEIVED, LAST_SENT = 0xFFFF_FFF0, 1000  # TSNs wrap soon


def packet(*chunks: bytes) -> bytes:
    head, body = bytes.fromhex("13881388 00000001"), b"".join(chunks)
    return head + pack("<I", crc32c(head + bytes(4) + body)) + body


def chunk(kind: int, body: bytes) -> bytes:
    return pack("!BBH", kind, 3, 4 + len(body)) + body + bytes(-len(body) % 4)


def data(ahead: int, stream: int = 1) -> bytes:
    return chunk(0, pack("!IHHI", (LAST_RECEIVED + ahead) & 0xFFFF_FFFF, stream, 0, 51) + b"x")


def sack(acknowledged: int, *gaps: tuple[int, int]) -> bytes:
    lists = b"".join(pack("!HH", *gap) for gap in gaps)
    return chunk(3, pack("!IIHH", acknowledged & 0xFFFF_FFFF, 1000, len(gaps), 0) + lists)


def forward(*streams: int) -> bytes:
    return chunk(192, pack("!I", LAST_RECEIVED + 1) + b"".join(pack("!HH", stream, 0) for stream in streams))


async def refusal(sent: bytes, *, last_received: int | None = LAST_RECEIVED) -> str | None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.createDataChannel("events")
    sctp = connection.sctp
    assert isinstance(sctp, RTCSctpTransport)
    sctp._last_received_tsn, sctp._local_tsn = last_received, LAST_SENT + 1
    answer = SctpGuard(sctp).refusal_untrusted(sent)
    await connection.close()
    return answer


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(packet(data(1)), id="data that is due"),
        pytest.param(packet(data(1024)), id="data behind a gap, over the wrap"),
        pytest.param(packet(data(0)), id="data that came already"),
        pytest.param(packet(*(data(1 + n, n) for n in range(100))), id="data of 100 streams"),
        pytest.param(packet(forward(1, 2)), id="FORWARD TSN"),
        pytest.param(packet(sack(LAST_SENT)), id="acknowledgement of all"),
        pytest.param(packet(sack(LAST_SENT - 9, (2, 4), (9, 9))), id="acknowledgement with gaps"),
        pytest.param(packet(sack(LAST_SENT - 70_000)), id="acknowledgement that is long past"),
    ],
)
async def test_what_a_call_needs_goes_on(sent: bytes) -> None:
    assert await refusal(sent) is None


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        pytest.param(packet(data(1))[:-1] + b"\1", "sctp_checksum", id="checksum"),
        pytest.param(b"", "sctp_malformed", id="nothing"),
        pytest.param(packet(data(1025)), "sctp_excess", id="data too far ahead"),
        pytest.param(packet(forward(*range(257))), "sctp_excess", id="too many streams"),
        pytest.param(packet(sack(LAST_SENT + 1)), "sctp_excess", id="acknowledgement of what was never sent"),
        pytest.param(packet(sack(LAST_SENT - 9, (2, 10))), "sctp_excess", id="gap of what was never sent"),
    ],
)
async def test_what_costs_too_much_is_refused(sent: bytes, counted: str) -> None:
    assert await refusal(sent) == counted


@pytest.mark.parametrize("sent", [packet(data(1)), packet(forward(1))], ids=["DATA", "FORWARD TSN"])
async def test_data_before_there_is_an_association_is_refused(sent: bytes) -> None:
    assert await refusal(sent, last_received=None) == "sctp_excess"


async def test_router_passes_a_nack_on_with_32_packets_at_most_and_no_bye() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video").sender
    router = BoundedRouter()
    router.register_sender(sender, ssrc=sender._ssrc)
    nack = RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=sender._ssrc, lost=[7, 7, *range(5000)])
    assert router.route_rtcp(nack) == {sender}
    assert nack.lost == [7, *(n for n in range(32) if n != 7)]
    assert router.route_rtcp(RtcpByePacket(sources=[sender._ssrc])) == set()
    await connection.close()
