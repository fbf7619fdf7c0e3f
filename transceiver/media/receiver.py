"""Our receiver of a session's audio: no thread, no task, nothing decoded that nobody listens to."""

import datetime
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from aiortc import MediaStreamTrack, clock
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RTCRtpReceiver, RTCRtpSynchronizationSource
from aiortc.stats import RTCInboundRtpStreamStats, RTCRemoteOutboundRtpStreamStats, RTCStatsReport

from transceiver.media.codecs import Decoder, make_decoder, rtp_clock_rate
from transceiver.media.context import MediaContext
from transceiver.media.jitter_buffer import Frame, JitterBuffer, JitterCounts
from transceiver.media.opus import OpusError
from transceiver.media.statistics import SourceStatistics
from transceiver.media.track import VoiceTrack
from wire.rtcp import SenderReport
from wire.rtp import RtpPacket, find_extension

if TYPE_CHECKING:
    from transceiver.dtls import MuxDtlsTransport

logger = logging.getLogger(__name__)

_MID_URI = "urn:ietf:params:rtp-hdrext:sdes:mid"
# A second source takes over when the first has been silent for so long; a client that changes it says so in SDP, or stops.
_SOURCE_SILENT_S = 0.5
# Decoded silence is not worth a decoder: after these, concealment has faded.
_FADED_FRAMES = 10

OnRtp = Callable[[RtpPacket], None]
OnPcm = Callable[[bytes], None]


