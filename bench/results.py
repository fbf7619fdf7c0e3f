"""What was measured, and what follows from it: ratios, and whether the targets hold. No measuring here."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, NamedTuple, Self, TypeVar

_T = TypeVar("_T")

UP, DOWN = "up", "down"
BARE, XDP, GO, USERSPACE, ROUTE = "bare-redirect", "xdp", "go-reference", "userspace", "kernel-route"
OPUS = "opus"
# What a relay's processes share: a core with the generator, or nothing (``CpuRow``).
ONE_CORE, OWN_CORE = "one core", "own core"
# What a worker's time is for, in the order of tables.
PARTS = ("receive", "Python", "send", "wait", "other")
# The rows that targets are about.
PAYLOAD, FLOWS, MANY_FLOWS = 100, 1000, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One path at full load; numbers are medians over the rounds that count.

    measurement: the command that made it. payload: bytes, or ``opus`` for the mix. pps: delivered. lost: packets of one
    round that were offered and did not arrive. rates: of each round. core_share: the least that generator and relay had of their core. pps_bursts: where packets come 64 at a time;
    pps_own_core: where the relay's process has a core of its own. why_not: there is no number, for this reason.
    """

    measurement: str
    name: str
    direction: str
    payload: int | str
    flows: int
    pps: float | None = None
    lost: int | None = None
    rates: list[int] = field(default_factory=list)
    core_share: float | None = None
    pps_bursts: float | None = None
    pps_own_core: float | None = None
    why_not: str = ""

    @property
    def ns_per_packet(self) -> float | None:
        """Of the core that generator, relay and sink share."""
        return nanoseconds(self.pps)


@dataclass(frozen=True, kw_only=True)
class CpuRow:
    """CPU time of a relay's processes at the rate of so many calls, µs a packet that was delivered; medians over rounds.

    condition: whether the processes have a core of their own. offered: packets/s. times: µs of each round that counts.
    """

    name: str
    direction: str
    condition: str
    offered: int
    pps: float | None = None
    cpu_us_per_packet: float | None = None
    lost: int | None = None
    times: list[float] = field(default_factory=list)
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class BreakdownRow:
    """What a worker's CPU time is for at full load.

    parts: of the time, by PARTS. softirq: of the time, and within the parts. ns_per_packet: of its CPU time; cpu_share: of
    its core. stacks: ``outermost;…;innermost`` and how often that was met.
    """

    name: str
    direction: str
    pps: float | None = None
    cpu_share: float | None = None
    ns_per_packet: float | None = None
    samples: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    softirq: float | None = None
    stacks: list[tuple[str, int]] = field(default_factory=list)
    why_not: str = ""

    def ns_of(self, part: str) -> float | None:
        """Time a packet in a part."""
        return None if self.ns_per_packet is None else self.ns_per_packet * self.parts[part]


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One way's times at half load, nanoseconds; the percentiles are those of all rounds that count together."""

    name: str
    rate: int
    capacity: int = 0
    packets: int = 0
    lost: int = 0
    p50_ns: float | None = None
    p99_ns: float | None = None
    p999_ns: float | None = None
    cdf: list[tuple[float, float]] = field(default_factory=list)
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class SetupRow:
    """Clients that come anew: how many a second one worker admits, and the time from a client's send to the transceiver."""

    name: str
    flows_per_s: float | None = None
    admitted: int = 0
    lost: int = 0
    p50_us: float | None = None
    p99_us: float | None = None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of the map of assured flows, from the kernel: whole, and shared by all that it has room for."""

    map_bytes: int
    max_flows: int
    record_bytes: int

    @property
    def bytes_per_flow(self) -> float:
        """Key, value, and what the kernel adds."""
        return self.map_bytes / self.max_flows


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Of a worker that forwards in userspace: what no other process shares with it, without and with that many flows."""

    name: str
    flows: int
    empty_bytes: int
    full_bytes: int

    @property
    def mb(self) -> float:
        """All of it, with its flows."""
        return self.full_bytes / 1e6

    @property
    def bytes_per_flow(self) -> float:
        """What the flows added."""
        return (self.full_bytes - self.empty_bytes) / self.flows


