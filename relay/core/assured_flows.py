"""Assured flows as rows of one array: a million of them are small, and a batch of packets is looked up at once.

A row has numbers only; its name, the 36 bytes of an SPP header behind the magic, is the key of a dict (whose hash of
bytes is keyed, so nobody can choose names that collide). ``get`` gives a copy, and ``update`` writes it back.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from relay.core.flow import Flow, FlowKey
from relay.core.transceivers import Transceivers
from wire.address import Address
from wire.flow_record import pack_target
from wire.spp import flow_name, parse_flow_name

Rows = npt.NDArray[np.intp]

# Both describe the same memory.
_RECORD = Struct("<IH4?6x8s4d8Q")
_DTYPE = np.dtype(
    [
        ("transceiver", "<u4"),
        ("vip", "<u2"),
        ("media_up", "?"),
        ("media_down", "?"),
        ("released", "?"),
        ("stored", "?"),
        ("", "V6"),
        ("ufrag_tag", "S8"),
        ("last_seen", "<f8"),
        ("down_seen_at", "<f8"),
        ("ufrag_seen_at", "<f8"),
        ("created_at", "<f8"),
        ("counts", "<u8", 4),
        ("stored_counts", "<u8", 4),
    ]
)
# Of a row without a flow: later than any time to look for.
_NEVER = float("inf")
# Rows that one call of `expire` looks at: about 0.2 ms.
_EXPIRY_STEP = 65_536


class AssuredFlows:
    """See the top of this file. Room for ``capacity``; the memory is taken as flows come. Flows are those of ``vips``."""

    def __init__(self, capacity: int, transceivers: Transceivers, vips: Sequence[Address]) -> None:
        self._capacity = capacity
        self._vip_index = {vip: index for index, vip in enumerate(vips)}
        self._transceivers = transceivers
        # Zeros are not touched before they are written.
        self._rows = np.zeros(capacity, _DTYPE)
        self._memory = self._rows.view(np.uint8).data
        self._row_of: dict[bytes, int] = {}
        self._names: list[bytes] = []
        self._free: list[int] = []
        self._expired_to = 0
        # Columns for whole batches: views, one cell a row.
        self.transceiver: npt.NDArray[np.uint32] = self._rows["transceiver"]
        self.vip: npt.NDArray[np.uint16] = self._rows["vip"]
        self.released: npt.NDArray[np.bool_] = self._rows["released"]
        self.last_seen: npt.NDArray[np.float64] = self._rows["last_seen"]
        self.down_seen_at: npt.NDArray[np.float64] = self._rows["down_seen_at"]
        self.packets_up, self.bytes_up, self.packets_down, self.bytes_down = (
            self._rows["counts"][:, index] for index in range(4)
        )

    def __len__(self) -> int:
        return len(self._row_of)

    def __iter__(self) -> Iterator[Flow]:
        for name, row in self._row_of.items():
            yield self._flow(FlowKey(*parse_flow_name(name)), row)

    def find(self, names: Sequence[bytes]) -> Rows:
        """The row of each name; -1 where there is none."""
        return np.fromiter(map(self._row_of.get, names, repeat(-1)), np.intp, len(names))

    def get(self, key: FlowKey) -> Flow | None:
        """The flow as it stands; ``update`` writes changes back."""
        row = self._row_of.get(flow_name(*key))
        return None if row is None else self._flow(key, row)

    def insert(self, flow: Flow) -> bool:
        """Take up a flow, or write one that is here; False if there is no room."""
        name = flow_name(*flow.key)
        row = self._row_of.get(name)
        if row is None:
            if len(self._row_of) >= self._capacity:
                return False
            row = self._new_row(name)
        self._write(flow, row)
        return True

    def update(self, flow: Flow) -> None:
        """Write a flow that may have changed, if it is here."""
        row = self._row_of.get(flow_name(*flow.key))
        if row is not None:
            self._write(flow, row)

    def _write(self, flow: Flow, row: int) -> None:
        _RECORD.pack_into(
            self._memory,
            row * _RECORD.size,
            self._transceivers.number(flow.transceiver),
            self._vip_index[flow.key.vip],
            flow.media_up,
            flow.media_down,
            flow.released,
            flow.stored,
            flow.ufrag_tag.encode(),
            flow.last_seen,
            flow.down_seen_at,
            flow.ufrag_seen_at,
            flow.created_at,
            *flow.counts,
            *flow.stored_counts,
        )

    def remove(self, key: FlowKey) -> bool:
        """Forget a flow; whether there was one."""
        row = self._row_of.pop(flow_name(*key), None)
        if row is None:
            return False
        self._release(row)
        return True

    def expire(self, before: float) -> list[Flow]:
        """Remove and return flows that were not seen after ``before``; each call looks at some of the rows, in turn."""
        begin = self._expired_to if self._expired_to < len(self._names) else 0
        self._expired_to = begin + _EXPIRY_STEP
        silent = np.flatnonzero(self.last_seen[begin : min(self._expired_to, len(self._names))] <= before)
        return [self._take(int(row)) for row in silent + begin]

    def used_transceivers(self) -> npt.NDArray[np.uint32]:
        """Numbers that flows have, many of them more than once."""
        return self.transceiver[: len(self._names)][self.last_seen[: len(self._names)] < _NEVER]

    def changed(self, since: float) -> list[FlowKey]:
        """Of flows seen since then whose counts are not stored as they are."""
        rows = self._rows[: len(self._names)]
        seen = (rows["last_seen"] >= since) & (rows["last_seen"] < _NEVER)
        changed = np.flatnonzero(seen & (rows["counts"] != rows["stored_counts"]).any(axis=1))
        return [FlowKey(*parse_flow_name(self._names[row])) for row in changed]

    @property
    def row_count(self) -> int:
        """Rows that have been used: no flow is in a later one."""
        return len(self._names)

    def records(self, begin: int, end: int, since: float) -> list[bytes]:
        """Of flows in these rows that were seen since then, packed as a FlowRecord is."""
        end = min(end, len(self._names))
        seen = self.last_seen[begin:end]
        alive = (np.flatnonzero((seen >= since) & (seen < _NEVER)) + begin).tolist()
        addresses, tags = self._transceivers.addresses, self._rows["ufrag_tag"]
        return [
            self._names[row] + pack_target(addresses[self.transceiver[row]], tags[row].decode("ascii"))
            for row in alive
        ]

    def _take(self, row: int) -> Flow:
        name = self._names[row]
        flow = self._flow(FlowKey(*parse_flow_name(name)), row)
        del self._row_of[name]
        self._release(row)
        return flow

    def _new_row(self, name: bytes) -> int:
        if self._free:
            row = self._free.pop()
            self._names[row] = name
        else:
            row = len(self._names)
            self._names.append(name)
        self._row_of[name] = row
        return row

    def _release(self, row: int) -> None:
        self._names[row] = b""
        self.last_seen[row] = _NEVER
        self._free.append(row)

    def _flow(self, key: FlowKey, row: int) -> Flow:
        fields: tuple[Any, ...] = _RECORD.unpack_from(self._memory, row * _RECORD.size)
        transceiver, _, media_up, media_down, released, stored = fields[:6]
        tag, last_seen, down_seen_at, ufrag_seen_at, created_at = fields[6:11]
        packets_up, bytes_up, packets_down, bytes_down = fields[11:15]
        return Flow(
            key,
            self._transceivers.addresses[transceiver],
            tag.rstrip(b"\0").decode("ascii"),
            ufrag_seen_at,
            created_at,
            last_seen,
            True,
            media_up,
            media_down,
            False,
            released,
            stored,
            down_seen_at,
            packets_up,
            bytes_up,
            packets_down,
            bytes_down,
            fields[15:],
        )
