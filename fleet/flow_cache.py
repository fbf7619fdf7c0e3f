"""The flow cache: assured flows in Redis under their client and VIP, sealed, for whichever relay gets that client's next packet.

    relayctl:1:flow:203.0.113.2:40000>203.0.113.10:3478    what wire/flow_record.py seals, 48 bytes, with a time to live

Nothing is ever deleted: a relay that has lost a VIP must not delete what the next one has refreshed. What does not open,
or is older than it may be, is told as forged, and left there to lapse.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.lane import Lanes
from fleet.line import AgentLine, Finding, Found
from fleet.redis_client import Command, LinkError, Reply, Trouble
from wire.address import Address
from wire.errors import WireError
from wire.flow_record import SEALED_BYTES, FlowRecord, open_flow_untrusted, seal_flow
from wire.keys import KeyRing, RecordKeys
from wire.spp import parse_flow_name

# Hosts' clocks differ, and Redis may be late to forget.
CLOCK_SKEW_S = 60
# One byte more than is good tells a value that is too long; a poisoned one of 512 MB costs nothing.
_LAST_BYTE = SEALED_BYTES
# What workers may have told that Redis has not taken, some 300 bytes each.
MAX_PENDING_WRITES = 100_000
# Questions that wait: what one wake-up can read from all lines.
MAX_QUESTIONS = 16_384


def unix_s() -> float:
    """What stamps are made of."""
    return time.clock_gettime(time.CLOCK_REALTIME)


@dataclass(frozen=True, kw_only=True)
class CacheRules:
    """cluster_id: other clusters may share the Redis. ttl_s: how long an entry lives after it was told."""

    keys: KeyRing | RecordKeys
    cluster_id: int
    ttl_s: int

    def key(self, client: Address, vip: Address) -> bytes:
        """The name of a flow's entry."""
        return f"relayctl:{self.cluster_id}:flow:{client}>{vip}".encode()

    def open_untrusted(self, client: Address, vip: Address, value: bytes) -> tuple[FlowRecord, float]:
        """The flow and its age in seconds. Raises WireError."""
        record, sealed_at = open_flow_untrusted(self.keys, client, vip, value)
        return record, unix_s() - sealed_at

    def is_stale(self, age_s: float) -> bool:
        """Whether Redis should have forgotten it: somebody put it back. Or it is from the future."""
        return not -CLOCK_SKEW_S <= age_s <= self.ttl_s + CLOCK_SKEW_S


class FlowWrites:
    """Flows that workers tell of, on their way into Redis."""

    def __init__(self, rules: CacheRules, counts: Counter[str]) -> None:
        self._rules = rules
        self._counts = counts

    def tell(self, lanes: Lanes[bytes], records: Iterable[FlowRecord]) -> None:
        """The newest of each flow is written soon; or never, if Redis cannot be written now: it is told again later."""
        room = MAX_PENDING_WRITES - len(lanes)
        for record in records:
            self._counts["told"] += 1
            key = self._rules.key(record.client, record.vip)
            lane = lanes.of(key)
            if lane is None or (room <= 0 and key not in lane.pending):
                self._counts["unwritten"] += 1
                continue
            room -= key not in lane.pending
            lane.add(key, record.pack())

    def commands(self, batch: dict[bytes, bytes]) -> list[Command]:
        """SET each, sealed as of now."""
        now, ttl_s = int(unix_s()), self._rules.ttl_s
        return [
            ("SET", key, seal_flow(self._rules.keys, FlowRecord.unpack_untrusted(packed), now), "EX", ttl_s)
            for key, packed in batch.items()
        ]

    def settle(self, batch: dict[bytes, bytes], replies: Sequence[Reply]) -> None:
        """Count what was written."""
        failed = sum(isinstance(reply, LinkError) for reply in replies)
        self._counts["written"] += len(replies) - failed
        self._counts["unwritten"] += failed

    def abandon(self, batch: dict[bytes, bytes]) -> None:
        """They are told again when Redis is back."""
        self._counts["unwritten"] += len(batch)


@dataclass(slots=True)
class Question:
    """A flow that ``lines`` want to know."""

    name: bytes
    client: Address
    vip: Address
    lines: list[AgentLine]


