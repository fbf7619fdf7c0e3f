"""What packets on a link say of a call: how long it was without media, when it went on, and what was lost. Times in seconds."""

import bisect
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# RFC 3550 section 5.1: sequence numbers have 16 bits.
_NUMBERS = 1 << 16


class Rtp(NamedTuple):
    """A media packet as it passed a link; ``source``: the socket that sent it, host and port."""

    at: float
    ssrc: int
    number: int
    source: tuple[bytes, int] = (b"", 0)


def first_at(times: Sequence[float], since: float) -> float | None:
    """The first of these times, in order, that is not before ``since``."""
    index = bisect.bisect_left(times, since)
    return times[index] if index < len(times) else None


def longest_gap(times: Sequence[float], begin: float, end: float) -> float | None:
    """The longest time without a packet that has to do with the span: it ends in it, or begins in it and lasts until ``end``.

    Times are in order. None without a packet up to ``end``: there is nothing that was interrupted.
    """
    until = bisect.bisect_right(times, end)
    since = bisect.bisect_left(times, begin, hi=until)
    seen = times[max(0, since - 1) : until]
    if not seen:
        return None
    return max(later - earlier for earlier, later in zip(seen, [*seen[1:], end], strict=True))


def unwrapped(numbers: Iterable[int], near: int | None = None) -> list[int]:
    """Sequence numbers that go on beyond 65535, in the order of the packets; each is the nearest to the one before.

    ``near``: what the first one is near to; None takes it as it is.
    """
    found: list[int] = []
    last = near
    for number in numbers:
        if last is not None:
            number = last + (number - last + _NUMBERS // 2) % _NUMBERS - _NUMBERS // 2
        found.append(number)
        last = number
    return found


class Loss(NamedTuple):
    """Of a direction of a call."""

    sent: int = 0
    lost: int = 0

    def plus(self, other: "Loss") -> "Loss":
        """Both together."""
        return Loss(self.sent + other.sent, self.lost + other.lost)


def count_lost(sent: Sequence[Rtp], came: Sequence[Rtp], begin: float, end: float) -> Loss:
    """Media packets sent from ``begin`` to ``end``, and those that came at no time, by SSRC and sequence number.

    A packet that was sent twice and came once is not lost.
    """
    total = Loss()
    for ssrc in sorted({packet.ssrc for packet in sent}):
        of_stream = [packet for packet in sent if packet.ssrc == ssrc]
        numbers = unwrapped(packet.number for packet in of_stream)
        arrived = set(unwrapped((packet.number for packet in came if packet.ssrc == ssrc), near=numbers[0]))
        within = {
            number for number, packet in zip(numbers, of_stream, strict=True) if begin <= packet.at <= end
        }
        total = total.plus(Loss(len(within), len(within - arrived)))
    return total


class Spread(NamedTuple):
    """Of several figures."""

    figures: int
    median: float
    worst: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> "Spread | None":
        """None of nothing."""
        found = list(figures)
        return cls(len(found), statistics.median(found), max(found)) if found else None
