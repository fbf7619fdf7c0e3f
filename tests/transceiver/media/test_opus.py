"""libopus by ctypes, the system's and PyAV's: round trips, concealment, redundancy, and bytes that are no Opus."""

import ctypes
import gc
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from transceiver.media import opus
from transceiver.media.opus import OpusDecoder, OpusEncoder, OpusError, samples_of_untrusted
from transceiver.media.settings import OPUS_RATES

_SAMPLES = 960
_BUNDLED = sorted((Path(av.__file__).parent.parent / "av.libs").glob("libopus*.so*"))


def _system_has_opus() -> bool:
    try:
        ctypes.CDLL("libopus.so.0")
    except OSError:
        return False
    return True


_LIBRARIES = [
    pytest.param(
        True, marks=pytest.mark.skipif(not _system_has_opus(), reason="no libopus.so.0"), id="system"
    ),
    pytest.param(False, marks=pytest.mark.skipif(not _BUNDLED, reason="PyAV is no wheel"), id="PyAV"),
]


@pytest.fixture(params=_LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """All codecs of the test are of this one."""
    load = ctypes.CDLL

    def load_the_one(name: str) -> ctypes.CDLL:
        if ("/" in name) == request.param:
            raise OSError(f"{name} is not wanted")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", load_the_one)
    opus._library.cache_clear()
    yield opus._library()
    opus._library.cache_clear()


def tone(sample_rate: int, channels: int, seconds: float, hz: float = 440) -> NDArray[np.int16]:
    """A sine; each channel has its own level."""
    at = np.arange(int(sample_rate * seconds)) / sample_rate
    wave = np.sin(2 * np.pi * hz * at) * 8000
    return np.stack([wave / (1 + channel) for channel in range(channels)], axis=1).astype(np.int16)


def speech_like(seconds: float) -> NDArray[np.float64]:
    """Harmonics of a gliding pitch at 48 kHz, voiced and unvoiced in turns: what SILK takes for speech."""
    at = np.arange(int(48_000 * seconds)) / 48_000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 1.3 * at)) / 48_000
    voiced = sum(np.sin(n * phase) / n for n in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 3 * at) + 0.7, 0, 1)
    noise = np.random.default_rng(1).normal(size=at.size) * 0.02
    return np.asarray((voiced * syllables + noise) * 4000)


def snr_db(original: NDArray[np.float64], heard: NDArray[np.float64], longest_delay: int) -> float:
    """Of the delay that fits best."""
    length = len(original) - longest_delay
    wanted = original[:length]
    errors = (np.mean((heard[d : d + length] - wanted) ** 2) for d in range(longest_delay))
    return 10 * math.log10(float(np.mean(wanted**2)) / float(min(errors)))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", OPUS_RATES)
