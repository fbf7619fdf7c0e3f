"""RTCP of a section: when it goes out, what it says, and what is learnt from the client's."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from tests.transceiver.media.fakes import Media, speech_packets
from transceiver.media.reports import Reports
from wire.rtcp import Bye, ReceiverReport, ReportBlock, SenderReport

pytestmark = pytest.mark.usefixtures("no_task_left")


class Reporting(Media):
    """With its RTCP."""

    def __init__(self) -> None:
        super().__init__()
        self.reports = Reports(self.sender, self.receiver, self.context, "a-cname")
        self.reports.start(cast("Any", self.transport))

    def sent(self) -> list[SenderReport | ReceiverReport]:
        """The reports that went out."""
        return [c[0] for c in self.transport.rtcp if isinstance(c[0], SenderReport | ReceiverReport)]

    def next_report(self) -> SenderReport | ReceiverReport:
        """Wait for one."""
        before = len(self.transport.rtcp)
        self.pass_time(1.6)
        assert len(self.transport.rtcp) > before
        return self.sent()[-1]

    def block(self, **fields: int) -> ReportBlock:
        """What the client says of our stream."""
        empty = ReportBlock(self.sender._ssrc, 0, 0, 0, 0, 0, 0)
        return empty._replace(**fields)


@pytest_asyncio.fixture
async def media() -> AsyncIterator[Reporting]:
    media = Reporting()
    await media.receive()
    await media.send()
    yield media
    media.reports.stop()
    await media.stop()


async def test_report_goes_out_about_once_a_second(media: Reporting) -> None:
    media.pass_time(100)
    assert 70 <= len(media.transport.rtcp) <= 150


async def test_report_is_of_a_sender_only_when_something_was_sent(media: Reporting) -> None:
    assert media.next_report() == ReceiverReport(media.sender._ssrc, ())
    media.sender.send_encoded(bytes(80))
    for packet in speech_packets("opus", 1):
        media.arrive(4, packet)
    report = media.next_report()
    while not isinstance(report, SenderReport):
        report = media.sent()[media.sent().index(report) - 1]
    assert (report.ssrc, report.packet_count, report.octet_count) == (media.sender._ssrc, 1, 80)
    [block] = report.reports
    assert (block.ssrc, block.highest_sequence, block.packets_lost) == (7, 4, 0)
    assert isinstance(media.next_report(), ReceiverReport)


async def test_timestamp_of_a_sender_report_is_that_of_its_moment(media: Reporting) -> None:
    media.sender.send_encoded(b"opus")
    [packet] = media.transport.rtp
    sent_at = media.clock.now
    while not (senders := [r for r in media.sent() if isinstance(r, SenderReport)]):
        media.pass_time(0.02)
    ahead = (senders[0].rtp_timestamp - packet.timestamp) & 0xFFFF_FFFF
    assert ahead == pytest.approx((media.clock.now - sent_at) * 48_000, abs=2)


async def _sent_report(media: Reporting) -> int:
    """What the client quotes of the sender report that goes out now."""
    media.sender.send_encoded(b"opus")
    known = len(media.sent())
    while not (senders := [r for r in media.sent()[known:] if isinstance(r, SenderReport)]):
        media.pass_time(0.02)
    return (senders[0].ntp_timestamp >> 16) & 0xFFFF_FFFF


async def test_round_trip_is_measured_and_smoothed(media: Reporting) -> None:
    quoted = await _sent_report(media)
    media.clock.now += 0.35
    block = media.block(last_sender_report=quoted, delay_since_last=round(0.25 * 65_536))
    media.reports.receive(ReceiverReport(9, (block,)), media.clock.now)
    assert media.sender.round_trip_s == pytest.approx(0.1, abs=0.001)
    media.clock.now += 1
    media.reports.receive(
        SenderReport(9, 0, 0, 0, 0, (block._replace(delay_since_last=round(1.05 * 65_536)),)), media.clock.now
    )
    assert media.sender.round_trip_s == pytest.approx(0.1 + 0.15 * 0.2, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "ago_s"),
    [
        ({"last_sender_report": 1}, 0.1),
        ({"last_sender_report": 0}, 0.1),
        ({"ssrc": 5}, 0.1),
        ({"delay_since_last": 60 * 65_536}, 0.1),
        ({"delay_since_last": 0xFFFF_FFFF}, 0.1),
        ({}, 40),
    ],
)
async def test_report_that_cannot_be_true_tells_no_round_trip(
    media: Reporting, changes: dict[str, int], ago_s: float
) -> None:
    quoted = await _sent_report(media)
    media.clock.now += ago_s
    block = media.block(last_sender_report=quoted)._replace(**changes)
    media.reports.receive(ReceiverReport(9, (block,)), media.clock.now)
    assert media.sender.round_trip_s is None


async def test_old_sender_reports_are_forgotten(media: Reporting) -> None:
    quoted = [await _sent_report(media) for _ in range(12)]
    assert len(media.reports._sent_at) == 8
    assert quoted[-1] in media.reports._sent_at
    assert quoted[0] not in media.reports._sent_at


async def test_sender_report_of_the_client_is_quoted(media: Reporting) -> None:
    media.arrive(1, speech_packets("opus", 1)[0])
    media.reports.receive(SenderReport(7, 0x0000_1234_5678_0000, 0, 1, 80), media.clock.now)
    assert media.next_report().reports[0].last_sender_report == 0x1234_5678


async def test_source_that_says_goodbye_makes_room_for_another_at_once(media: Reporting) -> None:
    packets = speech_packets("opus", 3)
    media.arrive(1, packets[0], ssrc=7)
    media.reports.receive(Bye((8, 9)), media.clock.now)
    media.arrive(1, packets[1], ssrc=8)
    assert len(media.pcm) == 1
    media.reports.receive(Bye((8, 7)), media.clock.now)
    media.pass_time(0.4)
    assert len(media.pcm) == 1  # nobody is there whose silence would be heard
    media.arrive(1, packets[2], ssrc=8)
    assert len(media.pcm) == 2
    assert isinstance(media.next_report(), ReceiverReport)


async def test_goodbye_is_said_once_at_the_end(media: Reporting) -> None:
    for _ in range(2):
        media.reports.stop()
    media.pass_time(5)
    [compound] = media.transport.rtcp
    assert compound[-1] == Bye((media.sender._ssrc,))


async def test_reports_that_never_started_say_no_goodbye(media: Reporting) -> None:
    Reports(media.sender, media.receiver, media.context, "another").stop()
    assert media.transport.rtcp == []


async def test_describes_what_the_client_says_of_us(media: Reporting) -> None:
    for _ in range(10):
        media.sender.send_encoded(bytes(100))
    block = media.block(fraction_lost=64, packets_lost=2, jitter=480)
    media.reports.receive(ReceiverReport(9, (block,)), media.clock.now)
    described = media.sender.describe()
    assert described | {"bitrate_bps": 0} == {
        "packets": 10,
        "lost": 2,
        "loss": 0.25,
        "jitter_ms": 10.0,
        "bitrate_bps": 0,
    }
    media.sender.measure(media.clock.now + 1)
    assert media.sender.describe()["bitrate_bps"] == 8_000
