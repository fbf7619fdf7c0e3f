"""The flows of all workers in the kernel's maps, as a worker reads and writes them.

A worker writes a flow when it is made or changes state, and again some seconds later while it carries packets; it reads
one for a packet that it has no flow for. So clients can go from worker to worker, and nothing is lost with a worker.
"""

import contextlib
import ctypes
import struct
from collections.abc import Iterable, Sequence

from relay.core.flow_table import Flow, FlowKey
from relay.core.forwarding import FlowNotice
from relay.core.policy import Vip
from relay.dataplane.bpf.abi import UFRAG_BYTES, FlowC, FlowFlag, FlowKeyC
from relay.dataplane.bpf.syscall import MapElements
from wire.address import Address

# struct endpoint, twice: host, port in network order, padding
_KEY = struct.Struct("16s2s2x16s2s2x")
# struct flow: endpoint, flags, created, last seen, ufrag seen, down seen, packets and bytes up and down, ufrag
_FLOW = struct.Struct(f"=16s2s2xI4Q4Q{UFRAG_BYTES}s")
_NANO = 1_000_000_000
# Flows written again at each tick, about 3 ms of a worker's time, in which packets wait; more where a round would
# otherwise take longer than a silent provisional flow lives.
_REFRESHED_AT_ONCE = 500
_MAX_TICKS_A_ROUND = 20
_LONG_AGO_S = float("-inf")


class KernelFlowStore:
    """See the top of this file. ``vips`` are the policy's: the kernel knows a flow by the address that packets arrive at."""

    def __init__(self, flows_fd: int, provisional_fd: int, vips: Sequence[Vip]) -> None:
        self._listen = {vip.address: _endpoint(vip.listen) for vip in vips}
        self._key, self._value = FlowKeyC(), FlowC()
        self._assured = MapElements(flows_fd, self._key, self._value)
        self._provisional = MapElements(provisional_fd, self._key, self._value)
        self._key_buffer = (ctypes.c_char * _KEY.size).from_buffer(self._key)
        self._value_buffer = (ctypes.c_char * _FLOW.size).from_buffer(self._value)
        self._to_refresh: list[Flow] = []
        self._refreshed_at_once = _REFRESHED_AT_ONCE
        self._round_began = _LONG_AGO_S

    def read(self, key: FlowKey) -> Flow | None:
        """What is stored of a flow, or None."""
        self._name(key)
        if not self._assured.lookup() and not self._provisional.lookup():
            return None
        return self._unpack(key)

    def write(self, flow: Flow) -> bool:
        """Store a flow as it is now; False if the map is full or the ufrag is longer than ours are."""
        server_ufrag = flow.server_ufrag.encode()
        flow.stored = False
        if len(server_ufrag) >= UFRAG_BYTES:
            return False
        self._name(flow.key)
        self._pack(flow, server_ufrag)
        try:
            if flow.assured:
                self._assured.update()
                self._provisional.delete()
            else:
                self._provisional.update()
                self._assured.delete()
        except OSError:
            return False
        flow.stored = True
        return True

    def note(self, notice: FlowNotice) -> bool:
        """Follow a change that the core tells of; False if the flow could not be stored."""
        if not notice.ended:
            return self.write(notice.flow)
        notice.flow.stored = False
        self._name(notice.flow.key)
        with contextlib.suppress(OSError):
            self._assured.delete()
            self._provisional.delete()
        return True

    def refresh(self, flows: Iterable[Flow], now: float) -> None:
        """Store some of those flows anew that carried packets since their last turn; call at each tick."""
        if not self._to_refresh:
            began, self._round_began = self._round_began, now
            self._to_refresh = [flow for flow in flows if flow.last_seen >= began]
            self._refreshed_at_once = max(_REFRESHED_AT_ONCE, len(self._to_refresh) // _MAX_TICKS_A_ROUND)
        due = self._to_refresh[: self._refreshed_at_once]
        self._to_refresh = self._to_refresh[self._refreshed_at_once :]
        for flow in due:
            if flow.stored and self._is_ours(flow):  # stored: not if it ended meanwhile
                self.write(flow)

    def _is_ours(self, flow: Flow) -> bool:
        """Whether no other worker has gone on with the flow, or ended it."""
        shared = self.read(flow.key)
        return shared is not None and shared.last_seen <= flow.last_seen

    def _name(self, key: FlowKey) -> None:
        client = key.client
        _KEY.pack_into(
            self._key_buffer, 0, client.mapped, client.port.to_bytes(2, "big"), *self._listen[key.vip]
        )

    def _pack(self, flow: Flow, server_ufrag: bytes) -> None:
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
            int(flow.created_at * _NANO),
            int(flow.last_seen * _NANO),
            int(flow.ufrag_seen_at * _NANO),
            int(flow.down_seen_at * _NANO) if flow.down_seen_at > _LONG_AGO_S else 0,
            flow.packets_up,
            flow.bytes_up,
            flow.packets_down,
            flow.bytes_down,
            server_ufrag,
        )

    def _unpack(self, key: FlowKey) -> Flow:
        (host, port, flags, created, last_seen, ufrag_seen, down_seen, *counts, server_ufrag) = (
            _FLOW.unpack_from(self._value_buffer)
        )
        packets_up, bytes_up, packets_down, bytes_down = counts
        return Flow(
            key=key,
            transceiver=Address.from_mapped(host, int.from_bytes(port, "big")),
            server_ufrag=server_ufrag.rstrip(b"\0").decode("ascii", errors="replace"),
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
        )


def _endpoint(address: Address) -> tuple[bytes, bytes]:
    return address.mapped, address.port.to_bytes(2, "big")
