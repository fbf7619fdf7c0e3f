"""Opus by libopus, on the caller's thread: loss concealment, forward error correction and complexity are the caller's.

FFmpeg's wrapper, which PyAV gives, has neither PLC nor FEC, and threads and frames that cost more than the codec. PyAV
brings the library, though, so it is there wherever aiortc is; the system's is taken before it.
"""

import ctypes
import threading
from functools import cache
from pathlib import Path

import av

CLOCK_RATE = 48_000  # of RTP timestamps, whatever the rate inside (RFC 7587 section 4.1)
MAX_SAMPLES = 5_760  # 120 ms at the clock rate (RFC 6716 section 3.2.5)
# Above the largest frame that RFC 6716 section 3.2.1 allows.
_MAX_PACKET_BYTES = 1_500
_APPLICATION_VOIP = 2048
_GET_COMPLEXITY = 4011
_SET_BITRATE, _SET_COMPLEXITY, _SET_INBAND_FEC, _SET_PACKET_LOSS_PERC = 4002, 4010, 4012, 4014
# Frame sizes by the four high bits of the TOC byte, in samples at the clock rate (RFC 6716 section 3.1, table 2)
_SILK, _HYBRID, _CELT = (480, 960, 1920, 2880), (480, 960), (120, 240, 480, 960)
_FRAME_SAMPLES = tuple(
    _SILK[config & 3] if config < 12 else _HYBRID[config & 1] if config < 16 else _CELT[config & 3]
    for config in range(32)
)


class OpusError(Exception):
    """A packet that is no Opus, or a library that cannot be used."""


def samples_of_untrusted(packet: bytes) -> int:
    """How long a packet lasts, in samples at the clock rate; 0 if it is no Opus packet (RFC 6716 section 3.1)."""
    if not packet:
        return 0
    toc = packet[0]
    code = toc & 3
    count = 1 if code == 0 else 2 if code < 3 else packet[1] & 0x3F if len(packet) > 1 else 0
    samples = _FRAME_SAMPLES[toc >> 3] * count
    return samples if samples <= MAX_SAMPLES else 0


@cache
def _library() -> ctypes.CDLL:
    bundled = sorted((Path(av.__file__).parent.parent / "av.libs").glob("libopus*.so*"))
    for candidate in ("libopus.so.0", *map(str, bundled)):
        try:
            return _declare(ctypes.CDLL(candidate))
        except OSError:
            continue
    raise OpusError("libopus was not found: install libopus0 (Debian), opus (Fedora), or PyAV as a wheel")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    library.opus_encoder_create.restype = library.opus_decoder_create.restype = pointer
    library.opus_encoder_create.argtypes = [integer, integer, integer, ctypes.POINTER(integer)]
    library.opus_decoder_create.argtypes = [integer, integer, ctypes.POINTER(integer)]
    library.opus_encoder_destroy.argtypes = library.opus_decoder_destroy.argtypes = [pointer]
    library.opus_encode.argtypes = [pointer, text, integer, pointer, integer]
    library.opus_decode.argtypes = [pointer, text, integer, pointer, integer, integer]
    library.opus_encoder_ctl.argtypes = [pointer, integer]  # and a variable argument, which must be a c_int
    library.opus_get_version_string.restype = text
    return library


def opus_version() -> str:
    """The library's name and version. Raises OpusError if there is none."""
    return str(_library().opus_get_version_string().decode())


class _Buffers(threading.local):
    """Of all codecs of a thread: each copies its result out of them before another is called."""

    def __init__(self) -> None:
        packet = ctypes.create_string_buffer(_MAX_PACKET_BYTES)
        pcm = ctypes.create_string_buffer(MAX_SAMPLES * 2 * 2)
        self.packet_at, self.pcm_at = ctypes.addressof(packet), ctypes.addressof(pcm)
        self.packet, self.pcm = memoryview(packet).cast("B"), memoryview(pcm).cast("B")


_buffers = _Buffers()


