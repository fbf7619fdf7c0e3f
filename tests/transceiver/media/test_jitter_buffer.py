"""The jitter buffer: each rule of its docstring, and what holds of every network."""

import itertools
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media.jitter_buffer import Frame, JitterBuffer

_RATE = 48_000
_SAMPLES = 960
_TICK_MS = 20


class In(NamedTuple):
    """A packet that comes ``at_ms``; its timestamp is that of its number unless told; ``dtx``: of one byte."""

    at_ms: float
    number: int
    timestamp: int | None = None
    dtx: bool = False


def payload_of(number: int, *, dtx: bool = False) -> bytes:
    """Tells which packet it is."""
    return bytes((number & 0xFF,)) if dtx else b"packet %d" % (number & 0xFFFF)


@dataclass
class Listener:
    """What is heard of a buffer that is polled every 20 ms, beginning 1 ms after its first packet.

    ``heard`` names frames: a number, "?" for one made up, "?5" for one from the redundancy of 5, "." for a pause.
    """

    buffer: JitterBuffer = field(default_factory=lambda: JitterBuffer(_RATE))
    heard: list[int | str] = field(default_factory=list)
    samples: int = 0
    most_held: int = 0
    waits_s: list[float] = field(default_factory=list)

    def play(self, arrivals: list[In], until_ms: float) -> "Listener":
        """Packets and polls, each at its time."""
        at_poll_ms = arrivals[0].at_ms + 1
        for arrival in sorted(arrivals, key=lambda arrival: arrival.at_ms):
            while at_poll_ms <= arrival.at_ms:
                self.hear(self.buffer.poll(at_poll_ms / 1000))
                at_poll_ms += _TICK_MS
            self.take(arrival)
        while at_poll_ms <= until_ms:
            self.hear(self.buffer.poll(at_poll_ms / 1000))
            at_poll_ms += _TICK_MS
        return self

    def take(self, arrival: In) -> None:
        """One packet."""
        number, timestamp = arrival.number, arrival.timestamp
        at = (number * _SAMPLES if timestamp is None else timestamp) & 0xFFFF_FFFF
        payload = payload_of(number, dtx=arrival.dtx)
        self.hear(self.buffer.add(number & 0xFFFF, at, _SAMPLES, payload, arrival.at_ms / 1000))

    def hear(self, frames: list[Frame]) -> None:
        """Note what came out."""
        for frame in frames:
            self.samples += frame.samples
            self.heard.append(_name(frame))
        self.most_held = max(self.most_held, len(self.buffer._held))
        self.waits_s.append(self.buffer.wait_s)


def _number(payload: bytes) -> int:
    return payload[0] if len(payload) == 1 else int(payload.split()[1])


def _name(frame: Frame) -> int | str:
    if frame.payload is not None:
        return _number(frame.payload)
    if frame.is_pause:
        return "."
    return "?" if frame.following is None else f"?{_number(frame.following)}"


def steady(first: int, last: int, *, at_ms: float = 0) -> list[In]:
    """Packets that come on time, 20 ms apart; ``at_ms`` is when the first does."""
    return [In(at_ms + (number - first) * 20, number) for number in range(first, last + 1)]


