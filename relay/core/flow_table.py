"""Flows: client_addr → transceiver, small, bounded and disposable.

Rules:
1. A flow is born *provisional* from an admitted Binding request. A replayed request can make one, so provisional
   flows are capped in all, per source prefix and per ufrag; at a cap the oldest provisional of the same kind goes.
2. DTLS or RTP seen in both directions turns it *assured*. Nobody can take an assured flow's place but time.
3. A provisional flow lives provisional_s, an assured one assured_s after its last packet.

    event                              none           provisional            assured
    admitted request, own ufrag        → provisional  refresh                refresh
    admitted request, another ufrag    → provisional  replace                unchanged; replaced once the old session
                                                                             has said goodbye or is silent on both sides
    DTLS/RTP both ways                 -              → assured (or refused) -
    silence                            -              → none                 → none
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, TypeVar

from relay.core.policy import RelayPolicy
from wire.address import Address

_Name = TypeVar("_Name")


class FlowKey(NamedTuple):
    """What a flow is looked up by: the client and the VIP that it sends to."""

    client: Address
    vip: Address


@dataclass(slots=True, eq=False)
class Flow:
    """One entry. Times are monotonic seconds; ``up`` is client → transceiver.

    ``released``: the transceiver said goodbye. ``stored``: the store that workers share has it, with ``stored_counts``.
    """

    key: FlowKey
    transceiver: Address
    ufrag_tag: str
    ufrag_seen_at: float
    created_at: float
    last_seen: float
    assured: bool = False
    media_up: bool = False
    media_down: bool = False
    refused: bool = False
    released: bool = False
    stored: bool = False
    down_seen_at: float = float("-inf")
    packets_up: int = 0
    bytes_up: int = 0
    packets_down: int = 0
    bytes_down: int = 0
    stored_counts: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Packets and bytes up, then down."""
        return self.packets_up, self.bytes_up, self.packets_down, self.bytes_down

    def is_same_session(self, other: "Flow") -> bool:
        """Whether both are of one session, in the same state."""
        ours, theirs = (self.transceiver, self.ufrag_tag), (other.transceiver, other.ufrag_tag)
        return ours == theirs and self.assured == other.assured

    def catch_up(self, shared: "Flow") -> None:
        """Add what is not stored yet to what others, XDP among them, have seen and stored of the session."""
        if shared.down_seen_at > self.down_seen_at:
            self.released = shared.released
        self.media_up |= shared.media_up
        self.media_down |= shared.media_down
        self.last_seen = max(self.last_seen, shared.last_seen)
        self.ufrag_seen_at = max(self.ufrag_seen_at, shared.ufrag_seen_at)
        self.down_seen_at = max(self.down_seen_at, shared.down_seen_at)
        self.packets_up, self.bytes_up, self.packets_down, self.bytes_down = (
            there + here - before
            for there, here, before in zip(shared.counts, self.counts, self.stored_counts, strict=True)
        )
        self.stored_counts = shared.counts


_Flows = OrderedDict[FlowKey, Flow]


class _ProvisionalFlows:
    """Provisional flows, the least recently refreshed first, indexed by source prefix and by ufrag."""

    def __init__(self, policy: RelayPolicy) -> None:
        self._policy = policy
        # Ordered: taking the oldest of a plain dict walks over every entry that was deleted before it.
        self.flows: _Flows = OrderedDict()
        self._by_prefix: dict[tuple[int, int], _Flows] = {}
        self._by_ufrag: dict[str, _Flows] = {}

    def put(self, flow: Flow) -> None:
        """Append as the newest."""
        self.flows[flow.key] = flow
        self._by_prefix.setdefault(self._policy.source_prefix(flow.key.client.host), OrderedDict())[
            flow.key
        ] = flow
        self._by_ufrag.setdefault(flow.ufrag_tag, OrderedDict())[flow.key] = flow

    def pop(self, key: FlowKey) -> Flow | None:
        """Take a flow out of every index."""
        flow = self.flows.pop(key, None)
        if flow is not None:
            _discard(self._by_prefix, self._policy.source_prefix(key.client.host), key)
            _discard(self._by_ufrag, flow.ufrag_tag, key)
        return flow

    def make_room(self, flow: Flow) -> list[Flow]:
        """Evict the oldest of each group that is at its cap; called before ``put``."""
        policy = self._policy
        groups: tuple[tuple[_Flows, int], ...] = (
            (self._by_ufrag.get(flow.ufrag_tag, OrderedDict()), policy.max_addresses_per_ufrag),
            (
                self._by_prefix.get(policy.source_prefix(flow.key.client.host), OrderedDict()),
                policy.max_provisional_per_prefix,
            ),
            (self.flows, policy.max_provisional_flows),
        )
        evicted = []
        for group, cap in groups:
            if len(group) >= cap:
                oldest = next(iter(group))
                evicted.append(group[oldest])
                self.pop(oldest)
        return evicted

    def expire(self, now: float) -> list[Flow]:
        """Remove those that have been silent for too long. The order is by last_seen, so this stops at the first live one."""
        silent = []
        while self.flows:
            flow = next(iter(self.flows.values()))
            if flow.last_seen + self._policy.provisional_s > now:
                break
            self.pop(flow.key)
            silent.append(flow)
        return silent


