"""One flow: client_addr → transceiver, with what is known of both sides. The rules are the flow table's."""

from dataclasses import dataclass
from typing import NamedTuple

from wire.address import Address


class FlowKey(NamedTuple):
    """What a flow is looked up by: the client and the VIP that it sends to."""

    client: Address
    vip: Address


@dataclass(slots=True)
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

    def goes_on_from(self, stored: "Flow") -> bool:
        """Whether what is stored is of the same flow: an assured one keeps its counts over an ICE restart."""
        if not self.assured:
            return self.is_same_session(stored)
        return stored.assured and self.transceiver == stored.transceiver

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
