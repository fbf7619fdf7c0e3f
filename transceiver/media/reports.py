"""Sends a session's RTCP: what we sent, and how the client's packets arrive (RFC 3550 section 6.4)."""

import random
from collections import OrderedDict
from typing import TYPE_CHECKING

from aiortc.clock import current_ntp_time

from transceiver.media.context import MediaContext
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.sender import VoiceSender
from wire.rtcp import (
    Bye,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    write_bye,
    write_receiver_report,
    write_sdes_cname,
    write_sender_report,
)

if TYPE_CHECKING:
    from transceiver.dtls import MuxDtlsTransport

# As aiortc and browsers do for audio; RTP/SAVPF knows no minimum (RFC 4585 section 3.4). Spread as of RFC 3550 section 6.2.
_INTERVAL_S = 1.0
_SMOOTHING = 0.15
_REMEMBERED_REPORTS = 8
_MAX_ROUND_TRIP_S = 30.0


class Reports:
    """RTCP of one audio section."""

    def __init__(
        self, sender: VoiceSender, receiver: VoiceReceiver, context: MediaContext, cname: str
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._context = context
        self._cname = cname
        self._dtls: MuxDtlsTransport | None = None
        self._due_at = 0.0
        self._reported_packets = 0
        # When each sender report went out, by what the client will quote of it.
        self._sent_at: OrderedDict[int, float] = OrderedDict()

    def start(self, dtls: "MuxDtlsTransport") -> None:
        """Report from now on, by this transport."""
        if self._dtls is None:
            self._dtls = dtls
            self._due_at = self._context.clock() + self._interval_s()
            self._context.ticker.add(self._tick)

    def stop(self) -> None:
        """Say goodbye, and report no more."""
        self._context.ticker.discard(self._tick)
        if self._dtls is not None:
            self._dtls.send_rtcp(self._report(self._context.clock()) + write_bye([self._sender._ssrc]))
            self._dtls = None

    def receive(self, packet: RtcpPacket, now: float) -> None:
        """Handle one authentic packet of the client."""
        if isinstance(packet, Bye):
            self._receiver.note_goodbye(packet.ssrcs)
            return
        if isinstance(packet, SenderReport):
            self._receiver.note_sender_report(packet, now)
        for report in packet.reports:
            if report.ssrc == self._sender._ssrc:
                self._note_round_trip(report, now)
                self._sender.note_report(report)

    def _tick(self, now: float) -> None:
        if now >= self._due_at and self._dtls is not None:
            self._due_at = now + self._interval_s()
            self._sender.measure(now)
            self._dtls.send_rtcp(self._report(now))

    def _interval_s(self) -> float:
        return _INTERVAL_S * (0.5 + random.random())  # spreads load, hides nothing

    def _report(self, now: float) -> bytes:
        statistics = self._receiver.statistics
        blocks = [] if statistics is None else [statistics.report(now)]
        sender = self._sender
        if sender.packets == self._reported_packets:
            return write_receiver_report(sender._ssrc, blocks) + write_sdes_cname(sender._ssrc, self._cname)
        self._reported_packets = sender.packets
        ntp = current_ntp_time()
        self._sent_at[(ntp >> 16) & 0xFFFF_FFFF] = now
        if len(self._sent_at) > _REMEMBERED_REPORTS:
            self._sent_at.popitem(last=False)
        report = write_sender_report(
            sender._ssrc, ntp, sender.timestamp_at(now), sender.packets, sender.octets, blocks
        )
        return report + write_sdes_cname(sender._ssrc, self._cname)

    def _note_round_trip(self, report: ReportBlock, now: float) -> None:
        """https://www.rfc-editor.org/rfc/rfc3550#section-6.4.1: now - LSR - DLSR, on our own monotonic clock."""
        sent_at = self._sent_at.get(report.last_sender_report)
        if sent_at is None:
            return
        round_trip_s = now - sent_at - report.delay_since_last / 65_536
        if not 0 <= round_trip_s <= _MAX_ROUND_TRIP_S:
            return
        known = self._sender.round_trip_s
        smoothed = round_trip_s if known is None else known + _SMOOTHING * (round_trip_s - known)
        self._sender.round_trip_s = smoothed
