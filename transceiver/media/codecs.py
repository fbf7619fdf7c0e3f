"""A negotiated audio codec as bytes in, bytes out: Opus by libopus; G.722 and G.711 by aiortc, for old clients."""

from fractions import Fraction
from functools import cache
from typing import Protocol

from aiortc.codecs import get_decoder, get_encoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import AudioFrame, AudioResampler

from transceiver.media.opus import CLOCK_RATE, OpusDecoder, OpusEncoder, samples_of_untrusted
from transceiver.media.settings import AudioSettings

_FRAMES_PER_S = 50


class Decoder(Protocol):
    """Packets in, PCM16 out; ``samples`` are of the codec's RTP clock."""

    def samples_of_untrusted(self, packet: bytes) -> int:
        """How long a packet lasts; 0 if it is none."""
        ...

    def decode(self, packet: bytes, samples: int) -> bytes:
        """Raises ValueError or OpusError if the packet is malformed."""
        ...

    def recover(self, following: bytes, samples: int) -> bytes:
        """The lost packet before ``following``."""
        ...

    def conceal(self, samples: int) -> bytes:
        """Something in place of a lost packet."""
        ...


class Encoder(Protocol):
    """PCM16 of 20 ms in, a packet out."""

    def encode(self, pcm: bytes) -> bytes:
        """One packet; empty while a resampler still fills."""
        ...

    def expect_loss(self, percent: int) -> None:
        """How much gets lost on the way."""
        ...

    def try_hard(self, complexity: int) -> None:
        """How much CPU time fidelity may cost, 0 to 10."""
        ...


class _OpusDecoder(OpusDecoder):
    def samples_of_untrusted(self, packet: bytes) -> int:
        return samples_of_untrusted(packet)


class _PlainDecoder:
    """Codecs of 64 kbit/s that know no frames: a byte is a sample of the RTP clock (RFC 3551 section 4.5)."""

    def __init__(self, codec: RTCRtpCodecParameters, settings: AudioSettings) -> None:
        self._decoder = get_decoder(codec)
        self._rate_ratio = settings.sample_rate / codec.clockRate
        self._sample_bytes = 2 * settings.channels
        self._resampler = AudioResampler(
            format="s16", layout="mono" if settings.channels == 1 else "stereo", rate=settings.sample_rate
        )
        self._timestamp = 0

    def samples_of_untrusted(self, packet: bytes) -> int:
        return len(packet)

    def decode(self, packet: bytes, samples: int) -> bytes:
        frames = self._decoder.decode(JitterFrame(packet, self._timestamp))
        self._timestamp += samples
        resampled = [out for frame in frames for out in self._resampler.resample(frame)]  # type: ignore[arg-type]
        return b"".join(pcm_of(frame) for frame in resampled)

    def recover(self, following: bytes, samples: int) -> bytes:
        return self.conceal(samples)

    def conceal(self, samples: int) -> bytes:
        return bytes(int(samples * self._rate_ratio) * self._sample_bytes)


class _PlainEncoder:
    def __init__(self, codec: RTCRtpCodecParameters, sample_rate: int, channels: int) -> None:
        self._encoder = get_encoder(codec)
        self._sample_rate = sample_rate
        self._layout = "mono" if channels == 1 else "stereo"
        self._frame_bytes = 2 * channels
        self._pts = 0

    def encode(self, pcm: bytes) -> bytes:
        frame = frame_of(pcm, self._sample_rate, self._layout, self._pts)
        self._pts += frame.samples
        return b"".join(self._encoder.encode(frame)[0])

    def expect_loss(self, percent: int) -> None:
        pass

    def try_hard(self, complexity: int) -> None:
        pass


def make_decoder(codec: RTCRtpCodecParameters, settings: AudioSettings) -> Decoder:
    """A decoder to the settings' rate and channels. Raises OpusError without libopus."""
    if codec.name.lower() == "opus":
        return _OpusDecoder(settings.sample_rate, settings.channels)
    return _PlainDecoder(codec, settings)


def make_encoder(
    codec: RTCRtpCodecParameters, sample_rate: int, channels: int, settings: AudioSettings
) -> Encoder:
    """An encoder of such PCM16. Raises OpusError without libopus."""
    if codec.name.lower() == "opus":
        return OpusEncoder(sample_rate, channels, complexity=settings.complexity, bit_rate=settings.bit_rate)
    return _PlainEncoder(codec, sample_rate, channels)


def rtp_clock_rate(codec: RTCRtpCodecParameters) -> int:
    """Of its timestamps, Hz."""
    return CLOCK_RATE if codec.name.lower() == "opus" else codec.clockRate


def samples_per_packet(codec: RTCRtpCodecParameters) -> int:
    """What 20 ms are on its RTP clock."""
    return rtp_clock_rate(codec) // _FRAMES_PER_S


def samples_of_payload(codec: RTCRtpCodecParameters, payload: bytes) -> int:
    """How long a payload lasts on the codec's RTP clock; 0 if it is none."""
    return samples_of_untrusted(payload) if codec.name.lower() == "opus" else len(payload)


def pcm_of(frame: AudioFrame) -> bytes:
    """The samples of a packed s16 frame, without the padding behind them."""
    return bytes(frame.planes[0])[: frame.samples * 2 * len(frame.layout.channels)]


def frame_of(pcm: bytes, sample_rate: int, layout: str, pts: int) -> AudioFrame:
    """A packed s16 frame; ``pts`` counts samples."""
    samples = len(pcm) // (2 if layout == "mono" else 4)
    frame = AudioFrame(format="s16", layout=layout, samples=samples)
    plane = frame.planes[0]
    plane.update(pcm + bytes(plane.buffer_size - len(pcm)))
    frame.sample_rate = sample_rate
    frame.pts = pts
    frame.time_base = _time_base(sample_rate)
    return frame


_time_base = cache(lambda sample_rate: Fraction(1, sample_rate))
