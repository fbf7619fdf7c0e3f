"""The flows of all workers in the kernel's maps, as a worker reads and writes them.

A worker writes a flow when it is made or changes state, and again some seconds later while it carries packets; it reads
one for a packet that it has no flow for. So clients can go from worker to worker, and nothing is lost with a worker.

XDP counts in the same entry. A worker reads it, adds what it has counted itself since, and writes it: what XDP counts in
these few microseconds is forwarded and not counted.
"""

import contextlib
import ctypes
import struct
from collections.abc import Sequence

from relay.core.flow import Flow, FlowKey
from relay.core.flow_table import FlowTable
from relay.core.forwarding import FlowNotice
from relay.core.policy import Vip
from relay.dataplane.bpf.abi import UFRAG_TAG_BYTES, FlowC, FlowFlag, FlowKeyC
from relay.dataplane.bpf.syscall import MapElements
from wire.address import Address

# struct flow_key: client's host, port in network order, group
_KEY = struct.Struct("=16s2sH")
# struct flow: endpoint, flags, client's link path, last seen, packets and bytes up and down, down seen, ufrag seen, created
_FLOW = struct.Struct(f"=16s2s2xI24sQ4Q3Q{UFRAG_TAG_BYTES}s")
_NO_PATH = b""
_NANO = 1_000_000_000
# Flows written again at each tick, about 3 ms of a worker's time, in which packets wait; more where a round would
# otherwise take longer than a silent provisional flow lives.
_REFRESHED_AT_ONCE = 500
_MAX_TICKS_A_ROUND = 20
_LONG_AGO_S = float("-inf")


class KernelFlowStore:
    """See the top of this file. ``vips`` are the policy's: the kernel knows a flow by the address that packets arrive at."""

    def __init__(self, flows_fd: int, provisional_fd: int, vips: Sequence[Vip]) -> None:
        self._group = {vip.address: group for group, vip in enumerate(vips)}
        self._key, self._value = FlowKeyC(), FlowC()
        self._assured = MapElements(flows_fd, self._key, self._value)
        self._provisional = MapElements(provisional_fd, self._key, self._value)
        self._key_buffer = (ctypes.c_char * _KEY.size).from_buffer(self._key)
        self._value_buffer = (ctypes.c_char * _FLOW.size).from_buffer(self._value)
        self._to_refresh: list[FlowKey] = []
        self._refreshed_at_once = _REFRESHED_AT_ONCE
        self._round_began = _LONG_AGO_S

    def read(self, key: FlowKey) -> Flow | None:
        """What is stored of a flow, or None."""
        self._name(key)
        if not self._assured.lookup() and not self._provisional.lookup():
            return None
        return self._unpack(key)

    def write(self, flow: Flow) -> bool:
        """Store a flow as it is now, over what is there of another session; False if the map is full."""
        shared = self.read(flow.key)
        return self._write(flow, shared if shared is not None and flow.goes_on_from(shared) else None)

    def _write(self, flow: Flow, shared: Flow | None) -> bool:
        client_path = _NO_PATH
        if shared is not None:
            flow.catch_up(shared)
            client_path = bytes(self._value.client_path)
        flow.stored = False
        self._name(flow.key)
        self._pack(flow, client_path)
        try:
            if flow.assured:
                self._assured.update()
                self._provisional.delete()
            else:
                self._provisional.update()
                self._assured.delete()
        except OSError:
            return False
        flow.stored, flow.stored_counts = True, flow.counts
        return True

    def note(self, notice: FlowNotice) -> bool:
        """Follow a change that the core tells of; False if the flow could not be stored."""
        if not notice.ended:
            return self.write(notice.flow)
        self._name(notice.flow.key)
        with contextlib.suppress(OSError):
            self._assured.delete()
            self._provisional.delete()
        return True

    def refresh(self, flows: FlowTable, now: float) -> None:
        """Store some of those flows anew that carried packets since their last turn; call at each tick."""
        if not self._to_refresh:
            began, self._round_began = self._round_began, now
            self._to_refresh = flows.changed(began)
            self._refreshed_at_once = max(_REFRESHED_AT_ONCE, len(self._to_refresh) // _MAX_TICKS_A_ROUND)
        due = self._to_refresh[: self._refreshed_at_once]
        self._to_refresh = self._to_refresh[self._refreshed_at_once :]
        for key in due:
            flow = flows.get(key)
            shared = self.read(key) if flow is not None and flow.stored else None
            # What is there of another session is another worker's.
            if flow is not None and shared is not None and shared.is_same_session(flow):
                self._write(flow, shared)
                flows.save(flow)

    def _name(self, key: FlowKey) -> None:
        _KEY.pack_into(self._key_buffer, 0, *_endpoint(key.client), self._group[key.vip])

    def _pack(self, flow: Flow, client_path: bytes) -> None:
        flags = (
            flow.assured * FlowFlag.FLOW_IS_ASSURED
            | flow.media_up * FlowFlag.FLOW_MEDIA_UP
            | flow.media_down * FlowFlag.FLOW_MEDIA_DOWN
            | flow.released * FlowFlag.FLOW_IS_RELEASED
        )
        _FLOW.pack_into(
            self._value_buffer,
            0,
            *_endpoint(flow.transceiver),
            flags,
            client_path,
            int(flow.last_seen * _NANO),
            *flow.counts,
            int(flow.down_seen_at * _NANO) if flow.down_seen_at > _LONG_AGO_S else 0,
            int(flow.ufrag_seen_at * _NANO),
            int(flow.created_at * _NANO),
            flow.ufrag_tag.encode(),
        )

    def _unpack(self, key: FlowKey) -> Flow:
        (host, port, flags, _, last_seen, *counts, down_seen, ufrag_seen, created, tag) = _FLOW.unpack_from(
            self._value_buffer
        )
        packets_up, bytes_up, packets_down, bytes_down = counts
        return Flow(
            key=key,
            transceiver=Address.from_mapped(host, int.from_bytes(port, "big")),
            ufrag_tag=tag.rstrip(b"\0").decode("ascii", errors="replace"),
            ufrag_seen_at=ufrag_seen / _NANO,
            created_at=created / _NANO,
            last_seen=last_seen / _NANO,
            assured=bool(flags & FlowFlag.FLOW_IS_ASSURED),
            media_up=bool(flags & FlowFlag.FLOW_MEDIA_UP),
            media_down=bool(flags & FlowFlag.FLOW_MEDIA_DOWN),
            released=bool(flags & FlowFlag.FLOW_IS_RELEASED),
            stored=True,
            down_seen_at=down_seen / _NANO if down_seen else _LONG_AGO_S,
            packets_up=packets_up,
            bytes_up=bytes_up,
            packets_down=packets_down,
            bytes_down=bytes_down,
            stored_counts=(packets_up, bytes_up, packets_down, bytes_down),
        )


def _endpoint(address: Address) -> tuple[bytes, bytes]:
    return address.mapped, address.port.to_bytes(2, "big")