class Target(NamedTuple):
    """A number to reach; ``value`` is None where it was not measured."""

    name: str
    bound: float
    is_minimum: bool
    value: float | None

    @property
    def holds(self) -> bool | None:
        """None: not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.is_minimum else self.value <= self.bound


@dataclass(frozen=True, kw_only=True)
class Results:
    """All of a run, or of several that were put together."""

    rows: list[Row] = field(default_factory=list)
    cpu: list[CpuRow] = field(default_factory=list)
    breakdown: list[BreakdownRow] = field(default_factory=list)
    latency: list[LatencyRow] = field(default_factory=list)
    setup: list[SetupRow] = field(default_factory=list)
    memory: Memory | None = None
    worker_memory: list[WorkerMemory] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)

    def find(
        self, measurement: str, name: str, direction: str, payload: int | str = PAYLOAD, flows: int = FLOWS
    ) -> Row | None:
        """The row of that path, with or without a number."""
        wanted = (measurement, name, direction, payload, flows)
        for row in self.rows:
            if (row.measurement, row.name, row.direction, row.payload, row.flows) == wanted:
                return row
        return None

    def bare(self, row: Row) -> Row | None:
        """The limit beside that row."""
        return self.find(row.measurement, BARE, row.direction, row.payload, row.flows)

    def added_ns(self, row: Row) -> float | None:
        """Time a packet beyond that of a bare redirect."""
        bare = self.bare(row)
        ours, theirs = row.ns_per_packet, bare.ns_per_packet if bare else None
        return None if ours is None or theirs is None else ours - theirs

    def ratios(self) -> dict[str, float]:
        """Of delivered packets/s, 100 bytes and 1000 flows if nothing else is said; of those that were measured."""
        found: dict[str, float] = {}
        for one, other in ((XDP, BARE), (XDP, GO), (USERSPACE, GO)):
            for direction, suffix in ((UP, ""), (DOWN, " down")):
                a, b = (self.find("forward", name, direction) for name in (one, other))
                found |= _ratio_of_rows(f"{one}/{other}{suffix}", a, b)
                found |= _ratio(f"{one}/{other}{suffix} bursts", _of(a, "pps_bursts"), _of(b, "pps_bursts"))
                if other == GO:
                    mine = _of(a, "pps" if one == XDP else "pps_own_core")
                    found |= _ratio(f"{one}/{other}{suffix} own core", mine, _of(b, "pps_own_core"))
        for direction, suffix in ((UP, ""), (DOWN, " down")):
            a, b = (self.find("forward", name, direction, OPUS) for name in (USERSPACE, GO))
            found |= _ratio_of_rows(f"{USERSPACE}/{GO}{suffix} opus", a, b)
            many, few = (self.find("flows", XDP, direction, flows=n) for n in (MANY_FLOWS, FLOWS))
            found |= _ratio_of_rows(f"xdp 1M/1k flows{suffix}", many, few)
        ours, routed = (
            next((row.p50_ns for row in self.latency if row.name == name), None) for name in (XDP, ROUTE)
        )
        found |= _ratio("xdp/kernel-route latency p50", ours, routed)
        return found | self._cpu_ratios()

    def _cpu_ratios(self) -> dict[str, float]:
        """Of CPU time a packet: of both ways together, and each way."""
        found: dict[str, float] = {}
        for condition, suffix in ((OWN_CORE, ""), (ONE_CORE, f", {ONE_CORE}")):
            times = {
                (name, direction): next(
                    (
                        row.times
                        for row in self.cpu
                        if (row.name, row.direction, row.condition) == (name, direction, condition)
                    ),
                    [],
                )
                for name in (USERSPACE, GO)
                for direction in (UP, DOWN)
            }
            for ways, way in (((UP, DOWN), ""), ((UP,), " up"), ((DOWN,), " down")):
                # Rounds side by side: in each, all four had their turns within seconds.
                ours, theirs = (
                    list(map(sum, zip(*(times[name, direction] for direction in ways), strict=False)))
                    for name in (USERSPACE, GO)
                )
                if ours and theirs:
                    parts = [a / b for a, b in zip(ours, theirs, strict=False)]
                    found[f"{USERSPACE}/{GO} cpu time a packet{way}{suffix}"] = float(median(parts))
        return found

    def targets(self) -> list[Target]:
        """What this project set out to reach."""
        ratios = self.ratios()
        bytes_per_flow = self.memory.bytes_per_flow if self.memory else None
        mb = next((one.mb for one in self.worker_memory if one.flows == MANY_FLOWS), None)
        new = {row.name: row.flows_per_s for row in self.setup}
        ours = f"{USERSPACE}/{GO}"
        return [
            Target("xdp / bare-redirect, up", 0.80, True, ratios.get("xdp/bare-redirect")),
            Target("xdp / bare-redirect, down", 0.75, True, ratios.get("xdp/bare-redirect down")),
            Target("xdp / go-reference, up, one core for all", 12, True, ratios.get("xdp/go-reference")),
            Target("xdp, 1 M / 1 k flows in random order, up", 0.45, True, ratios.get("xdp 1M/1k flows")),
            Target("bytes a flow", 256, False, bytes_per_flow),
            Target(
                "xdp / kernel-route, latency p50", 1.15, False, ratios.get("xdp/kernel-route latency p50")
            ),
            Target("userspace / go-reference, up", 3, True, ratios.get(ours)),
            Target("userspace / go-reference, up, Opus mix", 2, True, ratios.get(f"{ours} opus")),
            Target("userspace / go-reference, down", 1.2, True, ratios.get(f"{ours} down")),
            Target(
                "userspace / go-reference, CPU time a packet, 1 k flows of 50 packets/s",
                0.5,
                False,
                ratios.get(f"{ours} cpu time a packet"),
            ),
            Target("new flows/s of one worker, userspace", 25_000, True, new.get(USERSPACE)),
            Target("new flows/s of one worker, xdp", 25_000, True, new.get(XDP)),
            Target("MB of a userspace worker with 1 M flows", 400, False, mb),
        ]

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "rows": [
                {
                    **asdict(row),
                    "ns_per_packet": _rounded(row.ns_per_packet),
                    "added_ns": _rounded(self.added_ns(row)),
                }
                for row in self.rows
            ],
            "ratios": {name: round(value, 4) for name, value in self.ratios().items()},
            "targets": [{**target._asdict(), "holds": target.holds} for target in self.targets()],
            "cpu": [asdict(row) for row in self.cpu],
            "breakdown": [
                {**asdict(row), "ns": {part: _rounded(row.ns_of(part)) for part in row.parts}}
                for row in self.breakdown
            ],
            "latency": [asdict(row) for row in self.latency],
            "setup": [asdict(row) for row in self.setup],
            "memory": self.memory and {**asdict(self.memory), "bytes_per_flow": self.memory.bytes_per_flow},
            "worker_memory": [
                {**asdict(one), "mb": round(one.mb, 1), "bytes_per_flow": round(one.bytes_per_flow)}
                for one in self.worker_memory
            ],
            "conditions": self.conditions,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of ``to_json``; what follows from the rest is computed anew."""
        memory = document.get("memory")
        return cls(
            rows=[_take(Row, row) for row in document["rows"]],
            cpu=[_take(CpuRow, row) for row in document.get("cpu", [])],
            breakdown=[_take(BreakdownRow, row) for row in document.get("breakdown", [])],
            latency=[_take(LatencyRow, row) for row in document.get("latency", [])],
            setup=[_take(SetupRow, row) for row in document.get("setup", [])],
            memory=_take(Memory, memory) if memory else None,
            worker_memory=[_take(WorkerMemory, one) for one in document.get("worker_memory", [])],
            conditions=document["conditions"],
        )

    @classmethod
    def joined(cls, parts: Iterable["Results"]) -> Self:
        """Several measurements as one; conditions of the last."""
        parts = list(parts)
        return cls(
            rows=[row for part in parts for row in part.rows],
            cpu=[row for part in parts for row in part.cpu],
            breakdown=[row for part in parts for row in part.breakdown],
            latency=[row for part in parts for row in part.latency],
            setup=[row for part in parts for row in part.setup],
            memory=next((part.memory for part in reversed(parts) if part.memory), None),
            worker_memory=[one for part in parts for one in part.worker_memory],
            conditions={name: value for part in parts for name, value in part.conditions.items()},
        )


