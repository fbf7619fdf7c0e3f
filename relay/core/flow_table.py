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
from typing import TypeVar

import numpy as np

from relay.core.assured_flows import AssuredFlows
from relay.core.flow import Flow, FlowKey
from relay.core.policy import RelayPolicy
from relay.core.transceivers import Transceivers
from wire.address import Address

_Name = TypeVar("_Name")


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

    def refresh(self, flow: Flow) -> None:
        """Make it the newest."""
        self.flows.move_to_end(flow.key)
        self._by_prefix[self._policy.source_prefix(flow.key.client.host)].move_to_end(flow.key)
        self._by_ufrag[flow.ufrag_tag].move_to_end(flow.key)

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
    """All flows of one worker. Lookups are O(1); expiry is amortised and never looks at all flows.

    A provisional flow is one object until it ends. What is returned of an assured flow is a copy: ``touch`` and ``save``
    write it back.
    """

    def __init__(self, policy: RelayPolicy) -> None:
        self._policy = policy
        self.transceivers = Transceivers()
        self.assured = AssuredFlows(
            policy.max_assured_flows, self.transceivers, [vip.address for vip in policy.vips]
        )
        self._provisional = _ProvisionalFlows(policy)

    def __len__(self) -> int:
        return len(self.assured) + len(self._provisional.flows)

    def __iter__(self) -> Iterator[Flow]:
        """Assured flows first."""
        yield from self.assured
        yield from self._provisional.flows.values()

    def get(self, key: FlowKey) -> Flow | None:
        """The flow of that client on that VIP."""
        return self._provisional.flows.get(key) or self.assured.get(key)

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
        """Note a packet of the flow, and whatever else has changed of it."""
        flow.last_seen = now
        if flow.assured:
            self.assured.update(flow)
        else:
            self._provisional.refresh(flow)

    def save(self, flow: Flow) -> None:
        """Note what has changed of a flow without a packet."""
        if flow.assured:
            self.assured.update(flow)

    def changed(self, since: float) -> list[FlowKey]:
        """Of flows seen since then whose counts are not stored as they are."""
        provisional = self._provisional.flows.values()
        changed = [f.key for f in provisional if f.last_seen >= since and f.counts != f.stored_counts]
        return [*self.assured.changed(since), *changed]

    def assure(self, flow: Flow) -> bool:
        """Make a provisional flow assured; False if the table is full."""
        if not self.assured.insert(flow):
            return False
        self._provisional.pop(flow.key)
        flow.assured = True
        return True

    def remove(self, key: FlowKey) -> None:
        """Forget a flow, if there is one."""
        if self._provisional.pop(key) is None:
            self.assured.remove(key)

    def expire(self, now: float) -> list[Flow]:
        """Remove and return flows that fell silent; of a large table, a part at each call."""
        silent = [*self._provisional.expire(now), *self.assured.expire(now - self._policy.assured_s)]
        if self.transceivers.is_due_for_clearing:
            self.transceivers.forget_all_but(np.unique(self.assured.used_transceivers()).tolist())
        return silent