class FlowReads:
    """Questions of workers, and their answers."""

    def __init__(self, rules: CacheRules, counts: Counter[str]) -> None:
        self._rules = rules
        self._counts = counts

    def ask(self, lanes: Lanes[Question], line: AgentLine, names: Sequence[bytes]) -> None:
        """Each is answered on that line: soon, or at once if Redis cannot be asked now. Raises WireError."""
        self._counts["asked"] += len(names)
        room = MAX_QUESTIONS - len(lanes)
        unavailable = []
        for name in names:
            client, vip = parse_flow_name(name)
            key = self._rules.key(client, vip)
            lane = lanes.of(key)
            waiting = lane.pending.get(key) if lane is not None else None
            if waiting is not None:
                if line not in waiting.lines:
                    waiting.lines.append(line)
            elif lane is None or room <= 0:
                unavailable.append(name)
            else:
                room -= 1
                lane.add(key, Question(name, client, vip, [line]))
        self._answer({line: [Finding(name, Found.UNAVAILABLE) for name in unavailable]})

    def commands(self, batch: dict[bytes, Question]) -> list[Command]:
        """GETRANGE each: an entry that is there is not empty."""
        return [("GETRANGE", key, 0, _LAST_BYTE) for key in batch]

    def settle(self, batch: dict[bytes, Question], replies: Sequence[Reply]) -> None:
        """Tell every line what it asked for."""
        answers: dict[AgentLine, list[Finding]] = {}
        for question, reply in zip(batch.values(), replies, strict=True):
            finding = self._judge(question, reply)
            for line in question.lines:
                answers.setdefault(line, []).append(finding)
        self._answer(answers)

    def abandon(self, batch: dict[bytes, Question]) -> None:
        """Tell every line that Redis cannot be asked now."""
        answers: dict[AgentLine, list[Finding]] = {}
        for question in batch.values():
            for line in question.lines:
                answers.setdefault(line, []).append(Finding(question.name, Found.UNAVAILABLE))
        self._answer(answers)

    def _judge(self, question: Question, reply: Reply) -> Finding:
        if isinstance(reply, LinkError):
            forged = reply.kind is Trouble.WRONG_TYPE
            return Finding(question.name, Found.FORGED if forged else Found.UNAVAILABLE)
        if reply == b"":
            return Finding(question.name, Found.MISS)
        try:
            if not isinstance(reply, bytes):
                return Finding(question.name, Found.FORGED)
            record, age_s = self._rules.open_untrusted(question.client, question.vip, reply)
        except WireError:
            return Finding(question.name, Found.FORGED)
        if self._rules.is_stale(age_s):
            self._counts["stale"] += 1
            return Finding(question.name, Found.FORGED)
        return Finding(question.name, Found.HIT, record)

    def _answer(self, answers: dict[AgentLine, list[Finding]]) -> None:
        for line, findings in answers.items():
            for finding in findings:
                self._counts[_COUNTED_AS[finding.found]] += 1
            self._counts["unanswered"] += line.answer(findings)


_COUNTED_AS = {
    Found.HIT: "hits",
    Found.MISS: "misses",
    Found.FORGED: "forged",
    Found.UNAVAILABLE: "unavailable",
}


async def describe_entry(
    rules: CacheRules, execute: Callable[[bytes, list[Command]], Any], client: Address, vip: Address
) -> dict[str, Any]:
    """What Redis has of a flow, for an operator.

    ``{"client": "203.0.113.2:40000", "vip": "203.0.113.10:3478", "state": "hit", "why": "", "transceiver": "10.0.1.7:5000",
    "ufrag_tag": "abcd1234", "age_s": 12.0, "ttl_s": 168.0}``; ``state`` is hit, miss, forged, stale or unavailable, and
    the last four are null but for a hit or a stale one.
    """
    described: dict[str, Any] = {"client": str(client), "vip": str(vip), "state": "miss", "why": ""}
    described |= {"transceiver": None, "ufrag_tag": None, "age_s": None, "ttl_s": None}
    key = rules.key(client, vip)
    try:
        value, left_ms = await execute(key, [("GETRANGE", key, 0, _LAST_BYTE), ("PTTL", key)])
        for reply in (value, left_ms):
            if isinstance(reply, LinkError):
                raise reply
    except LinkError as trouble:
        state = "forged" if trouble.kind is Trouble.WRONG_TYPE else "unavailable"
        return described | {"state": state, "why": str(trouble)}
    if not isinstance(value, bytes) or not isinstance(left_ms, int):
        return described | {"state": "forged", "why": "no value of ours"}
    if not value:
        return described
    if left_ms >= 0:
        described["ttl_s"] = round(left_ms / 1000, 1)
    try:
        record, age_s = rules.open_untrusted(client, vip, value)
    except WireError as error:
        return described | {"state": "forged", "why": str(error)}
    is_stale = rules.is_stale(age_s)
    return described | {
        "state": "stale" if is_stale else "hit",
        "why": "older than Redis may keep it, or from the future: it was put back" if is_stale else "",
        "transceiver": str(record.transceiver),
        "ufrag_tag": record.ufrag_tag,
        "age_s": round(age_s, 1),
    }
