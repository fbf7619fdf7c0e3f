"""What became of a call's packets: lost, late, doubled, and how much later the same voice came back. Times in ns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.recovery.traces import unwrapped
from bench.transceiver.speech import FRAME_S, FRAME_SAMPLES, Samples, decode

# Later than this beyond the call's best is late: what a client's jitter buffer hardly has.
LATE_NS = 100_000_000
FRAME_NS = round(FRAME_S * 1e9)
# A transceiver with a jitter buffer keeps some packets until more come; these are not lost.
HELD = 8
# Sound is compared at 8 kHz, second by second.
_DECIMATION, _SPAN = 6, 50
_ALIKE = 0.5


class Came(NamedTuple):
    """A packet of the echo."""

    at: int
    number: int
    payload: bytes


@dataclass
class Tally:
    """Of one call, or of several together."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    late: int = 0
    doubled: int = 0
    damaged: int = 0
    delays_ms: list[float] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Both together."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        """Without the single delays."""
        values = asdict(self)
        delays = values.pop("delays_ms")
        for name, quantile in (("delay_p50_ms", 0.5), ("delay_p99_ms", 0.99)):
            values[name] = round(float(np.quantile(delays, quantile)), 2) if delays else None
        return values


class Said(NamedTuple):
    """What a call sent: when each packet went out, and which frame of the speech was the first."""

    at: Sequence[int]
    first_frame: int
    frames: int

    def packet_of(self, frame: float, latest: float) -> float:
        """The packet that carried a frame, the last not after ``latest``: the speech repeats itself."""
        index = (frame - self.first_frame) % self.frames
        return index + self.frames * math.floor((latest - index) / self.frames)


def count_exact(
    said: Said, came: Sequence[Came], frame_of: Mapping[bytes, int], since: int, expected: int
) -> Tally:
    """Where payloads come back as they were sent. ``since``: the first packet that counts; ``expected``: how many were sent."""
    tally = Tally(sent=expected - since)
    seen: set[int] = set()
    delays: list[int] = []
    for packet in came:
        frame = frame_of.get(packet.payload)
        if frame is None:
            tally.damaged += 1
            continue
        index = round(said.packet_of(frame, len(said.at) - 1))
        if not since <= index < expected:
            continue
        if index in seen:
            tally.doubled += 1
            continue
        seen.add(index)
        delays.append(packet.at - said.at[index])
    tally.received = len(seen)
    tally.lost = tally.sent - tally.received
    tally.late = _late(delays)
    tally.delays_ms = [delay / 1e6 for delay in delays]
    return tally


def count_stream(said: Said, came: Sequence[Came], since: int) -> Tally:
    """Where the voice comes back encoded anew: gaps of the sequence numbers, and packets that are too few."""
    # A sender may go on by itself when nothing comes any more.
    begin, end = said.at[since], said.at[-1] + HELD * FRAME_NS
    counted = [packet for packet in came if begin <= packet.at <= end]
    tally = Tally(sent=len(said.at) - since)
    numbers = unwrapped(packet.number for packet in counted)
    different = set(numbers)
    tally.received, tally.doubled = len(different), len(numbers) - len(different)
    if not different:
        tally.lost = tally.sent
        return tally
    gaps = max(different) - min(different) + 1 - len(different)
    tally.lost = gaps + max(0, tally.sent - len(different) - gaps - HELD)
    transits = [packet.at - number * FRAME_NS for packet, number in zip(counted, numbers, strict=True)]
    tally.late = _late(transits)
    return tally


def delays_by_sound(said: Said, came: Sequence[Came], heard: Samples) -> list[float]:
    """Milliseconds from when a sound was sent to when the same sound came back, for each packet that can be told.

    ``heard`` is the whole speech as decoded. A codec's own look-ahead is part of the delay.
    """
    ordered = sorted(came)
    sound = decode([packet.payload for packet in ordered])
    speech = _coarse(heard)
    found: list[float] = []
    for begin in range(0, len(ordered) - _SPAN + 1, _SPAN):
        span = ordered[begin : begin + _SPAN]
        if [packet.number for packet in span] != [(span[0].number + i) & 0xFFFF for i in range(_SPAN)]:
            continue
        part = _coarse(sound[begin * FRAME_SAMPLES : (begin + _SPAN) * FRAME_SAMPLES])
        at = _find(part, speech)
        if at is None:
            continue
        # a packet more, as what was found is as coarse as the samples
        latest = (span[0].at - said.at[0]) / FRAME_NS + 1
        first = said.packet_of(at * _DECIMATION / FRAME_SAMPLES, latest)
        sent = np.interp(first + np.arange(_SPAN), np.arange(len(said.at)), said.at)
        found += [(packet.at - when) / 1e6 for packet, when in zip(span, sent, strict=True)]
    return found


def _late(transits: Sequence[int]) -> int:
    best = min(transits, default=0)
    return sum(transit - best > LATE_NS for transit in transits)


def _coarse(samples: Samples) -> Samples:
    whole = len(samples) // _DECIMATION * _DECIMATION
    return np.asarray(samples[:whole].reshape(-1, _DECIMATION).mean(axis=1))


def _find(part: Samples, speech: Samples) -> int | None:
    """Where in the speech, which goes on at its beginning, a part is; None where nothing is alike."""
    if len(part) != _SPAN * FRAME_SAMPLES // _DECIMATION:
        return None
    spectrum = np.fft.rfft(speech) * np.conj(np.fft.rfft(part, len(speech)))
    alike = np.fft.irfft(spectrum, len(speech))
    at = int(alike.argmax())
    there = np.take(speech, range(at, at + len(part)), mode="wrap")
    size = float(np.linalg.norm(there) * np.linalg.norm(part))
    return at if size and alike[at] / size >= _ALIKE else None
