"""Packets of clients that this relay does not know, while the fleet's cache is asked whose they are.

Rules:
1. DTLS or RTP of an unknown client is held, and the name of its flow becomes a question to the cache, one a client.
2. What the cache finds is a claim: whoever writes to it can put an old value back. So the transceiver that it names is
   asked for the session (an SPP header with nothing behind it), and nothing follows before it has sent that header back
   from the very address that was named.
3. What could not be found or confirmed is not asked again for a while: the tail of an ended call comes for long.
4. Held packets leave in their order and before any later one of their client, or none of them does.
5. All is bounded: clients, packets of a client, bytes, questions in all and of a source. The packets that come first are
   the ones held. Of DTLS they are what matters; of RTP any are as good, and dropping what comes costs less than
   moving what is there, and lets no forged packet push out one that is held.

    event                          asked               confirming                       missed
    packet                         hold                hold                             drop; asks anew when it is over
    found                          → confirming        -                                -
    found, not a transceiver       → missed            -                                -
    not found, or forged           → missed            -                                -
    the cache cannot be asked      → missed, shortly   -                                -
    confirmed by who was named     -                   → none, all leave                -
    a flow was made otherwise      → none, all leave   → none, all leave; dropped if    -
                                                       it leads to another transceiver
    time                           → missed, shortly   asks again once, then → missed   → none
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from relay.core.flow import FlowKey
from relay.core.policy import AddressRules, RelayPolicy
from relay.core.rates import TokenBuckets
from relay.core.verdict import FlowEvent, Verdict
from wire.address import Address
from wire.flow_record import FlowRecord
from wire.spp import flow_name, parse_flow_name

MAX_CLIENTS = 1024
# A frame of video, or 0.6 s of voice: what has queued while a relay was started.
MAX_PACKETS = 32
# All that 1,024 voice calls may have held, and an eighth of what a flood could.
MAX_BYTES = 8 * 1024 * 1024
MAX_MISSED = 16_384
# 10,000 calls of a worker that has lost them are asked for within 2 s, before most of their next checks.
QUESTIONS_PER_S = QUESTIONS_BURST = 5000
_BURST_S = (QUESTIONS_BURST - 0.5) / QUESTIONS_PER_S
_RATED_SOURCES = 8192

ANSWER_S = 0.5
# One way over the fleet's network and back, with a transceiver that is busy in between.
PROBE_S, PROBED_AGAIN_S = 0.1, 0.2
MISSED_S, UNAVAILABLE_S = 2.0, 0.5


class _Stage(Enum):
    """What is waited for; each lasts for so many seconds."""

    ASKED = ANSWER_S
    PROBED = PROBE_S
    PROBED_AGAIN = PROBED_AGAIN_S


@dataclass(slots=True)
class _Waiting:
    stage: _Stage
    due: float
    packets: list[bytes] = field(default_factory=list)
    # Of the transceiver that was found.
    record: FlowRecord | None = None


class Departure(NamedTuple):
    """What becomes of a held packet: it goes to ``transceiver``, or is dropped if that is None.

    An empty ``datagram`` is no packet of a client, but the question whether the transceiver has its session.
    """

    key: FlowKey
    datagram: bytes
    transceiver: Address | None


class Recall:
    """See the top of this file. Times are monotonic seconds; ``events`` are counts by FlowEvent.

    limits_sources: nobody before has limited what one source may ask.
    """

    def __init__(
        self, policy: RelayPolicy, rules: AddressRules, events: list[int], *, limits_sources: bool
    ) -> None:
        self._policy = policy
        self._rules = rules
        self._events = events
        self._sources = (
            TokenBuckets(policy.unknown_per_s, policy.unknown_burst, _RATED_SOURCES)
            if limits_sources
            else None
        )
        # Until when all questions so far would have taken, one behind the other at QUESTIONS_PER_S.
        self._asked_until = 0.0
        self._waiting: dict[FlowKey, _Waiting] = {}
        # The same, by what they wait for: those first that have waited for longest.
        self._stages: dict[_Stage, OrderedDict[FlowKey, _Waiting]] = {
            stage: OrderedDict() for stage in _Stage
        }
        self._bytes = 0
        # Until when. Ordered: taking the oldest of a plain dict walks over every entry that was deleted before it.
        self._missed: OrderedDict[FlowKey, float] = OrderedDict()
        self._questions: list[bytes] = []
        self._departures: deque[Departure] = deque()

    def hold(self, key: FlowKey, datagram: bytes, now: float) -> Verdict:
        """Decide on DTLS or RTP of a client without a flow."""
        waiting = self._waiting.get(key)
        if waiting is None and now < self._missed.get(key, now):
            return Verdict.DROP_UNKNOWN_FLOW
        if self._bytes + len(datagram) > MAX_BYTES:
            return Verdict.DROP_HOLD_FULL
        if waiting is None:
            verdict = self._ask(key, now)
            if verdict is not Verdict.HOLD:
                return verdict
            waiting = self._waiting[key]
        elif len(waiting.packets) >= MAX_PACKETS:
            return Verdict.DROP_HOLD_FULL
        waiting.packets.append(datagram)
        self._bytes += len(datagram)
        return Verdict.HOLD

    def next_questions(self) -> list[bytes]:
        """Names of flows to ask the cache for, those since the last call."""
        questions, self._questions = self._questions, []
        return questions

    def receive_found(self, record: FlowRecord, now: float) -> None:
        """The cache has a flow for a client."""
        key = FlowKey(record.client, record.vip)
        waiting = self._waiting.get(key)
        if waiting is None or waiting.stage is not _Stage.ASKED:
            return
        transceiver = record.transceiver
        if not transceiver.port or not self._rules.may_be_transceiver(transceiver.host):
            self._miss(key, now + MISSED_S, FlowEvent.RECALL_MISSED)
            return
        waiting.record = record
        self._probe(key, waiting, _Stage.PROBED, now)

    def receive_not_found(self, name: bytes, now: float) -> None:
        """The cache has nothing of that name, or nothing that opens."""
        self._receive_no(name, now + MISSED_S, FlowEvent.RECALL_MISSED)

    def receive_unavailable(self, name: bytes, now: float) -> None:
        """The cache cannot be asked now."""
        self._receive_no(name, now + UNAVAILABLE_S, FlowEvent.RECALL_UNAVAILABLE)

    def confirm(self, key: FlowKey, source: Address) -> tuple[FlowRecord, list[bytes]] | None:
        """A transceiver says that it has the client's session. If it was asked: what was found, and the packets that now leave."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.record is None or waiting.record.transceiver != source:
            return None
        return waiting.record, self.release(key, source)

    def release(self, key: FlowKey, transceiver: Address) -> list[bytes]:
        """A flow of the key to that transceiver is there: its held packets leave, unless another was found for them.

        Returns those that do.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            return []
        self._forget(key, waiting)
        fits = waiting.record is None or waiting.record.transceiver == transceiver
        self._depart(key, waiting.packets, transceiver if fits else None)
        return waiting.packets if fits else []

    def take_departures(self) -> list[Departure]:
        """What is to leave now, before anything else does; in this order."""
        departures = list(self._departures)
        self._departures.clear()
        return departures

    @property
    def has_departures(self) -> bool:
        """Whether there are any."""
        return bool(self._departures)

    @property
    def due(self) -> float:
        """When ``handle_timer`` has something to do; infinity if nobody waits."""
        firsts = (next(iter(stage.values())).due for stage in self._stages.values() if stage)
        return min(firsts, default=float("inf"))

    def handle_timer(self, now: float) -> None:
        """Do what time brings."""
        for key, _ in self._take_due(_Stage.ASKED, now):
            self._miss(key, now + UNAVAILABLE_S, FlowEvent.RECALL_UNAVAILABLE)
        for key, _ in self._take_due(_Stage.PROBED_AGAIN, now):
            self._miss(key, now + MISSED_S, FlowEvent.RECALL_UNCONFIRMED)
        for key, waiting in self._take_due(_Stage.PROBED, now):
            self._probe(key, waiting, _Stage.PROBED_AGAIN, now)
        while self._missed:
            key = next(iter(self._missed))
            if now < self._missed[key]:
                break
            del self._missed[key]

    def give_up(self) -> None:
        """Nobody will answer any more: drop what is held."""
        for key, waiting in list(self._waiting.items()):
            self._forget(key, waiting)
            self._depart(key, waiting.packets, None)

    def _ask(self, key: FlowKey, now: float) -> Verdict:
        """Begin to wait, if there is room."""
        # Before a source's own tokens: in a flood from many sources this is all that a packet costs.
        if len(self._waiting) >= MAX_CLIENTS or self._asked_until - now > _BURST_S:
            return Verdict.DROP_HOLD_FULL
        if self._sources is not None:
            source = self._policy.source_prefix(key.client.host)
            if not self._sources.take(source, now):
                return Verdict.DROP_RATE_LIMITED
        self._asked_until = max(self._asked_until, now) + 1 / QUESTIONS_PER_S
        self._missed.pop(key, None)
        self._waiting[key] = waiting = _Waiting(_Stage.ASKED, now)
        self._enter(key, waiting, _Stage.ASKED, now)
        self._questions.append(flow_name(*key))
        return Verdict.HOLD

    def _probe(self, key: FlowKey, waiting: _Waiting, stage: _Stage, now: float) -> None:
        assert waiting.record is not None  # it names whom to ask
        del self._stages[waiting.stage][key]
        self._enter(key, waiting, stage, now)
        self._departures.append(Departure(key, b"", waiting.record.transceiver))

    def _enter(self, key: FlowKey, waiting: _Waiting, stage: _Stage, now: float) -> None:
        waiting.stage, waiting.due = stage, now + stage.value
        self._stages[stage][key] = waiting

    def _take_due(self, stage: _Stage, now: float) -> list[tuple[FlowKey, _Waiting]]:
        due = []
        for key, waiting in self._stages[stage].items():
            if now < waiting.due:
                break
            due.append((key, waiting))
        return due

    def _receive_no(self, name: bytes, until: float, event: FlowEvent) -> None:
        key = FlowKey(*parse_flow_name(name))
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.stage is _Stage.ASKED:
            self._miss(key, until, event)

    def _miss(self, key: FlowKey, until: float, event: FlowEvent) -> None:
        waiting = self._waiting[key]
        self._forget(key, waiting)
        self._depart(key, waiting.packets, None)
        self._events[event] += 1
        if len(self._missed) >= MAX_MISSED:
            self._missed.popitem(last=False)
        self._missed[key] = until

    def _forget(self, key: FlowKey, waiting: _Waiting) -> None:
        del self._waiting[key], self._stages[waiting.stage][key]
        self._bytes -= sum(map(len, waiting.packets))

    def _depart(self, key: FlowKey, packets: list[bytes], transceiver: Address | None) -> None:
        self._departures += [Departure(key, packet, transceiver) for packet in packets]