_ROWS: list[tuple[str, list[In], float, list[int | str]]] = [
    ("1: in order", steady(1, 4), 60, [1, 2, 3, 4]),
    ("1: a burst", [In(0, 1), In(0, 2), In(0, 3)], 0, [1, 2, 3]),
    ("1: the numbers wrap", steady(65_534, 65_538), 80, [65_534, 65_535, 0, 1, 2]),
    ("2: two change places", [In(0, 1), In(20, 3), In(25, 2), In(60, 4)], 60, [1, 2, 3, 4]),
    ("2: one is waited for", [In(0, 1), In(30, 3)], 50, [1]),
    ("2: and made up after 40 ms", [In(0, 1), In(30, 3)], 90, [1, "?3", 3]),
    ("2: two are lost", [In(0, 1), In(60, 4)], 120, [1, "?", "?4", 4]),
    ("2: over the wrap", [In(0, 65_535), In(40, 65_537)], 100, [65_535, "?1", 1]),
    ("2: at most ten of one gap", [In(0, 1), In(10, 40)], 80, [1, *["?"] * 9, "?40", 40]),
    (
        "2: gaps are as old as what is behind them",
        [In(0, 1), In(1, 3), In(2, 5), In(3, 7)],
        61,
        [1, "?3", 3, "?5", 5, "?7", 7],
    ),
    ("3: late", [In(0, 1), In(20, 3), In(70, 2)], 90, [1, "?3", 3]),
    ("3: twice", [In(0, 1), In(1, 1), In(20, 3), In(21, 3), In(22, 2), In(23, 2)], 30, [1, 2, 3]),
    ("3: one before the first", [In(0, 2), In(1, 1), In(20, 3)], 30, [2, 3]),
    (
        "3: a second late, between others",
        [*steady(1, 100), In(1_990, 39), In(1_995, 40)],
        1_999,
        [*range(1, 101)],
    ),
    ("4: nothing for 180 ms", [In(0, 1)], 195, [1]),
    ("4: nothing for 200 ms", [In(0, 1)], 201, [1, *"." * 9]),
    ("4: nothing for 300 ms", [In(0, 1)], 301, [1, *"." * 14]),
    ("4: an announced pause", [In(0, 1, dtx=True)], 101, [1, *"." * 4]),
    ("5: held up", [In(0, 1), In(300, 2), In(300, 3)], 300, [1, *"." * 13, 2, 3]),
    ("5: lost meanwhile", [In(0, 1), In(300, 16)], 300, [1, *"." * 13, 16]),
    ("5: the rest of what was lost", [In(0, 1), In(205, 13)], 205, [1, *"." * 9, "?13", 13]),
    ("5: the sender paused", [In(0, 1, dtx=True), In(400, 2, 21 * _SAMPLES)], 400, [1, *"." * 19, 2]),
    ("5: the sender paused, unpolled", [In(0, 1), In(0, 2, 6 * _SAMPLES)], 0, [1, *"." * 4, 2]),
    (
        "5: the sender paused, and one was lost",
        [In(0, 1), In(5, 3, 7 * _SAMPLES)],
        61,
        [1, "?3", *"." * 4, 3],
    ),
    ("5: likewise, and it was heard", [In(0, 1), In(300, 3, 17 * _SAMPLES)], 300, [1, *"." * 15, 3]),
    ("5: timestamps wrap", [In(0, 1, 2**32 - _SAMPLES), In(0, 2, 2 * _SAMPLES)], 0, [1, ".", ".", 2]),
    ("6: numbers", [In(0, 1), In(20, 1000), In(40, 1001)], 60, [1, 1000, 1001]),
    ("6: numbers, with something held", [In(0, 1), In(5, 3), In(20, 1000)], 30, [1, "?3", 3, 1000]),
    ("6: back by more than SRTP lets through", [In(0, 5000), In(20, 3000)], 60, [5000, 3000]),
    ("6: timestamps", [In(0, 1), In(20, 2, 20 * _RATE), In(40, 3, 20 * _RATE + _SAMPLES)], 60, [1, 2, 3]),
    ("6: timestamps go back", [In(0, 1), In(20, 2, 0), In(40, 3, _SAMPLES)], 60, [1, 2, 3]),
]


@pytest.mark.parametrize(
    ("arrivals", "until_ms", "heard"), [row[1:] for row in _ROWS], ids=[row[0] for row in _ROWS]
)
def test_rule(arrivals: list[In], until_ms: float, heard: list[int | str]) -> None:
    assert Listener().play(arrivals, until_ms).heard == heard


def test_every_outcome_is_counted_once() -> None:
    arrivals = [In(0, 2), In(1, 1), In(2, 2), In(20, 4), In(80, 3), In(82, 3), In(90, 5), In(100, 900)]
    counts = Listener().play(arrivals, 340).buffer.counts
    assert (counts.concealed, counts.late, counts.duplicates, counts.resyncs) == (1, 2, 2, 1)
    assert counts.filled == 10


