"""A made-up voice, which voice activity detectors take for speech, and its pitch, by which two callers can be told apart."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
Samples = NDArray[np.int16]

# The first three formants of four vowels
_VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480))
_VOWEL_S = 0.25
_FORMANT_WIDTH_HZ = 120
_HIGHEST_HZ = 3800
_PEAK = 12_000
# Of the voices here; the octave of the lowest is above the highest, so neither is taken for the other's overtone.
_LOWEST_PITCH_HZ, _HIGHEST_PITCH_HZ = 110, 215
_BLOCK_SAMPLES = RATE_HZ // 20
_LOUD = 300
_PITCH_TOLERANCE = 0.04


def phrase(pitch_hz: float) -> Samples:
    """A second of silence, a second of vowels, another second of silence."""
    times = np.arange(int(RATE_HZ * _VOWEL_S)) / RATE_HZ
    swell = np.sqrt(np.sin(np.pi * times / _VOWEL_S))
    vowels = []
    for formants in _VOWELS_HZ:
        vowel = np.zeros_like(times)
        for overtone in np.arange(pitch_hz, _HIGHEST_HZ, pitch_hz):
            gain = sum(1 / (1 + ((overtone - formant) / _FORMANT_WIDTH_HZ) ** 2) for formant in formants)
            vowel += gain / np.sqrt(overtone) * np.cos(2 * np.pi * overtone * times)
        vowels.append(vowel * swell)
    speech = np.concatenate(vowels)
    speech *= _PEAK / np.abs(speech).max()
    return np.concatenate([np.zeros(RATE_HZ), speech, np.zeros(RATE_HZ)]).astype(np.int16)


class Heard(NamedTuple):
    """Seconds of a recording: loud ones, and those of them that have the pitch that was asked for."""

    loud_s: float
    in_pitch_s: float


def listen_for(pitch_hz: float, recording: Samples) -> Heard:
    """How much of a recording is a voice of that pitch."""
    blocks = recording[: len(recording) // _BLOCK_SAMPLES * _BLOCK_SAMPLES].reshape(-1, _BLOCK_SAMPLES)
    loud = [block for block in blocks.astype(float) if np.sqrt(np.mean(np.square(block))) > _LOUD]
    in_pitch = [block for block in loud if abs(_pitch_of(block) / pitch_hz - 1) < _PITCH_TOLERANCE]
    block_s = _BLOCK_SAMPLES / RATE_HZ
    return Heard(len(loud) * block_s, len(in_pitch) * block_s)


def _pitch_of(block: NDArray[np.float64]) -> float:
    """By the lag at which the block is most like itself."""
    correlation = np.correlate(block, block, "full")[len(block) - 1 :]
    lags = np.arange(RATE_HZ // _HIGHEST_PITCH_HZ, RATE_HZ // _LOWEST_PITCH_HZ)
    likeness = correlation[lags] / (len(block) - lags)
    return float(RATE_HZ / lags[likeness.argmax()])