def _discard(groups: dict[_Name, _Flows], name: _Name, key: FlowKey) -> None:
    group = groups[name]
    del group[key]
    if not group:
        del groups[name]


class FlowTable:
    """All flows of one worker. Lookups are O(1); expiry is amortised and never scans."""

    def __init__(self, policy: RelayPolicy) -> None:
        self._policy = policy
        self._assured: dict[FlowKey, Flow] = {}
        # One entry for each assured flow that is or was; the number only breaks ties.
        self._deadlines: list[tuple[float, int, Flow]] = []
        self._numbers = count()
        self._provisional = _ProvisionalFlows(policy)

    def __len__(self) -> int:
        return len(self._assured) + len(self._provisional.flows)

    def __iter__(self) -> Iterator[Flow]:
        """Assured flows first."""
        yield from self._assured.values()
        yield from self._provisional.flows.values()

    @property
    def assured_count(self) -> int:
        """Flows that carried media both ways."""
        return len(self._assured)

    def get(self, key: FlowKey) -> Flow | None:
        """The flow of that client on that VIP."""
        return self._assured.get(key) or self._provisional.flows.get(key)

    def create(self, key: FlowKey, transceiver: Address, ufrag_tag: str, now: float) -> list[Flow]:
        """Put a provisional flow in place of whatever the key had. Returns the flows evicted for it."""
        self.remove(key)
        flow = Flow(key, transceiver, ufrag_tag, now, now, now)
        evicted = self._provisional.make_room(flow)
        self._provisional.put(flow)
        return evicted

    def insert(self, flow: Flow) -> list[Flow] | None:
        """Take up a flow of another worker as it is. Returns the flows evicted for it, or None if the table is full."""
        if flow.assured:
            return [] if self.assure(flow) else None
        evicted = self._provisional.make_room(flow)
        self._provisional.put(flow)
        return evicted

    def is_over(self, flow: Flow, now: float) -> bool:
        """Whether the flow has been silent for as long as its kind may be."""
        life_s = self._policy.assured_s if flow.assured else self._policy.provisional_s
        return now - flow.last_seen > life_s

    def touch(self, flow: Flow, now: float) -> None:
        """Note a packet of the flow."""
        flow.last_seen = now
        if not flow.assured:
            self._provisional.pop(flow.key)
            self._provisional.put(flow)

    def assure(self, flow: Flow) -> bool:
        """Make a provisional flow assured; False if the table is full."""
        if len(self._assured) >= self._policy.max_assured_flows:
            return False
        if not flow.assured:
            self._provisional.pop(flow.key)
            flow.assured = True
        self._assured[flow.key] = flow
        self._watch(flow, flow.last_seen + self._policy.assured_s)
        return True

    def _watch(self, flow: Flow, deadline: float) -> None:
        heappush(self._deadlines, (deadline, next(self._numbers), flow))

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, if there is one."""
        if self._assured.pop(key, None) is None:
            self._provisional.pop(key)

    def expire(self, now: float) -> list[Flow]:
        """Remove and return the flows that fell silent."""
        silent = self._provisional.expire(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, flow = heappop(self._deadlines)
            if self._assured.get(flow.key) is not flow:
                continue
            deadline = flow.last_seen + self._policy.assured_s
            if deadline > now:
                self._watch(flow, deadline)
            else:
                del self._assured[flow.key]
                silent.append(flow)
        return silent