class _Codec:
    """Belongs to the thread that made it: libopus has no locks, and ctypes lets other threads run meanwhile."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def _require_own_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise OpusError("a codec is used on the thread that made it; use loop.call_soon_threadsafe")


class OpusDecoder(_Codec):
    """Packets in, PCM16 out: little-endian, interleaved. Raises OpusError if libopus refuses the format."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        super().__init__()
        self._library = _library()
        self._frame_bytes = 2 * channels
        self._divisor = CLOCK_RATE // sample_rate
        error = ctypes.c_int()
        self._state = self._library.opus_decoder_create(sample_rate, channels, ctypes.byref(error))
        if error.value:
            raise OpusError(f"libopus takes no {sample_rate} Hz with {channels} channels ({error.value})")
        self._decode = self._library.opus_decode

    def decode(self, packet: bytes, samples: int) -> bytes:
        """A packet that lasts ``samples`` at the clock rate. Raises OpusError if it is malformed."""
        return self._run(packet, samples, 0)

    def recover(self, following: bytes, samples: int) -> bytes:
        """The lost packet before ``following``, from its redundancy where it has some (RFC 6716 section 2.1.7)."""
        return self._run(following, samples, 1)

    def conceal(self, samples: int) -> bytes:
        """What may have been in a lost packet, from what was before; after a while it fades."""
        return self._run(None, samples, 0)

    def _run(self, packet: bytes | None, samples: int, fec: int) -> bytes:
        self._require_own_thread()
        if samples > MAX_SAMPLES:
            raise OpusError(f"{samples} samples are more than a packet of Opus has")
        length = 0 if packet is None else len(packet)
        count = self._decode(self._state, packet, length, _buffers.pcm_at, samples // self._divisor, fec)
        if count < 0:
            raise OpusError(f"libopus cannot decode a packet of {length} bytes ({count})")
        return bytes(_buffers.pcm[: count * self._frame_bytes])

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_decoder_destroy(self._state)


class OpusEncoder(_Codec):
    """PCM16 in, packets out, for speech. Raises OpusError if libopus refuses the format."""

    def __init__(self, sample_rate: int, channels: int, *, complexity: int, bit_rate: int) -> None:
        super().__init__()
        self._library = _library()
        error = ctypes.c_int()
        self._state = self._library.opus_encoder_create(
            sample_rate, channels, _APPLICATION_VOIP, ctypes.byref(error)
        )
        if error.value:
            raise OpusError(f"libopus takes no {sample_rate} Hz with {channels} channels ({error.value})")
        self._frame_bytes = 2 * channels
        self._encode = self._library.opus_encode
        self.try_hard(complexity)
        self._set(_SET_BITRATE, bit_rate * channels)
        self._set(_SET_INBAND_FEC, 1)

    def encode(self, pcm: bytes) -> bytes:
        """One packet of one frame: 2.5, 5, 10, 20, 40 or 60 ms. Raises OpusError on another length."""
        self._require_own_thread()
        samples = len(pcm) // self._frame_bytes
        count = self._encode(self._state, pcm, samples, _buffers.packet_at, _MAX_PACKET_BYTES)
        if count < 0:
            raise OpusError(f"libopus cannot encode {samples} samples ({count})")
        return bytes(_buffers.packet[:count])

    def expect_loss(self, percent: int) -> None:
        """How much gets lost on the way: above 0, packets carry redundancy for the one before."""
        self._set(_SET_PACKET_LOSS_PERC, max(0, min(100, percent)))

    def try_hard(self, complexity: int) -> None:
        """From now on, 0 to 10; the decoder notices nothing but the sound."""
        self._set(_SET_COMPLEXITY, complexity)

    @property
    def complexity(self) -> int:
        """What it was told last."""
        value = ctypes.c_int()
        self._library.opus_encoder_ctl(self._state, _GET_COMPLEXITY, ctypes.byref(value))
        return value.value

    def _set(self, request: int, value: int) -> None:
        self._library.opus_encoder_ctl(self._state, request, ctypes.c_int(value))

    def __del__(self) -> None:
        if getattr(self, "_state", None):
            self._library.opus_encoder_destroy(self._state)
