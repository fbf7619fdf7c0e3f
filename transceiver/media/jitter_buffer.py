"""Puts a stream's packets in order for a listener that is a program, and tells what must be made up. Pure.

A loudspeaker needs a packet every 20 ms, so its jitter buffer delays all of them. A speech model, a recorder or an
encoder wants them as soon as possible, and in order. Rules:
1. A packet that is next in order goes out at once: no delay is added to a good network.
2. When one is missing, those behind it are kept for as long as reordering has lately been seen to take (20 to 200 ms);
   then the missing ones are made up: the last of them from the redundancy of the packet behind it, where that has some.
3. One that comes later still is dropped as late, and from then on we wait longer; waits that were for nothing get shorter.
4. When nothing comes at all, we do not know whether packets are lost or only held up. After 200 ms (60 ms, if the sender
   had announced a pause by DTX) frames are made up at the pace of time, so that a listener hears the silence.
5. What was made up counts as time that has passed: of packets lost meanwhile only the rest is made up, of packets that
   were held up none is dropped, within rule 6. Where timestamps tell of more time than that, the sender paused, and so does what is heard.
6. What is heard may be 2 s ahead of the time that has passed, no more: whatever numbers and timestamps a client writes, it
   makes us decode what a call is worth. What is beyond that is dropped, and counted as excess.
7. A jump ahead by more than a second in sequence numbers is a new beginning, and so is one back by more than SRTP lets
   through; a jump of more than 10 s in timestamps is no time that has passed.
"""

from dataclasses import dataclass
from typing import NamedTuple

_MIN_WAIT_S, _FIRST_WAIT_S, _MAX_WAIT_S = 0.02, 0.04, 0.2
_WAIT_GROWTH, _WAIT_DECAY = 1.25, 0.95
_STALL_S, _PAUSE_S = 0.2, 0.06
_DTX_BYTES = 2  # a packet of DTX is the TOC byte, perhaps with one more (RFC 6716 section 2.1.9)
_MAX_JUMP = 50  # and so no more are ever held
# libsrtp's replay window, as aiortc sets it: what is older does not come here, and what is younger is late. After a change
# of paths, what was under way on the old one may be seconds late.
_MAX_LATE = 1024
_MAX_PAUSE_S = 10.0
# Of one gap: beyond it, concealment has faded and the time is lost.
_MAX_MADE_UP = 10
_MAX_FILLED_AT_ONCE = 25
_REMEMBERED = 64
_MAX_LEAD_S = 2.0


class Frame(NamedTuple):
    """What is to be heard next: ``samples`` at the clock rate, of ``payload``.

    Without a payload it is to be made up; from the redundancy of ``following``, if there is any. ``is_pause``: nobody knows
    that anything was lost.
    """

    samples: int
    payload: bytes | None = None
    following: bytes | None = None
    is_pause: bool = False


class _Held(NamedTuple):
    timestamp: int
    samples: int
    payload: bytes
    arrived_at: float


@dataclass(slots=True)
class JitterCounts:
    """Frames made up for lost packets (``concealed``) and in pauses (``filled``); packets that came too late or twice; frames
    for which no time had passed (``excess``).
    """

    concealed: int = 0
    filled: int = 0
    late: int = 0
    duplicates: int = 0
    resyncs: int = 0
    excess: int = 0


