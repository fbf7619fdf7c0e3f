"""RTCP: an independent implementation, and everything that a sender can get wrong."""

from collections.abc import Callable
from contextlib import suppress
from struct import pack

import aiortc.rtp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.network import cut_short, fault_of, one_byte_flipped
from wire.errors import WireFault
from wire.rtcp import (
    MAX_COUNT,
    MAX_PACKETS,
    MAX_PACKETS_LOST,
    MIN_PACKETS_LOST,
    Bye,
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    is_rtcp,
    parse_rtcp_untrusted,
    write_bye,
    write_receiver_report,
    write_sdes_cname,
    write_sender_report,
)

U8 = st.integers(0, 0xFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
BLOCKS = st.builds(ReportBlock, U32, U8, st.integers(MIN_PACKETS_LOST, MAX_PACKETS_LOST), U32, U32, U32, U32)
REPORTS = st.lists(BLOCKS, max_size=MAX_COUNT).map(tuple)
SENDER_REPORTS = st.builds(SenderReport, U32, U64, U32, U32, U32, REPORTS)
RECEIVER_REPORTS = st.builds(ReceiverReport, U32, REPORTS)
BYES = st.builds(Bye, st.lists(U32, max_size=MAX_COUNT).map(tuple))

BLOCK = ReportBlock(0x01020304, 0x40, -2, 0x00010005, 99, 0xAABBCCDD, 0x00018000)
BLOCK_BYTES = bytes.fromhex("01020304 40fffffe 00010005 00000063 aabbccdd 00018000")
RECEIVER_REPORT = bytes.fromhex("81c90007 0000002a") + BLOCK_BYTES
SENDER_REPORT = bytes.fromhex("81c8000c 0000002a 0102030405060708 0000000a 0000000b 0000000c") + BLOCK_BYTES
CNAME = bytes.fromhex("81ca0003 0000002a 01036162 63000000")
BYE = bytes.fromhex("82cb0002 0000002a 0000002b")
BYE_WITH_REASON = bytes.fromhex("81cb0002 0000002a 03627965")
NACK = bytes.fromhex("81cd0003 0000002a 0000002b 00050001")
PLI = bytes.fromhex("81ce0002 0000002a 0000002b")
APP = bytes.fromhex("80cc0002 0000002a 6e616d65")
COMPOUND = SENDER_REPORT + CNAME + NACK + PLI + BYE

SENT = SenderReport(42, 0x0102030405060708, 10, 11, 12, (BLOCK,))
RECEIVED = ReceiverReport(42, (BLOCK,))


def rtcp(packet_type: int, count: int, body: bytes, *, words: int | None = None, first: int = 0x80) -> bytes:
    return pack("!BBH", first | count, packet_type, len(body) // 4 if words is None else words) + body


@pytest.mark.parametrize(
    ("packet", "parsed"),
    [
        pytest.param(SENDER_REPORT, [SENT], id="sender report"),
        pytest.param(RECEIVER_REPORT, [RECEIVED], id="receiver report"),
        pytest.param(bytes.fromhex("80c90001 0000002a"), [ReceiverReport(42)], id="empty receiver report"),
        pytest.param(BYE, [Bye((42, 43))], id="goodbye of two"),
        pytest.param(BYE_WITH_REASON, [Bye((42,))], id="goodbye with a reason"),
        pytest.param(bytes.fromhex("80cb0000"), [Bye(())], id="goodbye of nobody"),
        pytest.param(COMPOUND, [SENT, Bye((42, 43))], id="compound"),
        pytest.param(NACK, [], id="reduced size: a NACK alone"),
        pytest.param(CNAME + APP + PLI, [], id="nothing that is read"),
        pytest.param(NACK + RECEIVER_REPORT, [RECEIVED], id="report not first"),
        pytest.param(
            bytes.fromhex("81c90008") + RECEIVER_REPORT[4:] + b"more", [RECEIVED], id="profile's extension"
        ),
        pytest.param(
            bytes.fromhex("a1c90008") + RECEIVER_REPORT[4:] + b"\0\0\0\4", [RECEIVED], id="with padding"
        ),
        pytest.param(rtcp(207, 31, b"rubbish!"), [], id="skipped whatever its count says"),
        pytest.param(PLI * MAX_PACKETS, [], id="as many as may be"),
    ],
)
def test_compound_is_read(packet: bytes, parsed: list[RtcpPacket]) -> None:
    assert parse_rtcp_untrusted(packet) == parsed


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\xc9\0", id="one byte short of a header"),
        pytest.param(rtcp(201, 0, bytes(4), first=0x40), id="version 1"),
        pytest.param(rtcp(201, 0, bytes(4), words=2), id="overruns"),
        pytest.param(rtcp(205, 0, b"", words=0xFFFF), id="skipped one of 256 KiB"),
        pytest.param(RECEIVER_REPORT + b"\x80", id="a byte behind it"),
        pytest.param(rtcp(200, 0, bytes(20)), id="sender report without its octet count"),
        pytest.param(rtcp(200, 1, bytes(40)), id="sender report of one block in 20 bytes"),
        pytest.param(rtcp(201, 0, b""), id="receiver report without SSRC"),
        pytest.param(rtcp(201, 31, bytes(28)), id="receiver report of 31 blocks in 24 bytes"),
        pytest.param(rtcp(203, 2, bytes(4)), id="goodbye of two in 4 bytes"),
        pytest.param(rtcp(201, 0, b"", first=0xA0), id="padding of nothing"),
        pytest.param(rtcp(201, 0, bytes(4), first=0xA0), id="padding of no bytes"),
        pytest.param(rtcp(201, 0, b"\0\0\0\5", first=0xA0), id="padding of 5 in 4 bytes"),
        pytest.param(rtcp(201, 0, b"\0\0\0\4", first=0xA0), id="padding over the SSRC"),
        pytest.param(rtcp(206, 0, b"\0\0\0\0", first=0xA0), id="wrong padding of a skipped one"),
        pytest.param(RECEIVER_REPORT + rtcp(203, 2, bytes(4)), id="good one, then a lie"),
        pytest.param(PLI * (MAX_PACKETS + 1), id="too many"),
        pytest.param(bytes.fromhex("80cb0000") * 16000, id="64 KB of empty goodbyes"),
    ],
)
def test_lie_is_refused(packet: bytes) -> None:
    assert fault_of(parse_rtcp_untrusted, packet) is WireFault.RTCP_MALFORMED