def test_wait_follows_what_reordering_takes() -> None:
    listener = Listener().play([In(0, 1), In(20, 3), In(100, 2)], 100)
    assert listener.buffer.wait_s == pytest.approx(0.1)  # 80 ms late, and a quarter more
    listener.play([*steady(4, 9, at_ms=120), In(260, 11), In(345, 10)], 350)
    assert listener.heard[-2:] == [10, 11]


def test_wait_shrinks_when_it_is_for_nothing() -> None:
    lossy = [arrival for arrival in steady(1, 1000) if arrival.number % 7]
    listener = Listener().play(lossy, 20_000)
    assert listener.buffer.wait_s == 0.02
    assert max(listener.waits_s) == 0.04


def test_packets_behind_a_second_gap_wait_no_longer_than_others() -> None:
    """Every fourth packet is lost, and once one was 200 ms late: the delay must not add up from gap to gap."""
    arrivals = [arrival for arrival in steady(1, 500) if arrival.number % 4]
    listener = Listener().play([*arrivals, In(280, 4)], 10_100)
    assert max(listener.waits_s) == 0.2
    assert listener.most_held <= 10


# every network


class Network:
    """What one sends and what arrives, in order of arrival: loss, reordering, duplicates, stalls and pauses, by ``seed``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        chance = random.Random(seed)
        loss, late, twice, dtx_odds = (chance.choice((0, 0.02, 0.2)) for _ in range(4))
        self.first = chance.randrange(65_536)
        self.origin = chance.randrange(2**32)
        self.sent: dict[int, In] = {}
        arrivals = []
        at_ms = 0.0
        for number in range(self.first, self.first + chance.randrange(2, 250)):
            dtx = chance.random() < dtx_odds / 4
            packet = In(at_ms, number, (self.origin + int(at_ms * 48)) & 0xFFFF_FFFF)
            self.sent[number] = packet
            at_ms += 20 * (chance.randrange(1, 60) if dtx else 1)
            if number > self.first and chance.random() < loss:
                continue
            delay_ms = chance.uniform(0, 150) if chance.random() < late else chance.uniform(0, 3)
            arrivals.append(packet._replace(at_ms=packet.at_ms + (delay_ms if number > self.first else 0)))
            if chance.random() < twice:
                arrivals.append(arrivals[-1]._replace(at_ms=arrivals[-1].at_ms + chance.uniform(0, 300)))
        if chance.random() < 0.3:  # all of a while is held up, and comes at once
            begin, end = sorted(chance.uniform(0, at_ms) for _ in range(2))
            end = min(end, begin + 800)
            arrivals = [a._replace(at_ms=end) if begin <= a.at_ms < end else a for a in arrivals]
        self.arrivals = sorted(arrivals, key=lambda arrival: arrival.at_ms)

    def __repr__(self) -> str:
        return f"Network({self._seed})"

    @property
    def longest_gap(self) -> int:
        """How many packets in a row never came."""
        numbers = sorted({arrival.number for arrival in self.arrivals})
        return max((b - a - 1 for a, b in itertools.pairwise(numbers)), default=0)


_networks = st.integers(0, 2**32).map(Network)


@given(_networks)
def test_what_comes_in_time_is_heard_once_and_in_order(network: Network) -> None:
    listener = Listener()
    in_time: set[int] = set()
    heard: list[int] = []
    arrivals = [*network.arrivals, In(network.arrivals[-1].at_ms + 500, max(network.sent))]
    at_ms = 1.0
    for arrival in arrivals:
        while at_ms <= arrival.at_ms:
            listener.hear(listener.buffer.poll(at_ms / 1000))
            at_ms += _TICK_MS
        if arrival.number > max(_unwrap(listener.heard, network.first), default=-1):
            in_time.add(arrival.number)
        listener.take(arrival)
        heard = _unwrap(listener.heard, network.first)
    assert heard == sorted(in_time)
    assert listener.most_held <= 50
    assert all(0.02 <= wait_s <= 0.2 for wait_s in listener.waits_s)
    counts = listener.buffer.counts
    assert counts.resyncs == 0
    assert len(arrivals) == len(heard) + counts.late + counts.duplicates
    assert counts.late <= len({arrival.number for arrival in arrivals}) - len(heard)
    assert listener.heard.count(".") == counts.filled
    assert sum(isinstance(name, str) and name[0] == "?" for name in listener.heard) == counts.concealed


def _unwrap(heard: list[int | str], first: int) -> list[int]:
    return [first + ((name - first) & 0xFFFF) for name in heard if isinstance(name, int)]


@given(_networks)
def test_time_is_neither_lost_nor_won_but_by_what_was_held_up(network: Network) -> None:
    listener = Listener().play(network.arrivals, network.arrivals[-1].at_ms + 180)
    heard = _unwrap(listener.heard, network.first)
    span = int(network.sent[heard[-1]].at_ms * 48) + _SAMPLES
    filled = listener.buffer.counts.filled * _SAMPLES
    assert listener.samples <= span + filled
    if network.longest_gap <= 10:
        assert listener.samples >= span
        if not filled:
            assert listener.samples == span


@given(
    st.lists(
        st.tuples(
            st.integers(0, 65_535) | st.integers(0, 70) | st.integers(65_470, 65_535),
            st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1]),
            st.sampled_from([1, 120, 960, 5_760]),
            st.binary(min_size=1, max_size=3),
            st.floats(0, 0.5) | st.sampled_from([0.0, 3600.0]),
        ),
        max_size=80,
    )
)
def test_hostile_packets_make_a_bounded_amount_of_work(
    packets: list[tuple[int, int, int, bytes, float]],
) -> None:
    buffer = JitterBuffer(_RATE)
    now = heard_s = 0.0
    for number, timestamp, samples, payload, after_s in packets:
        now += after_s
        for _ in range(3):
            heard_s += seconds(buffer.poll(now))
        heard_s += seconds(buffer.add(number, timestamp, samples, payload, now))
        assert heard_s <= now + 2
        assert len(buffer._held) <= 50
        assert len(buffer._made_up) <= 64
        assert 0.02 <= buffer.wait_s <= 0.2


def seconds(frames: list[Frame]) -> float:
    return sum(frame.samples for frame in frames) / _RATE


@pytest.mark.parametrize(
    ("samples", "every_s", "timestamp_step", "number_step"),
    [
        pytest.param(5_760, 0.02, 480_000, 1, id="timestamps that leap by 10 s"),
        pytest.param(960, 0.02, 24_000, 1, id="timestamps that leap by half a second"),
        pytest.param(5_760, 0.02, 960, 50, id="numbers that leap"),
        pytest.param(5_760, 0.001, 5_760, 1, id="a thousand packets a second"),
    ],
)
def test_client_makes_us_decode_no_more_than_the_time_that_passes(
    samples: int, every_s: float, timestamp_step: int, number_step: int
) -> None:
    buffer, heard_s = JitterBuffer(_RATE), 0.0
    packets = round(10 / every_s)
    for index in range(packets):
        now = index * every_s
        number, timestamp = index * number_step & 0xFFFF, index * timestamp_step & 0xFFFF_FFFF
        heard_s += seconds(buffer.add(number, timestamp, samples, b"abc", now) + buffer.poll(now))
    assert 9 < heard_s <= 12
    assert buffer.counts.excess > 0


def test_two_seconds_that_were_held_up_are_heard_and_more_is_not() -> None:
    buffer = JitterBuffer(_RATE)
    heard = buffer.add(0, 0, _SAMPLES, b"abc", 0.0)
    for number in range(1, 300):
        heard += buffer.add(number, number * _SAMPLES, _SAMPLES, b"abc", 0.1)
    assert 1.99 < seconds(heard) <= 2.1
    assert buffer.counts.excess == 300 - len(heard)
    assert buffer.add(300, 300 * _SAMPLES, _SAMPLES, b"abc", 1.0) != []


def test_held_packets_are_bounded_whatever_the_wait() -> None:
    listener = Listener().play([In(0, 1), *(In(0.1, 2 * number) for number in range(2, 27))], 0.5)
    assert listener.heard == [1]
    for number in range(3, 53):
        listener.take(In(0.6, number + 2))
    assert listener.most_held <= 50
