"""Our sender of a session's audio: encodes on the loop's thread, or passes packets on as they are."""

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiortc import MediaStreamTrack, clock
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.stats import RTCOutboundRtpStreamStats, RTCRemoteInboundRtpStreamStats, RTCStatsReport
from av import AudioFrame, AudioResampler
from av.packet import Packet

from transceiver.media.codecs import (
    Encoder,
    make_encoder,
    pcm_of,
    rtp_clock_rate,
    samples_of_payload,
    samples_per_packet,
)
from transceiver.media.context import MediaContext
from transceiver.media.settings import OPUS_RATES
from wire.rtcp import ReportBlock
from wire.rtp import RtpPacket, write_rtp_header

if TYPE_CHECKING:
    from transceiver.dtls import MuxDtlsTransport

logger = logging.getLogger(__name__)

# A talk spurt begins after a silence of so long (RFC 3551 section 4.1): its timestamp tells how long the silence was.
_SILENT_S = 0.2
# A track that is always ready would keep the loop for itself.
_FRAMES_IN_A_ROW = 5
_PACKETS_PER_S = 50
# What is passed on may be so late, by libsrtp's replay window as aiortc sets it, and miss so many (20 s).
_MAX_LATE, _MAX_LEAP = 1024, 1000


class _Forwarding(NamedTuple):
    """A source that is passed on: what to add to its numbers, and which of ours were skipped and may come late."""

    ssrc: int
    offset: int
    timestamp_offset: int
    skipped: set[int]

    def skip(self, first: int, following: int) -> None:
        """These may come late; those of long ago no more."""
        self.skipped.update(range(first, following))
        if len(self.skipped) > 2 * _MAX_LATE:
            self.skipped.intersection_update(range(following - _MAX_LATE, following))