@pytest.mark.parametrize(
    ("written", "packet"),
    [
        pytest.param(write_sender_report(*SENT), SENDER_REPORT, id="sender report"),
        pytest.param(write_receiver_report(*RECEIVED), RECEIVER_REPORT, id="receiver report"),
        pytest.param(write_sdes_cname(42, "abc"), CNAME, id="CNAME"),
        pytest.param(write_bye([42, 43]), BYE, id="goodbye"),
        pytest.param(
            write_sender_report(1, 2, 3, 1 << 32 | 4, 1 << 32 | 5),
            write_sender_report(1, 2, 3, 4, 5),
            id="counts wrap",
        ),
        pytest.param(
            write_receiver_report(1, [BLOCK._replace(packets_lost=1 << 30)]),
            write_receiver_report(1, [BLOCK._replace(packets_lost=MAX_PACKETS_LOST)]),
            id="loss stays at its bound",
        ),
        pytest.param(
            write_receiver_report(1, [BLOCK._replace(packets_lost=-1 << 30)]),
            write_receiver_report(1, [BLOCK._replace(packets_lost=MIN_PACKETS_LOST)]),
            id="gain stays at its bound",
        ),
    ],
)
def test_packet_is_written(written: bytes, packet: bytes) -> None:
    assert written == packet


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda: write_bye([1] * 32), id="goodbye"),
        pytest.param(lambda: write_receiver_report(1, [BLOCK] * 32), id="receiver report"),
        pytest.param(lambda: write_sdes_cname(1, "a" * 256), id="CNAME"),
    ],
)
def test_more_than_a_packet_can_say_is_not_written(write: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r"at most 31|in range"):
        write()


