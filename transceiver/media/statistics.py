"""What a receiver counts of one RTP stream and reports of it (RFC 3550 sections 6.4.1 and appendix A). Pure."""

from wire.rtcp import MAX_PACKETS_LOST, MIN_PACKETS_LOST, ReportBlock

_HALF, _CYCLE = 0x8000, 0x10000
_MAX_MISORDER = 100  # https://www.rfc-editor.org/rfc/rfc3550#appendix-A.1


class SourceStatistics:
    """One SSRC. ``now`` is monotonic seconds."""

    def __init__(self, ssrc: int, clock_rate: int) -> None:
        self.ssrc = ssrc
        self.received = 0
        self.received_bytes = 0
        self.reordered = 0
        self.jitter = 0.0  # in clock units, smoothed (RFC 3550 section 6.4.1)
        self.fraction_lost = 0.0  # between the last two reports
        self.bit_rate = 0.0  # likewise, bit/s of payloads
        self._clock_rate = clock_rate
        self._first = 0
        self._highest = 0
        self._transit: float | None = None
        self._expected_before = 0
        self._received_before = 0
        self._bytes_before = 0
        self._reported_at: float | None = None
        self._sender_report = 0  # middle 32 bits of its NTP timestamp
        self._sender_report_at = 0.0

    @property
    def expected(self) -> int:
        """How many the sender has sent, by their numbers."""
        return self._highest - self._first + 1 if self.received else 0

    @property
    def lost(self) -> int:
        """Cumulative; negative where duplicates are more (RFC 3550 section 6.4.1)."""
        return max(MIN_PACKETS_LOST, min(MAX_PACKETS_LOST, self.expected - self.received))

    @property
    def jitter_ms(self) -> float:
        """Interarrival jitter."""
        return self.jitter * 1000 / self._clock_rate

    def add(self, sequence_number: int, timestamp: int, length: int, now: float) -> None:
        """Count a packet of ``length`` payload bytes."""
        if not self.received:
            self._first = self._highest = sequence_number
            self._reported_at = now
        self.received += 1
        self.received_bytes += length
        ahead = (sequence_number - self._highest) & 0xFFFF
        if 0 < ahead < _HALF:
            self._highest += ahead
        elif ahead >= _HALF:
            self.reordered += 1
            if _CYCLE - ahead <= _MAX_MISORDER:  # the first to come need not be the first that was sent
                self._first = min(self._first, self._highest - (_CYCLE - ahead))
        transit = now * self._clock_rate - timestamp
        if self._transit is not None:
            # Timestamps wrap, so the difference counts modulo 2^32.
            difference = abs((transit - self._transit + 0x8000_0000) % 0x1_0000_0000 - 0x8000_0000)
            self.jitter += (difference - self.jitter) / 16
        self._transit = transit

    def note_sender_report(self, ntp_timestamp: int, now: float) -> None:
        """A sender report of this stream came."""
        self._sender_report = (ntp_timestamp >> 16) & 0xFFFF_FFFF
        self._sender_report_at = now

    def report(self, now: float) -> ReportBlock:
        """What a report says now; begins the next interval."""
        expected, received = self.expected - self._expected_before, self.received - self._received_before
        self.fraction_lost = max(0.0, (expected - received) / expected) if expected > 0 else 0.0
        elapsed_s = now - (self._reported_at if self._reported_at is not None else now)
        if elapsed_s > 0:
            self.bit_rate = (self.received_bytes - self._bytes_before) * 8 / elapsed_s
        self._expected_before, self._received_before = self.expected, self.received
        self._bytes_before, self._reported_at = self.received_bytes, now
        since = now - self._sender_report_at if self._sender_report else 0.0
        return ReportBlock(
            self.ssrc,
            min(255, int(self.fraction_lost * 256)),
            self.lost,
            self._highest & 0xFFFF_FFFF,
            min(0xFFFF_FFFF, int(self.jitter)),
            self._sender_report,
            min(0xFFFF_FFFF, int(since * 65_536)),
        )