class JitterBuffer:
    """One stream. ``now`` is monotonic seconds, ``clock_rate`` of its timestamps; ``counts`` goes on from another's."""

    def __init__(self, clock_rate: int, counts: JitterCounts | None = None) -> None:
        self.counts = counts or JitterCounts()
        self._clock_rate = clock_rate
        self._next: int | None = None  # sequence number, counted on over its 16 bits
        self._first = 0
        self._timestamp = 0  # of the frame that is heard next
        self._samples = clock_rate // 50
        self._held: dict[int, _Held] = {}
        self._gap_at = 0.0  # when the first of those behind the gap came
        self._wait_s = _FIRST_WAIT_S
        self._arrived_at = 0.0
        self._quiet_s = _STALL_S
        self._filled = 0  # frames since the last packet
        self._made_up: dict[int, float] = {}  # when the gap of a packet that was made up began
        self._lead_s = 0.0  # of what was heard, before the time
        self._led_at = float("-inf")

    @property
    def wait_s(self) -> float:
        """How long a missing packet is waited for."""
        return self._wait_s

    def add(
        self, sequence_number: int, timestamp: int, samples: int, payload: bytes, now: float
    ) -> list[Frame]:
        """Take a packet that lasts ``samples``; returns what can be heard now."""
        return self._afford(self._add(sequence_number, timestamp, samples, payload, now), now)

    def poll(self, now: float) -> list[Frame]:
        """What time alone makes audible."""
        return self._afford(self._poll(now), now)

    def _afford(self, frames: list[Frame], now: float) -> list[Frame]:
        if not frames:
            return frames
        self._lead_s = max(0.0, self._lead_s - (now - self._led_at))
        self._led_at = now
        heard: list[Frame] = []
        for frame in frames:
            lead_s = self._lead_s + frame.samples / self._clock_rate
            if lead_s > _MAX_LEAD_S:
                self.counts.excess += 1
                continue
            self._lead_s = lead_s
            heard.append(frame)
        return heard

    def _add(
        self, sequence_number: int, timestamp: int, samples: int, payload: bytes, now: float
    ) -> list[Frame]:
        following = self._next
        if following is None:
            following = self._start(sequence_number, timestamp)
        ahead = (sequence_number - following) & 0xFFFF
        if ahead > _MAX_JUMP:
            if ahead >= 0x1_0000 - _MAX_LATE:
                self._drop(following - (0x1_0000 - ahead), now)
                return []
            if not self._is_after_a_pause(ahead):
                return self._start_anew(sequence_number, timestamp, samples, payload, now)
        number = following + ahead
        if number in self._held:
            self.counts.duplicates += 1
            return []
        if not ahead and not self._held:
            self._arrived_at = now
            return self._hear(timestamp, samples, payload)
        if not self._held:
            self._gap_at = now
        self._arrived_at = now
        self._held[number] = _Held(timestamp, samples, payload, now)
        if not ahead:
            self._wait_longer(now - self._gap_at)
            return self._hear_held()
        if self._filled:
            return self._close_gap()
        return self._poll(now)

    def _poll(self, now: float) -> list[Frame]:
        if self._held:
            frames: list[Frame] = []
            while self._held and now - self._gap_at >= self._wait_s:
                frames += self._close_gap()
            return frames
        if self._next is None:
            return []
        quiet_s = now - self._arrived_at - self._quiet_s
        if quiet_s < 0:
            return []
        # All of the quiet since the last packet's own time: what we waited to be sure has passed as well.
        due = int((now - self._arrived_at) * self._clock_rate / self._samples) - 1 - self._filled
        due = max(0, min(due, _MAX_FILLED_AT_ONCE))
        return [self._fill() for _ in range(due)]

    def _start(self, sequence_number: int, timestamp: int) -> int:
        self._next, self._timestamp, self._filled = sequence_number, timestamp, 0
        self._first = sequence_number
        self._held.clear()
        self._made_up.clear()
        return sequence_number

    def _start_anew(
        self, sequence_number: int, timestamp: int, samples: int, payload: bytes, now: float
    ) -> list[Frame]:
        """What is held of the old stream was waited for in vain, and is heard before the new one."""
        frames: list[Frame] = []
        while self._held:
            frames += self._close_gap()
        self.counts.resyncs += 1
        self._arrived_at = now
        self._start(sequence_number, timestamp)
        return frames + self._hear(timestamp, samples, payload)

    def _is_after_a_pause(self, ahead: int) -> bool:
        """Whether that many packets may have been lost while we heard nothing: then the stream simply goes on."""
        return ahead <= self._filled + _MAX_JUMP

    def _drop(self, number: int, now: float) -> None:
        gap_at = self._made_up.pop(number, None)
        if gap_at is not None:
            self.counts.late += 1
            self._wait_longer(now - gap_at)
        elif number < max(self._first, (self._next or 0) - _REMEMBERED):
            self.counts.late += 1
        else:
            self.counts.duplicates += 1

    def _wait_longer(self, needed_s: float) -> None:
        self._wait_s = min(_MAX_WAIT_S, max(self._wait_s, needed_s * _WAIT_GROWTH))

    def _close_gap(self) -> list[Frame]:
        """Make up what is missing before the oldest that is held; then everything in order."""
        assert self._next is not None  # something is held
        oldest = min(self._held)
        missing = oldest - self._next
        made_up = max(0, min(missing, _MAX_MADE_UP) - self._filled)
        for number in range(max(self._next, oldest - _REMEMBERED), oldest):
            self._made_up[number] = self._gap_at
        while len(self._made_up) > _REMEMBERED:
            del self._made_up[next(iter(self._made_up))]
        self.counts.concealed += made_up
        frames = [Frame(self._samples) for _ in range(made_up)]
        if frames:
            frames[-1] = Frame(self._samples, following=self._held[oldest].payload)
        self._wait_s = max(_MIN_WAIT_S, self._wait_s * _WAIT_DECAY)
        self._next = oldest
        # The time that the missing ones took; what the timestamps say of more was a pause.
        self._timestamp = (self._timestamp + missing * self._samples) & 0xFFFF_FFFF
        self._filled = max(0, self._filled - missing)
        return frames + self._hear_held()

    def _hear_held(self) -> list[Frame]:
        frames: list[Frame] = []
        while self._next is not None and (held := self._held.pop(self._next, None)) is not None:
            frames += self._hear(held.timestamp, held.samples, held.payload)
        if self._held:  # behind another gap, which is as old as what came behind it
            self._gap_at = min(held.arrived_at for held in self._held.values())
        return frames

    def _hear(self, timestamp: int, samples: int, payload: bytes) -> list[Frame]:
        assert self._next is not None  # it was started
        self._next += 1
        frames = self._pause_before(timestamp) if timestamp != self._timestamp else []
        self._timestamp = (timestamp + samples) & 0xFFFF_FFFF
        self._samples = samples
        self._quiet_s = _PAUSE_S if len(payload) <= _DTX_BYTES else _STALL_S
        self._filled = 0
        frames.append(Frame(samples, payload))
        return frames

    def _pause_before(self, timestamp: int) -> list[Frame]:
        """The rest of a pause in which the sender sent nothing."""
        ahead = (timestamp - self._timestamp) & 0xFFFF_FFFF
        if ahead > _MAX_PAUSE_S * self._clock_rate:
            return []
        left = ahead // self._samples - self._filled
        return [self._fill() for _ in range(max(0, min(left, _MAX_FILLED_AT_ONCE)))]

    def _fill(self) -> Frame:
        self._filled += 1
        self.counts.filled += 1
        return Frame(self._samples, is_pause=True)
