"""Reception statistics, against RFC 3550's own code and against aiortc's."""

from dataclasses import dataclass
from typing import NamedTuple

import aiortc.rtcrtpreceiver
import pytest
from aiortc.rtp import RtpPacket
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media.statistics import SourceStatistics

_RATE = 48_000


class In(NamedTuple):
    """A packet: its number is counted on over 16 bits, its timestamp over 32."""

    number: int
    timestamp: int
    now: float


@dataclass
class Appendix:
    """https://www.rfc-editor.org/rfc/rfc3550#appendix-A.1 (past its probation), A.3 and A.8, line by line."""

    base_seq: int = 0
    max_seq: int = 0
    cycles: int = 0
    received: int = 0
    expected_prior: int = 0
    received_prior: int = 0
    transit: int | None = None
    jitter: float = 0.0

    def update(self, packet: In) -> None:
        seq = packet.number & 0xFFFF
        if not self.received:
            self.base_seq = self.max_seq = seq
        delta = (seq - self.max_seq) & 0xFFFF
        if delta < 3000:
            if seq < self.max_seq:
                self.cycles += 1 << 16
            self.max_seq = seq
        self.received += 1
        arrival = int(packet.now * _RATE)
        transit = (arrival - packet.timestamp) & 0xFFFF_FFFF
        if self.transit is not None:
            d = (transit - self.transit) & 0xFFFF_FFFF
            d = min(d, (1 << 32) - d)
            self.jitter += (1.0 / 16.0) * (d - self.jitter)
        self.transit = transit

    def report(self) -> tuple[int, int, int]:
        """(fraction, lost, extended highest)."""
        extended_max = self.cycles + self.max_seq
        expected = extended_max - self.base_seq + 1
        lost = max(-0x800000, min(0x7FFFFF, expected - self.received))
        expected_interval = expected - self.expected_prior
        self.expected_prior = expected
        received_interval = self.received - self.received_prior
        self.received_prior = self.received
        lost_interval = expected_interval - received_interval
        nothing = expected_interval == 0 or lost_interval <= 0
        return 0 if nothing else (lost_interval << 8) // expected_interval, lost, extended_max


@st.composite
def streams(draw: st.DrawFn) -> list[In | None]:
    """Packets, of which none is older than the first; None where a report is made."""
    first = draw(st.integers(0, 65_535))
    origin = draw(st.integers(0, 2**32 - 1))
    now, newest = 1000.0, 0
    stream: list[In | None] = [In(first, origin, now)]
    for step in draw(st.lists(st.none() | st.integers(-30, 100) | st.just(1) | st.just(2_900), max_size=60)):
        if step is None:
            stream.append(None)
            continue
        number = max(0, newest + step)
        newest = max(newest, number)
        now += draw(st.floats(0, 0.2))
        stream.append(In(first + number, (origin + number * 960) & 0xFFFF_FFFF, now))
    return [*stream, None]


@given(streams())
def test_agrees_with_the_code_of_the_rfc(stream: list[In | None]) -> None:
    ours, theirs = SourceStatistics(1, _RATE), Appendix()
    for packet in stream:
        if packet is None:
            report = ours.report(2000.0)
            assert (report.fraction_lost, report.packets_lost, report.highest_sequence) == theirs.report()
            assert report.jitter == pytest.approx(theirs.jitter, abs=2)
            continue
        ours.add(packet.number & 0xFFFF, packet.timestamp, 80, packet.now)
        theirs.update(packet)
        assert ours.jitter == pytest.approx(theirs.jitter, abs=2)


@given(streams())
def test_agrees_with_aiortc_on_what_is_lost(stream: list[In | None]) -> None:
    ours, theirs = SourceStatistics(1, _RATE), aiortc.rtcrtpreceiver.StreamStatistics(_RATE)
    for packet in stream:
        if packet is None:
            report = ours.report(2000.0)
            assert report.packets_lost == theirs.packets_lost
            assert report.fraction_lost == theirs.fraction_lost
            continue
        ours.add(packet.number & 0xFFFF, packet.timestamp, 80, packet.now)
        theirs.add(RtpPacket(sequence_number=packet.number & 0xFFFF, timestamp=packet.timestamp))
        assert ours.received == theirs.packets_received


