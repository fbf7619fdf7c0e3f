"""Assured flows of a worker, in the supervisor's memory: a restarted worker adopts from it.

Nothing is kept of provisional flows, as anybody with a captured check can make one.
"""

from collections import OrderedDict

from wire.address import Address
from wire.flow_record import FlowRecord


class FlowMemory:
    """Records by client and VIP; at ``capacity`` the oldest gives way."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: OrderedDict[tuple[Address, Address], FlowRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def remember(self, record: FlowRecord) -> None:
        """Keep a flow that became assured."""
        self._records.pop((record.client, record.vip), None)
        if len(self._records) >= self._capacity:
            self._records.popitem(last=False)
        self._records[record.client, record.vip] = record

    def learn(self, record: FlowRecord) -> None:
        """Keep a flow of another worker, if there is room and none of this client and VIP is known."""
        if len(self._records) < self._capacity:
            self._records.setdefault((record.client, record.vip), record)

    def forget(self, client: Address, vip: Address) -> None:
        """Drop a flow that ended."""
        self._records.pop((client, vip), None)

    def records(self) -> list[FlowRecord]:
        """Every flow, the oldest first."""
        return list(self._records.values())