class VoiceSender(RTCRtpSender):
    """In place of aiortc's. Plays its track, or what ``send_pcm``, ``send_encoded`` and ``forward`` are given."""

    def __init__(
        self, track_or_kind: MediaStreamTrack | str, transport: "MuxDtlsTransport", context: MediaContext
    ) -> None:
        self._codec: RTCRtpCodecParameters | None = None
        self._is_stopped = False
        self._playing: asyncio.Task[None] | None = None
        super().__init__(track_or_kind, transport)
        self.packets = 0
        self.octets = 0
        self.rtp_timestamp = 0
        self.sent_at = float("-inf")
        self._sent_ends_at = float("-inf")
        self.remote_report: ReportBlock | None = None
        self.round_trip_s: float | None = None
        self.bit_rate = 0.0  # between the last two reports, bit/s of payloads
        self._measured_at = context.clock()
        self._measured_octets = 0
        self._context = context
        self._payload_type = 0
        self._encoder: Encoder | None = None
        self._format: tuple[int, int] = (0, 0)
        self._pending, self._pending_at = b"", 0.0
        # aiortc begins in the lower half too: receivers guess the rollover counter (RFC 3711 section 3.3.1).
        self._next = secrets.randbelow(0x8000)  # sequence number, counted on over its 16 bits
        self._timestamp = secrets.randbelow(1 << 32)
        self._forwarding: _Forwarding | None = None
        self._resampler: AudioResampler | None = None
        self._resampled_format: tuple[str, str, int] | None = None

    # what aiortc calls

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """See the base class. Each description that is applied comes here: the codec may be another."""
        codec, before = parameters.codecs[0], self._codec
        if self._is_stopped or codec == before:
            return
        self._codec, self._payload_type = codec, codec.payloadType or 0
        self._encoder = self._forwarding = None
        if before is None:
            self.transport._register_rtp_sender(self, parameters)
            self._play_track()

    async def stop(self) -> None:
        """See the base class."""
        self._is_stopped = True
        self.transport._unregister_rtp_sender(self)
        was_started, self._encoder, self._codec = self._codec is not None, None, None
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)
        if was_started and self.track is not None:
            _stop_track(self.track)

    def replaceTrack(self, track: MediaStreamTrack | None) -> None:  # noqa: N802  # the base class's name
        """See the base class."""
        super().replaceTrack(track)
        if self._codec is not None:
            self._play_track()

    async def getStats(self) -> RTCStatsReport:  # noqa: N802  # the base class's name
        """See the base class."""
        common: dict[str, Any] = {
            "timestamp": clock.current_datetime(),
            "ssrc": self._ssrc,
            "kind": "audio",
            "transportId": self.transport._stats_id,
        }
        report = RTCStatsReport()
        report.add(
            RTCOutboundRtpStreamStats(
                **common,
                type="outbound-rtp",
                id=f"outbound-rtp_{id(self)}",
                packetsSent=self.packets,
                bytesSent=self.octets,
                trackId=str(id(self.track)),
            )
        )
        if (remote := self.remote_report) is not None:
            report.add(
                RTCRemoteInboundRtpStreamStats(
                    **common,
                    type="remote-inbound-rtp",
                    id=f"remote-inbound-rtp_{id(self)}",
                    packetsReceived=self.packets - remote.packets_lost,
                    packetsLost=remote.packets_lost,
                    jitter=remote.jitter,
                    roundTripTime=self.round_trip_s or 0.0,
                    fractionLost=remote.fraction_lost,
                )
            )
        report.update(self.transport._get_stats())
        return report

    # what is sent

    def send_pcm(
        self, pcm: bytes | bytearray | memoryview, sample_rate: int | None = None, channels: int | None = None
    ) -> None:
        """Encode and send PCM16, of any length; what does not fill 20 ms waits for more, but not beyond a silence.

        Rate and channels are the settings' by default, and may be any that Opus has. As all of a connection, it is called on
        the loop's thread.
        """
        if self._codec is None or not self._enabled:
            return
        settings = self._context.settings
        wanted = (sample_rate or settings.sample_rate, channels or settings.channels)
        if self._encoder is None or wanted != self._format:
            self._encoder = make_encoder(self._codec, *wanted, settings)
            self._encoder.try_hard(self._context.effort.complexity)
            self._format, self._pending = wanted, b""
            self._expect_loss()
        frame_bytes = self._format[0] // _PACKETS_PER_S * self._format[1] * 2
        if self._pending and self._context.clock() - self._pending_at < _SILENT_S:
            pcm = self._pending + bytes(pcm)
        for start in range(0, len(pcm) - frame_bytes + 1, frame_bytes):
            if payload := self._encoder.encode(bytes(pcm[start : start + frame_bytes])):
                self.send_encoded(payload)
        self._pending = bytes(pcm[len(pcm) - len(pcm) % frame_bytes :])
        if self._pending:
            self._pending_at = self._context.clock()

    def send_encoded(self, payload: bytes, samples: int | None = None) -> None:
        """Send a payload of the negotiated codec that lasts ``samples`` of its RTP clock; 20 ms by default."""
        codec = self._codec
        if codec is None or not self._enabled:
            return
        self._forwarding = None  # the next number is used now
        now = self._context.clock()
        ends_at = self._ends_at
        if is_spurt := now - ends_at >= _SILENT_S:
            self._skip_silence(now - ends_at, codec)
        if not self._send(self._next, self._timestamp, payload, now, marker=is_spurt):
            return
        samples = samples or samples_per_packet(codec)
        self._sent_ends_at = max(now, ends_at) + samples / rtp_clock_rate(codec)
        self._next += 1
        self._timestamp = (self._timestamp + samples) & 0xFFFF_FFFF

    def forward(self, packet: RtpPacket) -> None:
        """Send what came from a client, with our own numbers: gaps and reordering stay as they came.

        No number goes out twice, as SRTP's keystream is of the number (RFC 3711 section 9.1); nor does one that is so far
        from the last that libsrtp would take it for one of another round. A source that leaps begins anew.
        """
        codec = self._codec
        if codec is None or not self._enabled:
            self._forwarding = None
            return
        now = self._context.clock()
        forwarding = self._forwarding
        if forwarding is None or forwarding.ssrc != packet.ssrc:
            forwarding = self._forwarding = self._begin_forwarding(packet, now, codec)
        ahead = ((packet.sequence_number + forwarding.offset - self._next + 0x8000) & 0xFFFF) - 0x8000
        if not -_MAX_LATE <= ahead <= _MAX_LEAP:
            forwarding, ahead = self._begin_forwarding(packet, now, codec), 0
            self._forwarding = forwarding
        number = self._next + ahead
        if ahead < 0 and number not in forwarding.skipped:
            return  # it went out, or something else did under that number
        timestamp = (packet.timestamp + forwarding.timestamp_offset) & 0xFFFF_FFFF
        if not self._send(number, timestamp, packet.payload, now, marker=packet.marker):
            return
        if ahead < 0:
            forwarding.skipped.discard(number)
            return
        if ahead:
            forwarding.skip(self._next, number)
        self._next = number + 1
        self._timestamp = (timestamp + samples_per_packet(codec)) & 0xFFFF_FFFF

    def _begin_forwarding(self, packet: RtpPacket, now: float, codec: RTCRtpCodecParameters) -> _Forwarding:
        """Of a new source, or after something of our own."""
        silent_s = now - self._ends_at
        if silent_s >= _SILENT_S:
            self._skip_silence(silent_s, codec)
        return _Forwarding(
            packet.ssrc,
            self._next - packet.sequence_number,
            self._timestamp - packet.timestamp,
            set(),
        )

    def timestamp_at(self, now: float) -> int:
        """The RTP timestamp of this moment, as sender reports pair it with the time (RFC 3550 section 6.4.1)."""
        rate = rtp_clock_rate(self._codec) if self._codec is not None else 0
        return (self.rtp_timestamp + int((now - self.sent_at) * rate)) & 0xFFFF_FFFF

    def describe(self) -> dict[str, Any]:
        """What went to the client, and what it says of it, for ``sessions``."""
        report = self.remote_report
        rate = rtp_clock_rate(self._codec) if self._codec is not None else 1
        return {
            "packets": self.packets,
            "lost": report.packets_lost if report else 0,
            "loss": round(report.fraction_lost / 256, 4) if report else 0.0,
            "jitter_ms": round(report.jitter * 1000 / rate, 2) if report else 0.0,
            "bitrate_bps": round(self.bit_rate),
        }

    def measure(self, now: float) -> None:
        """Begin the next interval: of ``bit_rate``, and of how hard the encoder tries."""
        if self._encoder is not None:
            self._encoder.try_hard(self._context.effort.complexity)
        elapsed_s = now - self._measured_at
        if elapsed_s > 0:
            self.bit_rate = (self.octets - self._measured_octets) * 8 / elapsed_s
        self._measured_at, self._measured_octets = now, self.octets

    def note_report(self, report: ReportBlock) -> None:
        """The client tells how our packets arrive: what it lost, it gets redundancy for."""
        before = self.remote_report.fraction_lost if self.remote_report else 0
        self.remote_report = report
        if report.fraction_lost != before:
            self._expect_loss()

    def _expect_loss(self) -> None:
        if self._encoder is not None and self.remote_report is not None:
            self._encoder.expect_loss(-(-self.remote_report.fraction_lost * 100 // 256))

    def _send(self, number: int, timestamp: int, payload: bytes, now: float, *, marker: bool) -> bool:
        """Whether it went out: only then its number is used."""
        header = write_rtp_header(self._payload_type, number & 0xFFFF, timestamp, self._ssrc, marker=marker)
        if not self._dtls.send_rtp(header + payload):
            return False
        self.sent_at, self.rtp_timestamp = now, timestamp
        self.packets += 1
        self.octets += len(payload)
        return True

    @property
    def _dtls(self) -> "MuxDtlsTransport":
        return cast("MuxDtlsTransport", self.transport)

    @property
    def _ends_at(self) -> float:
        """When what was sent has been heard: speech may have been sent faster than it lasts."""
        return max(self._sent_ends_at, self.sent_at + 1 / _PACKETS_PER_S)

    def _skip_silence(self, silent_s: float, codec: RTCRtpCodecParameters) -> None:
        """Let the timestamp go on with the time, by whole packets."""
        if silent_s == float("inf"):
            return
        per_packet = samples_per_packet(codec)
        packets = round(silent_s * rtp_clock_rate(codec) / per_packet)
        self._timestamp = (self._timestamp + packets * per_packet) & 0xFFFF_FFFF

    # what a track plays

    def _play_track(self) -> None:
        """Play what is the track now, instead of what was."""
        if self._playing is not None:
            self._playing.cancel()
        track = cast("MediaStreamTrack | None", self.track)
        self._playing = None if track is None else asyncio.create_task(self._play(track))

    async def _play(self, track: MediaStreamTrack) -> None:
        in_a_row = 0
        try:
            while (data := cast("Any", await track.recv())) is not None:  # None: FastRTC's track at its end
                self._send_data(data)
                in_a_row = (in_a_row + 1) % _FRAMES_IN_A_ROW
                if not in_a_row:
                    await asyncio.sleep(0)
        except MediaStreamError:
            pass
        except Exception:  # an application's track may fail in any way; the call goes on without it
            logger.exception("a track failed, or gave what cannot be sent, and is played no more")
        _stop_track(track)
        if self.track is track:
            super().replaceTrack(None)

    def _send_data(self, data: Any) -> None:
        if self._codec is None or not self._enabled:
            return
        if isinstance(data, Packet):
            payload = bytes(data)
            self.send_encoded(payload, samples_of_payload(self._codec, payload))
            return
        frame: AudioFrame = data
        channels = len(frame.layout.channels)
        if frame.format.name != "s16" or frame.sample_rate not in OPUS_RATES or channels > 2:
            self._resample(frame, min(channels, 2))
            return
        self.send_pcm(pcm_of(frame), frame.sample_rate, channels)

    def _resample(self, frame: AudioFrame, channels: int) -> None:
        given = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or self._resampled_format != given:
            self._resampled_format = given
            self._resampler = AudioResampler(
                format="s16", layout="mono" if channels == 1 else "stereo", rate=OPUS_RATES[-1]
            )
        for resampled in self._resampler.resample(frame):
            self.send_pcm(pcm_of(resampled), OPUS_RATES[-1], channels)


def _stop_track(track: MediaStreamTrack) -> None:
    """What an application does at its end may fail; the call must end all the same."""
    try:
        track.stop()
    except Exception:
        logger.exception("a track could not be stopped")