def _add(statistics: SourceStatistics, *numbers: int) -> None:
    for number in numbers:
        statistics.add(number, number * 960, 100, 1.0 + number * 0.02)


@pytest.mark.parametrize(
    ("numbers", "expected", "lost", "reordered"),
    [
        ((), 0, 0, 0),
        ((7,), 1, 0, 0),
        ((1, 2, 3), 3, 0, 0),
        ((1, 3), 3, 1, 0),
        ((1, 3, 2), 3, 0, 1),
        ((1, 1, 2), 2, -1, 0),
        ((65_535, 0, 1), 3, 0, 0),
        ((65_534, 0, 65_535), 3, 0, 1),
        ((2, 1, 3), 3, 0, 1),
        ((0, 65_535, 1), 3, 0, 1),
        ((10, 7, 11), 5, 2, 1),
        # Back by more than reordering takes: the count of lost packets must not leap by thousands.
        ((20_000, 1), 1, -1, 1),
    ],
)
def test_counts(numbers: tuple[int, ...], expected: int, lost: int, reordered: int) -> None:
    statistics = SourceStatistics(1, _RATE)
    _add(statistics, *numbers)
    assert (statistics.expected, statistics.lost, statistics.reordered) == (expected, lost, reordered)


def test_interval_of_a_report_begins_at_the_one_before() -> None:
    statistics = SourceStatistics(5, _RATE)
    _add(statistics, 1, 2, 3, 5)
    first = statistics.report(2.02)
    assert (first.ssrc, first.fraction_lost, first.packets_lost) == (5, 256 // 5, 1)
    assert statistics.bit_rate == pytest.approx(4 * 100 * 8)
    _add(statistics, 4, 6, 7)  # more than were lost
    second = statistics.report(3.02)
    assert (second.fraction_lost, second.packets_lost) == (0, 0)
    assert statistics.bit_rate == pytest.approx(3 * 100 * 8)
    third = statistics.report(4.02)
    assert (third.fraction_lost, statistics.bit_rate) == (0, 0)


def test_everything_lost_but_one_fits_its_byte() -> None:
    statistics = SourceStatistics(1, _RATE)
    _add(statistics, 1)
    statistics.report(1.0)
    _add(statistics, 2_000)
    assert statistics.report(2.0).fraction_lost == 255


def test_jitter_of_a_steady_stream_is_none_and_of_an_uneven_one_its_mean() -> None:
    statistics = SourceStatistics(1, _RATE)
    for number in range(200):
        statistics.add(number, 2**32 - 9_600 + number * 960 & 0xFFFF_FFFF, 80, number * 0.02)
    assert statistics.jitter_ms == pytest.approx(0, abs=0.001)
    for number in range(200, 600):
        statistics.add(
            number, 2**32 - 9_600 + number * 960 & 0xFFFF_FFFF, 80, number * 0.02 + number % 2 * 0.01
        )
    assert statistics.jitter_ms == pytest.approx(10, abs=0.01)


def test_report_names_the_last_sender_report_and_its_age() -> None:
    statistics = SourceStatistics(1, _RATE)
    _add(statistics, 1)
    assert statistics.report(2.0)[-2:] == (0, 0)
    statistics.note_sender_report(0x1234_5678_9ABC_DEF0, 2.0)
    assert statistics.report(3.5)[-2:] == (0x5678_9ABC, 3 << 15)
    assert statistics.report(1e9)[-1] == 0xFFFF_FFFF


def test_report_before_any_packet_says_nothing() -> None:
    assert SourceStatistics(9, _RATE).report(1.0) == (9, 0, 0, 0, 0, 0, 0)
