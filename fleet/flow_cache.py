"""The flow cache: assured flows, kept where they outlive the worker that carries them.

This one is in the supervisor's memory and serves one host: a restarted worker adopts from it. Nothing is kept of
provisional flows, as anybody with a captured check can make one.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Self

from wire.address import Address


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """What a worker needs to go on with a flow of another."""

    client: Address
    vip: Address
    transceiver: Address
    ufrag_tag: str

    def to_json(self) -> dict[str, str]:
        """The form on the channel between workers and supervisor."""
        return {
            "client": str(self.client),
            "vip": str(self.vip),
            "transceiver": str(self.transceiver),
            "ufrag_tag": self.ufrag_tag,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The inverse of ``to_json``. Raises KeyError or ValueError."""
        client, vip, transceiver = (
            Address.parse(document[name]) for name in ("client", "vip", "transceiver")
        )
        return cls(client, vip, transceiver, document["ufrag_tag"])


class FlowCache:
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