class VoiceReceiver(RTCRtpReceiver):
    """In place of aiortc's. Its packets come from ``MuxDtlsTransport``, one after the other, on the loop's thread.

    ``on_rtp`` gets each packet as it arrives, undecoded, in whatever order; ``on_pcm`` gets PCM16 in order, 20 ms at a time
    (as long as the client's packets are), with what was lost made up. ``track`` is for applications of aiortc.
    """

    def __init__(self, transport: "MuxDtlsTransport", context: MediaContext) -> None:
        super().__init__("audio", transport)
        self.on_rtp: OnRtp | None = None
        self.on_pcm: OnPcm | None = None
        self.on_first_packet: Callable[[], None] = lambda: None
        self.statistics: SourceStatistics | None = None
        self.signalled_ssrcs: frozenset[int] = frozenset()
        self._context = context
        self._codecs: dict[int, RTCRtpCodecParameters] = {}
        self._voice_track: VoiceTrack | None = None
        self._jitter_buffer: JitterBuffer | None = None
        self._decoder: Decoder | None = None
        self._decoder_type = -1
        self._heard_at = float("-inf")
        self._sender_report: SenderReport | None = None
        self._before = _Totals()
        self._filled_in_a_row = 0
        self._mid = b""
        self._mid_extension = 0
        self._is_stopped = False
        self._has_failed = False

    # what aiortc calls

    @property
    def _track(self) -> Any:  # an attribute of the base class
        return self._voice_track

    @_track.setter
    def _track(self, track: MediaStreamTrack | None) -> None:
        """aiortc puts its own track here, whose queue has no bound; ours takes its name."""
        if track is not None:
            self._voice_track = VoiceTrack(
                self._context.settings, self._context.observer, self._listen, track.id
            )

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """See the base class. Each description that is applied comes here: its source may be another."""
        if self._is_stopped:
            return
        heard = self._codecs.get(self._decoder_type)
        self._codecs = {
            codec.payloadType: codec for codec in parameters.codecs if codec.payloadType is not None
        }
        if heard is not None and self._codecs.get(self._decoder_type) != heard:
            self._decoder = self._jitter_buffer = None
        if parameters.encodings:  # else by MID, which is not in every packet
            self.signalled_ssrcs = frozenset(encoding.ssrc for encoding in parameters.encodings)
        self._mid = parameters.muxId.encode()
        self._mid_extension = next((e.id for e in parameters.headerExtensions if e.uri == _MID_URI), 0)
        self.transport._register_rtp_receiver(self, parameters)

    async def stop(self) -> None:
        """See the base class."""
        self._is_stopped = True
        self.transport._unregister_rtp_receiver(self)
        self._context.ticker.discard(self._tick)
        self._handle_disconnect()
        self._decoder = self._jitter_buffer = None

    def _handle_disconnect(self) -> None:
        if self._voice_track is not None:
            self._voice_track.end()

    async def getStats(self) -> RTCStatsReport:  # noqa: N802  # the base class's name
        """See the base class."""
        report = RTCStatsReport()
        if self.statistics is not None:
            common: dict[str, Any] = {
                "timestamp": clock.current_datetime(),
                "ssrc": self.statistics.ssrc,
                "kind": "audio",
                "transportId": self.transport._stats_id,
            }
            report.add(
                RTCInboundRtpStreamStats(
                    **common,
                    type="inbound-rtp",
                    id=f"inbound-rtp_{id(self)}",
                    packetsReceived=self.statistics.received,
                    packetsLost=self.statistics.lost,
                    jitter=int(self.statistics.jitter),
                )
            )
            if (sent := self._sender_report) is not None:
                report.add(
                    RTCRemoteOutboundRtpStreamStats(
                        **common,
                        type="remote-outbound-rtp",
                        id=f"remote-outbound-rtp_{id(self)}",
                        packetsSent=sent.packet_count,
                        bytesSent=sent.octet_count,
                        remoteTimestamp=clock.datetime_from_ntp(sent.ntp_timestamp),
                    )
                )
        report.update(self.transport._get_stats())
        return report

    def getSynchronizationSources(self) -> list[RTCRtpSynchronizationSource]:  # noqa: N802  # the base class's name
        """See the base class."""
        ago_s = self._context.clock() - self._heard_at
        if self.statistics is None or ago_s > 10:
            return []
        heard = clock.current_datetime() - datetime.timedelta(seconds=ago_s)
        return [RTCRtpSynchronizationSource(timestamp=heard, source=self.statistics.ssrc)]

    # what arrives

    def receive_rtp(self, packet: RtpPacket, now: float) -> None:
        """Handle one authentic packet."""
        codec = self._codecs.get(packet.payload_type)
        if codec is None:
            self._context.observer.count("rtp_payload_type")
            return
        statistics = self.statistics
        if statistics is None or statistics.ssrc != packet.ssrc:
            statistics = self._change_source(packet.ssrc, codec, now)
            if statistics is None:
                self._context.observer.count("rtp_other_source")
                return
        self._heard_at = now
        statistics.add(packet.sequence_number, packet.timestamp, len(packet.payload), now)
        if not self._enabled or not packet.payload:
            return
        if self.on_rtp is not None:
            try:
                self.on_rtp(packet)
            except Exception as error:  # noqa: BLE001  # an application's fault is no fault of the packet
                self._note_failure(error)
        if self.on_pcm is not None:
            self._play(packet, codec, now)

    def takes_by_mid(self, packet: RtpPacket) -> bool:
        """Whether the packet names our section (RFC 8843 section 9.2); then its source is ours from now on."""
        named = find_extension(packet.extension_profile, packet.extension_data, self._mid_extension)
        if not named or named != self._mid:
            return False
        self.signalled_ssrcs = frozenset({packet.ssrc})
        return True

    def note_sender_report(self, report: SenderReport, now: float) -> None:
        """The client tells what it sent."""
        if self.statistics is not None and self.statistics.ssrc == report.ssrc:
            self.statistics.note_sender_report(report.ntp_timestamp, now)
            self._sender_report = report

    def note_goodbye(self, ssrcs: tuple[int, ...]) -> None:
        """The client ends these sources: no silence of theirs is heard, and another takes over at once."""
        if self.statistics is not None and self.statistics.ssrc in ssrcs:
            self._heard_at = float("-inf")
            self._jitter_buffer = None

    def describe(self) -> dict[str, Any]:
        """What came from the client, for ``sessions``."""
        statistics = self.statistics
        counts = self._before.counts
        return {
            "packets": self._before.received + (statistics.received if statistics else 0),
            "lost": self._before.lost + (statistics.lost if statistics else 0),
            "loss": round(statistics.fraction_lost, 4) if statistics else 0.0,
            "jitter_ms": round(statistics.jitter_ms, 2) if statistics else 0.0,
            "bitrate_bps": round(statistics.bit_rate) if statistics else 0,
            "reordered": self._before.reordered + (statistics.reordered if statistics else 0),
            "concealed": counts.concealed,
            "filled": counts.filled,
            "late": counts.late,
            "excess": counts.excess,
        }

    def _change_source(self, ssrc: int, codec: RTCRtpCodecParameters, now: float) -> SourceStatistics | None:
        """The stream of another SSRC, or None while we stay with the one that we have."""
        is_silent = now - self._heard_at >= _SOURCE_SILENT_S
        if self.statistics is None:
            self.on_first_packet()
        elif not is_silent and (
            self.statistics.ssrc in self.signalled_ssrcs or ssrc not in self.signalled_ssrcs
        ):
            return None
        else:
            self._before.add(self.statistics)
        self.statistics = SourceStatistics(ssrc, rtp_clock_rate(codec))
        self._jitter_buffer = self._sender_report = None
        return self.statistics

    # what is heard

    def _listen(self, on_pcm: OnPcm | None) -> None:
        self.on_pcm = on_pcm

    def _play(self, packet: RtpPacket, codec: RTCRtpCodecParameters, now: float) -> None:
        if packet.payload_type != self._decoder_type or self._decoder is None:
            self._decoder = make_decoder(codec, self._context.settings)
            self._decoder_type = packet.payload_type
            self._jitter_buffer = None  # its clock was the other codec's
        samples = self._decoder.samples_of_untrusted(packet.payload)
        if not samples:
            self._context.observer.count("audio_malformed")
            return
        if self._jitter_buffer is None:
            self._jitter_buffer = JitterBuffer(rtp_clock_rate(codec), self._before.counts)
            self._context.ticker.add(self._tick)
        self._hear(
            self._jitter_buffer.add(packet.sequence_number, packet.timestamp, samples, packet.payload, now)
        )

    def _tick(self, now: float) -> None:
        if self._jitter_buffer is None or self.on_pcm is None or not self._enabled:
            # Nobody listens: what passes meanwhile must not be made up later.
            self._jitter_buffer = None
            self._context.ticker.discard(self._tick)
        elif frames := self._jitter_buffer.poll(now):
            self._hear(frames)

    def _hear(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            pcm = self._decode(frame)
            if self.on_pcm is not None:
                try:
                    self.on_pcm(pcm)
                except Exception as error:  # noqa: BLE001  # the other frames are for it, too
                    self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        self._context.observer.count("listener_failed")
        if not self._has_failed:  # it may do so 50 times a second
            self._has_failed = True
            logger.error(
                "who listens to a call failed; from now on only counted (listener_failed)", exc_info=error
            )

    def _decode(self, frame: Frame) -> bytes:
        assert self._decoder is not None  # made before the first frame
        try:
            if frame.payload is not None:
                self._filled_in_a_row = 0
                return self._decoder.decode(frame.payload, frame.samples)
            if frame.following is not None:
                return self._decoder.recover(frame.following, frame.samples)
        except (OpusError, ValueError):
            self._context.observer.count("audio_malformed")
        self._filled_in_a_row += 1
        if self._filled_in_a_row > _FADED_FRAMES:
            return self._silence(frame.samples)
        return self._decoder.conceal(frame.samples)

    def _silence(self, samples: int) -> bytes:
        settings = self._context.settings
        rate = rtp_clock_rate(self._codecs[self._decoder_type])
        return bytes(samples * settings.sample_rate // rate * 2 * settings.channels)


class _Totals:
    """Of the streams before the present one; ``counts`` are of all."""

    def __init__(self) -> None:
        self.received = 0
        self.lost = 0
        self.reordered = 0
        self.counts = JitterCounts()

    def add(self, statistics: SourceStatistics) -> None:
        """A stream has ended."""
        self.received += statistics.received
        self.lost += statistics.lost
        self.reordered += statistics.reordered
