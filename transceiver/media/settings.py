"""How sessions treat their audio."""

from dataclasses import dataclass
from enum import StrEnum

# https://www.rfc-editor.org/rfc/rfc6716#section-2.1.3: the rates that Opus has inside
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


class MediaPath(StrEnum):
    """Who receives and sends audio."""

    DIRECT = "direct"
    """Ours: where the datagram arrives, on the loop's thread."""
    AIORTC = "aiortc"
    """aiortc's own receiver and sender: a thread and several tasks a call."""


@dataclass(frozen=True, kw_only=True)
class AudioSettings:
    """Audio of every session of a hub.

    path: who receives and sends. sample_rate (Hz, one of Opus'), channels (1 or 2): of the decoded audio that
    applications get; what they send may have any. The defaults are what aiortc gives.
    complexity: of the Opus encoder at most, 0 to 10; 5 costs half of 10 and is hard to tell from it at speech's bit rates.
    adaptive: whether a busy process makes that less.
    bit_rate: of the encoder, for each channel, bit/s.
    """

    path: MediaPath = MediaPath.DIRECT
    sample_rate: int = 48_000
    channels: int = 2
    complexity: int = 5
    adaptive: bool = True
    bit_rate: int = 32_000

    def __post_init__(self) -> None:
        if self.sample_rate not in OPUS_RATES:
            raise ValueError(
                f"sample_rate is {self.sample_rate}, not one of {', '.join(map(str, OPUS_RATES))}"
            )
        if self.channels not in (1, 2):
            raise ValueError(f"channels is {self.channels}, not 1 or 2")
        if not 0 <= self.complexity <= 10:
            raise ValueError(f"complexity is {self.complexity}, not 0 to 10")
        if not 6_000 <= self.bit_rate <= 256_000:
            raise ValueError(f"bit_rate is {self.bit_rate}, not 6000 to 256000")


# What PCM16 backends of speech models take.
SPEECH = AudioSettings(sample_rate=24_000, channels=1)