@given(st.lists(SENDER_REPORTS | RECEIVER_REPORTS | BYES, min_size=1, max_size=4))
def test_written_compound_is_read_back(packets: list[RtcpPacket]) -> None:
    writers: dict[type[RtcpPacket], Callable[..., bytes]] = {
        SenderReport: write_sender_report,
        ReceiverReport: write_receiver_report,
        Bye: write_bye,
    }
    compound = b"".join(writers[type(packet)](*packet) for packet in packets)
    assert parse_rtcp_untrusted(compound) == packets
    assert as_ours(aiortc.rtp.RtcpPacket.parse(compound)) == packets


@given(U32, st.text(max_size=60))
def test_aiortc_reads_the_cname(ssrc: int, cname: str) -> None:
    compound = write_receiver_report(ssrc) + write_sdes_cname(ssrc, cname)
    assert parse_rtcp_untrusted(compound) == [ReceiverReport(ssrc)]
    _, description = aiortc.rtp.RtcpPacket.parse(compound)
    assert isinstance(description, aiortc.rtp.RtcpSdesPacket)
    assert [(chunk.ssrc, chunk.items) for chunk in description.chunks] == [(ssrc, [(1, cname.encode())])]


def as_ours(theirs: list[aiortc.rtp.AnyRtcpPacket]) -> list[RtcpPacket]:
    """What aiortc read, in this project's words, without what is stepped over here."""
    ours: list[RtcpPacket] = []
    for packet in theirs:
        if isinstance(packet, aiortc.rtp.RtcpByePacket):
            ours.append(Bye(tuple(packet.sources)))
        elif isinstance(packet, aiortc.rtp.RtcpRrPacket):
            ours.append(ReceiverReport(packet.ssrc, blocks(packet.reports)))
        elif isinstance(packet, aiortc.rtp.RtcpSrPacket):
            info = packet.sender_info
            ours.append(
                SenderReport(
                    packet.ssrc,
                    info.ntp_timestamp,
                    info.rtp_timestamp,
                    info.packet_count,
                    info.octet_count,
                    blocks(packet.reports),
                )
            )
    return ours


def blocks(reports: list[aiortc.rtp.RtcpReceiverInfo]) -> tuple[ReportBlock, ...]:
    return tuple(
        ReportBlock(
            report.ssrc,
            report.fraction_lost,
            report.packets_lost,
            report.highest_sequence,
            report.jitter,
            report.lsr,
            report.dlsr,
        )
        for report in reports
    )


RTCP_LIKE = st.lists(
    st.builds(
        rtcp,
        st.integers(198, 208),
        st.integers(0, 31),
        st.binary(max_size=64),
        words=st.none() | st.integers(0, 20),
        first=st.sampled_from([0x80, 0xA0]),
    ),
    max_size=4,
).map(b"".join)


@given(st.binary(max_size=120) | RTCP_LIKE | one_byte_flipped(COMPOUND) | cut_short(COMPOUND))
@example(COMPOUND)
def test_any_bytes_are_read_as_aiortc_does_or_raise_rtcp_malformed(packet: bytes) -> None:
    theirs = None
    with suppress(ValueError):  # it reads an empty datagram, and refuses lies in what is stepped over here
        theirs = as_ours(aiortc.rtp.RtcpPacket.parse(packet))
    fault = fault_of(parse_rtcp_untrusted, packet)
    assert fault in {None, WireFault.RTCP_MALFORMED}
    if fault is None and theirs is not None:
        assert parse_rtcp_untrusted(packet) == theirs
    assert not (theirs and fault), "what aiortc read a report out of was refused"


@pytest.mark.parametrize(
    ("packet", "rtcp_it_is"),
    [
        pytest.param(b"\x80\x6f" + bytes(10), False, id="Opus"),
        pytest.param(b"\x80\xef" + bytes(10), False, id="Opus with marker"),
        pytest.param(b"\x80\xbf", False, id="one below"),
        pytest.param(b"\x80\xc0", True, id="lowest"),
        pytest.param(SENDER_REPORT, True, id="sender report"),
        pytest.param(b"\x80\xdf", True, id="highest"),
        pytest.param(b"\x80\xe0", False, id="one above"),
        pytest.param(b"\x80", False, id="no second byte"),
    ],
)
def test_rtcp_is_told_from_rtp(packet: bytes, rtcp_it_is: bool) -> None:
    assert is_rtcp(packet) is rtcp_it_is
