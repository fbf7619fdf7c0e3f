"""What the simulated callers say: a synthetic voice, made and encoded once."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext

RATE, FRAME_SAMPLES = 48_000, 960
FRAME_S = FRAME_SAMPLES / RATE
FRAMES = 500
# Chromium's for one voice.
_BITS_PER_S = 32_000
_FORMANTS_HZ = np.array([[700, 1220, 2600], [390, 2000, 2550], [490, 1350, 1690], [300, 870, 2240]])
_SYLLABLE_S, _HARMONICS = 0.18, 24

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Speech:
    """Opus frames of 20 ms, no two alike, and what a decoder makes of them (mono, -1 to 1)."""

    frames: tuple[bytes, ...]
    heard: Samples


def synthesize(frames: int, seed: int = 1) -> Samples:
    """A voice that never says the same twice: a gliding pitch under changing formants, syllables, breath."""
    chance = np.random.default_rng(seed)
    count = frames * FRAME_SAMPLES
    times = np.arange(count) / RATE
    marks = np.arange(0, times[-1] + 2 * _SYLLABLE_S, _SYLLABLE_S)
    pitch = np.interp(times, marks, chance.uniform(90, 220, len(marks)))
    loudness = np.interp(times, marks, chance.choice([0.15, 0.6, 1.0], len(marks)))
    vowels = _FORMANTS_HZ[chance.integers(len(_FORMANTS_HZ), size=len(marks))]
    formants = [np.interp(times, marks, vowels[:, i]) for i in range(vowels.shape[1])]
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros(count)
    for harmonic in range(1, _HARMONICS + 1):
        gain = sum(np.exp(-(((harmonic * pitch - formant) / 150) ** 2)) for formant in formants)
        voice += (gain + 0.1 / harmonic) * np.sin(harmonic * phase)
    voice = voice * loudness + 0.02 * chance.standard_normal(count)
    return np.asarray(0.5 * voice / np.abs(voice).max())


def make_speech(frames: int = FRAMES) -> Speech:
    """Speech of so many frames, which may be said again from the beginning."""
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, AudioCodecContext)
    encoder.sample_rate, encoder.bit_rate = RATE, _BITS_PER_S
    encoder.layout, encoder.format = "mono", av.AudioFormat("s16")
    encoder.time_base = Fraction(1, RATE)
    encoder.options = {"application": "voip", "frame_duration": "20"}
    samples = (synthesize(frames) * 32767).astype(np.int16)
    packets = []
    for index in range(frames):
        part = samples[None, index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, index * FRAME_SAMPLES
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    made = tuple(bytes(packet) for packet in packets)[:frames]
    assert len(set(made)) == frames, "an encoder repeated a frame of a voice that does not repeat itself"
    return Speech(made, decode(made))


def decode(frames: tuple[bytes, ...] | list[bytes]) -> Samples:
    """Mono samples of Opus frames."""
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, AudioCodecContext)
    decoder.sample_rate, decoder.layout, decoder.format = RATE, "mono", av.AudioFormat("s16")
    parts = []
    for data in frames:
        for frame in decoder.decode(av.Packet(data)):
            samples = frame.to_ndarray().astype(np.float64) / 32768
            channels = frame.layout.nb_channels
            planar = samples if frame.format.is_planar else samples.reshape(-1, channels).T
            parts.append(planar.mean(axis=0))
    return np.concatenate(parts) if parts else np.zeros(0)
