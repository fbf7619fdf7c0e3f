"""All that the agent does with Redis: two sets of lanes, one for reads and one for writes, and what they tell of it.

They fail apart: a Redis that is full, or a replica, still answers look-ups; one that is slow still takes flows.
"""

import asyncio
import logging
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fleet.breaker import BreakerState
from fleet.config import RedisKind, Secrets
from fleet.flow_cache import CacheRules, FlowReads, FlowWrites, Question, describe_entry
from fleet.lane import Lane, LaneRules, Lanes
from fleet.line import AgentLine
from fleet.redis_client import Command, Connector, LinkError, Node, Reply
from fleet.registry import Registry
from fleet.servers import make_servers
from fleet.settings import AgentSettings
from wire.address import Address
from wire.flow_record import FlowRecord

logger = logging.getLogger("fleet.agent")

# Nobody waits for a write; one that takes long is still better than none.
_WRITE_DEADLINE_S = 1.0
# A flow that was told alone is in Redis within this and a round trip.
_GATHER_S = 0.005
# The agent takes some 15 us a flow, and look-ups wait meanwhile: writes take short turns.
_READS_A_PIPELINE, _WRITES_A_PIPELINE = 512, 128
# What `status` always has, so that what did not happen is a number, too.
_COUNTS = (
    *("told", "written", "unwritten", "asked", "hits", "misses", "forged", "stale", "unavailable"),
    *("unanswered", "timeouts", "reconnects", "refused", "moved", "again", "malformed", "leases_forged"),
)
_INFO_FIELDS = {
    "redis_version": "version",
    "role": "role",
    "used_memory": "used_memory_bytes",
    "maxmemory": "maxmemory_bytes",
    "maxmemory_policy": "maxmemory_policy",
    "evicted_keys": "evicted_keys",
    "expired_keys": "expired_keys",
}


