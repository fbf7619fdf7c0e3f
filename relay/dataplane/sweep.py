"""A walk over all flows in the kernel's maps: how many there are, where they lead, and an end to those that fell silent.
Where a cache is to be told of them, also what to tell.

What XDP forwards no worker sees, so the end of a flow is the supervisor's to find. A flow takes about a microsecond.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from relay.core.policy import RelayPolicy
from relay.dataplane.bpf.abi import FlowC, FlowKeyC
from relay.dataplane.bpf.maps import BpfMap

# A worker stores what it forwards itself within about 5 s (flow_store.py).
_MARGIN_S = 10.0
_KEY, _FLOW = np.dtype(FlowKeyC), np.dtype(FlowC)
Rows = npt.NDArray[Any]
_MAPPED_IPV4 = bytes(10) + b"\xff\xff"


# What FlowRecord.pack makes of a flow, in its order.
_RECORD = np.dtype(
    [
        ("client_host", "u1", 16),
        ("vip_host", "u1", 16),
        ("client_port", ">u2"),
        ("vip_port", ">u2"),
        ("transceiver_host", "u1", 16),
        ("transceiver_port", ">u2"),
        ("ufrag_tag", "S1", 8),
    ]
)


class Sweep:
    """One walk. ``assured`` and ``provisional`` count what stays, ``expired`` what went; ``hosts`` are the transceivers'.

    told_s: assured flows that were seen within so many seconds are to be told of; 0: none is.
    """

    def __init__(self, policy: RelayPolicy, maps: Mapping[str, BpfMap], *, told_s: float = 0.0) -> None:
        self.assured = self.provisional = self.expired = 0
        self.hosts: set[bytes] = set()
        self._policy = policy
        self._maps = maps
        self._told_s = told_s
        vips = [vip.address for vip in policy.vips]
        self._vip_hosts = np.array([list(vip.mapped) for vip in vips], np.uint8).reshape(-1, 16)
        self._vip_ports = np.array([vip.port for vip in vips], np.uint16)

    def steps(self) -> Iterator[list[bytes]]:
        """Do it, some hundred flows a step, so that others have their turn; each tells of some, packed as a FlowRecord is.

        Raises OSError.
        """
        for live, keys, flows in self._walk("flows", self._policy.assured_s):
            self.assured += live
            yield self._records(keys, flows) if self._told_s else []
        for live, _, _ in self._walk("provisional", self._policy.provisional_s):
            self.provisional += live
            yield []

    def _records(self, keys: Rows, flows: Rows) -> list[bytes]:
        since_ns = time.monotonic_ns() - int(self._told_s * 1e9)
        # What is in a map was written by a worker, and a worker may have been broken into.
        told = (flows["last_seen_ns"].astype(np.int64) >= since_ns) & (keys["group"] < len(self._vip_ports))
        keys, flows = keys[told], flows[told]
        records = np.zeros(len(keys), _RECORD)
        records["client_host"], records["client_port"] = keys["client_host"], keys["client_port"]
        records["vip_host"] = self._vip_hosts[keys["group"]]
        records["vip_port"] = self._vip_ports[keys["group"]]
        records["transceiver_host"] = flows["transceiver"]["host"]
        records["transceiver_port"] = flows["transceiver"]["port"]
        records["ufrag_tag"] = flows["ufrag_tag"]
        packed: list[bytes] = records.view(f"V{_RECORD.itemsize}").tolist()
        return packed

    def _walk(self, name: str, life_s: float) -> Iterator[tuple[int, Rows, Rows]]:
        """Of each batch, how many stay; keys and flows of all."""
        bpf_map = self._maps[name]
        oldest_ns = time.monotonic_ns() - int((life_s + _MARGIN_S) * 1e9)
        for keys, values in bpf_map.batches():
            flows, named = np.frombuffer(values, dtype=_FLOW), np.frombuffer(keys, dtype=_KEY)
            is_silent = flows["last_seen_ns"].astype(np.int64) < oldest_ns
            silent = named[is_silent]
            if len(silent):
                self.expired += bpf_map.delete_all(silent.tobytes(), len(silent))
            hosts = np.unique(flows["transceiver"]["host"][~is_silent], axis=0)
            self.hosts |= {_packed(host.tobytes()) for host in hosts}
            yield len(flows) - len(silent), named, flows


def _packed(mapped: bytes) -> bytes:
    return mapped[12:] if mapped.startswith(_MAPPED_IPV4) else mapped