def test_tone_comes_back(library: ctypes.CDLL, sample_rate: int, channels: int) -> None:
    encoder = OpusEncoder(sample_rate, channels, complexity=5, bit_rate=64_000)
    decoder = OpusDecoder(sample_rate, channels)
    wave = tone(sample_rate, channels, 1)
    frame = sample_rate // 50
    packets = [encoder.encode(wave[at : at + frame].tobytes()) for at in range(0, len(wave), frame)]
    assert all(samples_of_untrusted(packet) == _SAMPLES for packet in packets)
    pcm = b"".join(decoder.decode(packet, _SAMPLES) for packet in packets)
    heard = np.frombuffer(pcm, np.int16).reshape(-1, channels)
    assert heard.shape == wave.shape
    for channel in range(channels):
        skip = sample_rate // 5
        original, decoded = (a[skip:, channel].astype(np.float64) for a in (wave, heard))
        assert snr_db(original, decoded, sample_rate // 50) > 15


@pytest.mark.parametrize("sample_rate", OPUS_RATES)
@pytest.mark.parametrize("samples", [120, 240, 480, 960, 1920, 2880, 5760])
def test_concealment_lasts_what_was_lost(library: ctypes.CDLL, sample_rate: int, samples: int) -> None:
    decoder = OpusDecoder(sample_rate, 1)
    assert len(decoder.conceal(samples)) == samples * sample_rate // 48_000 * 2


def test_concealment_goes_on_with_what_was_heard_and_fades(library: ctypes.CDLL) -> None:
    encoder = OpusEncoder(24_000, 1, complexity=5, bit_rate=32_000)
    decoder = OpusDecoder(24_000, 1)
    wave = tone(24_000, 1, 1)
    for at in range(0, len(wave), 480):
        decoder.decode(encoder.encode(wave[at : at + 480].tobytes()), _SAMPLES)
    loudness = [np.abs(np.frombuffer(decoder.conceal(_SAMPLES), np.int16)).max() for _ in range(30)]
    assert loudness[0] > 4000
    assert loudness[-1] < loudness[0] / 4


def test_redundancy_brings_back_what_was_lost(library: ctypes.CDLL) -> None:
    encoder = OpusEncoder(48_000, 1, complexity=5, bit_rate=24_000)
    encoder.expect_loss(20)
    speech = speech_like(3).astype(np.int16)
    packets = [encoder.encode(speech[at : at + 960].tobytes()) for at in range(0, len(speech), 960)]
    everything, recovering, concealing = (OpusDecoder(48_000, 1) for _ in range(3))
    errors = {"recovered": 0.0, "concealed": 0.0}
    for index, packet in enumerate(packets):
        complete = np.frombuffer(everything.decode(packet, _SAMPLES), np.int16).astype(np.float64)
        if index % 10 == 5:
            recovered = recovering.recover(packets[index + 1], _SAMPLES)
            concealed = concealing.conceal(_SAMPLES)
            for name, pcm in (("recovered", recovered), ("concealed", concealed)):
                assert len(pcm) == 2 * _SAMPLES
                errors[name] += float(np.mean((np.frombuffer(pcm, np.int16) - complete) ** 2))
        else:
            recovering.decode(packet, _SAMPLES)
            concealing.decode(packet, _SAMPLES)
    assert errors["recovered"] < errors["concealed"] / 2


def test_redundancy_costs_bits_only_where_loss_is_expected(library: ctypes.CDLL) -> None:
    speech = speech_like(2).astype(np.int16)
    decoder = OpusDecoder(48_000, 1)
    differs = []
    for percent in (0, 20, 1000, -5):
        encoder = OpusEncoder(48_000, 1, complexity=5, bit_rate=24_000)
        encoder.expect_loss(percent)
        packets = [encoder.encode(speech[at : at + 960].tobytes()) for at in range(0, len(speech), 960)]
        for packet in packets[:50]:
            decoder.decode(packet, _SAMPLES)
        fresh = OpusDecoder(48_000, 1)
        pcm = np.frombuffer(b"".join(fresh.recover(p, _SAMPLES) for p in packets), np.int16)
        differs.append(bool(np.abs(pcm).max() > 500))
    assert differs == [False, True, True, False]


# bytes that are no Opus


@given(st.binary(max_size=80))
@example(b"")
@example(b"\x03")
@example(b"\x03\x00")
@example(b"\xff\x3f")
@example(b"\xff\x30" + bytes(60))
def test_length_of_anything_is_what_libopus_says(packet: bytes) -> None:
    library = opus._library()
    theirs = library.opus_packet_get_nb_samples(packet, len(packet), 48_000) if packet else 0
    assert samples_of_untrusted(packet) == max(0, theirs)


def test_length_by_each_toc_byte_is_what_libopus_says(library: ctypes.CDLL) -> None:
    for toc in range(256):
        for second in (0, 1, 2, 5, 6, 12, 24, 48, 63, 0x81, 0xFF):
            packet = bytes((toc, second, 0, 0))
            theirs = library.opus_packet_get_nb_samples(packet, len(packet), 48_000)
            assert samples_of_untrusted(packet) == max(0, theirs), packet.hex()


def test_bytes_that_are_no_opus_are_decoded_or_refused(library: ctypes.CDLL) -> None:
    chance = random.Random(7)
    decoders = {rate: OpusDecoder(rate, 1 + index % 2) for index, rate in enumerate(OPUS_RATES)}
    encoder = OpusEncoder(48_000, 2, complexity=0, bit_rate=64_000)
    good = encoder.encode(tone(48_000, 2, 0.02).tobytes())
    outcomes = {"decoded": 0, "refused": 0, "no packet": 0}
    for turn in range(6_000):
        if turn % 3:
            packet = chance.randbytes(chance.randrange(0, 60))
        else:
            damaged = bytearray(good[: chance.randrange(1, len(good) + 1)])
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            packet = bytes(damaged)
        samples = samples_of_untrusted(packet)
        if not samples:
            outcomes["no packet"] += 1
            continue
        rate = chance.choice(OPUS_RATES)
        decoder = decoders[rate]
        lost = chance.choice((120, 480, 960, 2_880, 5_760))
        for run, lasts in ((decoder.decode, samples), (decoder.recover, lost)):
            try:
                pcm = run(packet, lasts)
            except OpusError:
                outcomes["refused"] += 1
            else:
                outcomes["decoded"] += 1
                assert len(pcm) == lasts * rate // 48_000 * decoder._frame_bytes
        assert len(decoder.conceal(samples)) == samples * rate // 48_000 * decoder._frame_bytes
    assert min(outcomes.values()) > 100


def test_formats_that_opus_has_not_are_refused(library: ctypes.CDLL) -> None:
    for sample_rate, channels in ((44_100, 1), (48_000, 3), (48_000, 0)):
        with pytest.raises(OpusError, match=f"{sample_rate} Hz with {channels} channels"):
            OpusEncoder(sample_rate, channels, complexity=5, bit_rate=32_000)
        with pytest.raises(OpusError, match=f"{sample_rate} Hz with {channels} channels"):
            OpusDecoder(sample_rate, channels)
    encoder = OpusEncoder(48_000, 1, complexity=5, bit_rate=32_000)
    with pytest.raises(OpusError, match="100 samples"):
        encoder.encode(bytes(200))


def test_no_more_is_written_than_the_buffer_holds(library: ctypes.CDLL) -> None:
    decoder = OpusDecoder(48_000, 2)
    for samples in (5_880, 1_000_000):
        with pytest.raises(OpusError, match=f"{samples} samples"):
            decoder.conceal(samples)
    assert len(decoder.conceal(5_760)) == 5_760 * 4


def test_machine_without_libopus_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    opus._library.cache_clear()
    try:
        with pytest.raises(OpusError, match="install libopus0"):
            OpusDecoder(48_000, 1)
    finally:
        monkeypatch.undo()
        opus._library.cache_clear()


def test_version_is_told(library: ctypes.CDLL) -> None:
    assert opus.opus_version().startswith("libopus ")


def test_codecs_that_are_gone_hold_no_memory(library: ctypes.CDLL) -> None:
    """An encoder has 25 KB and a decoder 18 KB or more: a thousand of each would be seen."""

    def make_thousand() -> None:
        for _ in range(1_000):
            OpusEncoder(48_000, 2, complexity=5, bit_rate=32_000)
            OpusDecoder(48_000, 2)

    make_thousand()
    gc.collect()
    before = psutil.Process().memory_info().rss
    make_thousand()
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 10_000_000


def test_codec_is_refused_on_another_thread() -> None:
    """libopus has no locks, and a thread that runs meanwhile would hear another call."""
    encoder, decoder = OpusEncoder(48_000, 1, complexity=0, bit_rate=32_000), OpusDecoder(48_000, 1)
    packet = encoder.encode(bytes(1_920))
    with ThreadPoolExecutor(1) as pool:
        for used in (lambda: encoder.encode(bytes(1_920)), lambda: decoder.decode(packet, 960)):
            with pytest.raises(OpusError, match="call_soon_threadsafe"):
                pool.submit(used).result()