def nanoseconds(pps: float | None) -> float | None:
    """Time a packet."""
    return 1e9 / pps if pps else None


def that_count(rounds: Sequence[_T]) -> Sequence[_T]:
    """The first round warms caches and clocks; it counts only if it is the only one."""
    return rounds[1:] if len(rounds) > 1 else rounds


def median_that_counts(rounds: Sequence[float]) -> float:
    """Over the rounds that count."""
    return float(median(that_count(rounds)))


def _of(row: Row | None, name: str = "pps") -> float | None:
    return None if row is None else getattr(row, name)


def ratio(one: Row | None, other: Row | None) -> float | None:
    """Of packets/s: the median over the rounds, in which both had their turns within seconds."""
    if one is None or other is None or not one.pps or not other.pps:
        return None
    if len(one.rates) == len(other.rates) and one.rates:
        return float(median(a / b for a, b in zip(one.rates, other.rates, strict=True)))
    return one.pps / other.pps


def _ratio_of_rows(name: str, one: Row | None, other: Row | None) -> dict[str, float]:
    found = ratio(one, other)
    return {} if found is None else {name: found}


def _ratio(name: str, one: float | None, other: float | None) -> dict[str, float]:
    return {name: one / other} if one and other else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _take(kind: Any, values: dict[str, Any]) -> Any:
    names = {one.name for one in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})