class FleetCache:
    """``on_again``: Redis may lack what it was told; everything should be told once more."""

    def __init__(
        self, settings: AgentSettings, tls: ssl.SSLContext | None, *, on_again: Callable[[], None]
    ) -> None:
        config = settings.redis
        self.counts = Counter(dict.fromkeys(_COUNTS, 0))
        self.registry = Registry(settings.keys, settings.cluster_id, config.lease_s, self.counts)
        self._rules = CacheRules(keys=settings.keys, cluster_id=settings.cluster_id, ttl_s=config.flow_ttl_s)
        self._kind = config.target.kind
        self._timeout_s = config.timeout_s
        self._on_again = on_again
        self._connector = Connector(config, settings.secrets, tls)
        self._servers = make_servers(config, self._connector, self._follow_servers)
        self._flow_reads = FlowReads(self._rules, self.counts)
        self._flow_writes = FlowWrites(self._rules, self.counts)
        self._reads: Lanes[Question] = Lanes(self._servers, self._make_read_lane)
        self._writes: Lanes[bytes] = Lanes(self._servers, self._make_write_lane)
        self._following: asyncio.Task[None] | None = None
        self._state, self._why, self._state_since = "away", "connecting", time.monotonic()

    async def start(self) -> None:
        """Begin; waits for no longer than a look-up may take."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._servers.refresh()
        except TimeoutError:
            self._servers.doubt()
        self._follow_servers()
        self._following = asyncio.create_task(self._servers.follow(), name="who has what in Redis")

    async def close(self) -> None:
        """End what is under way."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._reads.close()
        await self._writes.close()

    def tell(self, records: Sequence[FlowRecord]) -> None:
        """Have these flows written."""
        self._flow_writes.tell(self._writes, records)

    def ask(self, line: AgentLine, names: Sequence[bytes]) -> None:
        """Have these questions answered on that line. Raises WireError."""
        self._flow_reads.ask(self._reads, line, names)

    async def read(self, key: bytes, commands: list[Command]) -> list[Reply]:
        """A pipeline of reads. Raises LinkError."""
        return await self._reads.execute(key, commands)

    async def write(self, key: bytes, commands: list[Command]) -> list[Reply]:
        """A pipeline of writes. Raises LinkError."""
        return await self._writes.execute(key, commands)

    async def get(self, client: Address, vip: Address) -> dict[str, Any]:
        """What Redis has of a flow: see describe_entry."""
        return await describe_entry(self._rules, partial(self._reads.execute, is_vital=False), client, vip)

    def use_secrets(self, password: str, sentinel_password: str) -> None:
        """For the next connections; one that was refused is tried now."""
        self._connector.secrets = Secrets(password, sentinel_password)
        self._servers.doubt()
        for lane in (*self._reads, *self._writes):
            lane.hurry()

    def describe(self) -> dict[str, Any]:
        """The state as it is now: see FleetService.status."""
        self.note_state()
        return {
            "state": self._state,
            "why": self._why,
            "since_s": round(time.monotonic() - self._state_since, 1),
            "reads": _describe(self._reads),
            "writes": _describe(self._writes),
            "counts": dict(self.counts),
        }

    async def stats(self) -> dict[str, Any]:
        """What an operator wants to know of the cache and its servers.

        ``{"flow_ttl_s": 180, "waiting": {"reads": 0, "writes": 0}, "read_ms": {"median": 0.2, "p99": 0.5}, "write_ms": {...},
        "servers": [{"server": "10.0.0.9:6379", "keys": 20, "version": "7.0.15", "role": "master", "used_memory_bytes": 990000,
        "maxmemory_bytes": 0, "maxmemory_policy": "noeviction", "evicted_keys": 0, "expired_keys": 3, "error": ""}]}`` and all of
        ``status``; milliseconds are null before the first pipeline, and a server's part is only an error if it does not tell.
        """
        servers = await asyncio.gather(*(_describe_server(lane) for lane in self._reads))
        return {
            **self.describe(),
            "flow_ttl_s": self._rules.ttl_s,
            "waiting": {"reads": len(self._reads), "writes": len(self._writes)},
            "read_ms": _quantiles(self._reads),
            "write_ms": _quantiles(self._writes),
            "servers": servers,
        }

    def note_state(self) -> None:
        """Log a line whenever what works changes."""
        read_error, write_error = self._reads.error, self._writes.error
        if not (read_error or write_error):
            state, why = "connected", ""
        elif any(lane.is_working for lane in (*self._reads, *self._writes)):
            state = "degraded"
            why = "; ".join(
                f"{what}: {error}"
                for what, error in (("reads", read_error), ("writes", write_error))
                if error
            )
        else:
            state, why = "away", read_error or write_error
        if state != self._state:
            level = logging.INFO if state == "connected" else logging.WARNING
            logger.log(level, "redis is %s%s", state, f": {why}" if why else "")
            self._state, self._state_since = state, time.monotonic()
        self._why = why

    def _follow_servers(self) -> None:
        self._reads.follow()
        self._writes.follow()
        if self._kind is RedisKind.CLUSTER:
            # Slots that went to another node may lack the last writes.
            self._on_again()

    def _make_read_lane(self, node: Node) -> Lane[Question]:
        rules = LaneRules(deadline_s=self._timeout_s, max_commands=_READS_A_PIPELINE)
        return Lane(node, self._servers, self._flow_reads, rules, self.counts, on_return=_nothing)

    def _make_write_lane(self, node: Node) -> Lane[bytes]:
        rules = LaneRules(
            deadline_s=max(self._timeout_s, _WRITE_DEADLINE_S),
            max_commands=_WRITES_A_PIPELINE,
            gather_s=_GATHER_S,
        )
        return Lane(node, self._servers, self._flow_writes, rules, self.counts, on_return=self._on_again)


def _nothing() -> None:
    """What a read lane has to do when it works again."""


def _describe(lanes: Lanes[Any]) -> dict[str, Any]:
    """The worst breaker's state; open also where no server is known."""
    states = {lane.breaker.state for lane in lanes}
    worst = next(
        (s for s in (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED) if s in states), None
    )
    return {"state": (worst or BreakerState.OPEN).value, "error": lanes.error}


def _quantiles(lanes: Lanes[Any]) -> dict[str, float | None]:
    durations = sorted(duration for lane in lanes for duration in lane.durations)
    if not durations:
        return {"median": None, "p99": None}
    p99 = durations[min(len(durations) - 1, len(durations) * 99 // 100)]
    return {"median": round(1000 * statistics.median(durations), 3), "p99": round(1000 * p99, 3)}


async def _describe_server(lane: Lane[Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"server": str(lane.node), "error": ""}
    try:
        # An ACL that permits neither is good enough for look-ups.
        keys, info = await lane.execute([("DBSIZE",), ("INFO",)], is_vital=False)
        for reply in (keys, info):
            if isinstance(reply, LinkError):
                raise reply
    except LinkError as trouble:
        return described | {"error": str(trouble)}
    lines = info.decode(errors="replace").splitlines() if isinstance(info, bytes) else []
    fields = dict(line.partition(":")[::2] for line in lines)
    described["keys"] = keys if isinstance(keys, int) else None
    for name, told_as in _INFO_FIELDS.items():
        value = fields.get(name, "")[:64]
        described[told_as] = int(value) if value.isascii() and value.isdigit() else value
    return described
