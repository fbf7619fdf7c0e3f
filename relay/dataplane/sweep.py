"""A walk over all flows in the kernel's maps: how many there are, where they lead, and an end to those that fell silent.

What XDP forwards no worker sees, so the end of a flow is the supervisor's to find. A flow takes about a microsecond.
"""

import time
from collections.abc import Iterator, Mapping

import numpy as np

from relay.core.policy import RelayPolicy
from relay.dataplane.bpf.abi import FlowC, FlowKeyC
from relay.dataplane.bpf.maps import BpfMap

# A worker stores what it forwards itself within about 5 s (flow_store.py).
_MARGIN_S = 10.0
_KEY, _FLOW = np.dtype(FlowKeyC), np.dtype(FlowC)
_MAPPED_IPV4 = bytes(10) + b"\xff\xff"


class Sweep:
    """One walk. ``assured`` and ``provisional`` count what stays, ``expired`` what went; ``hosts`` are the transceivers'."""

    def __init__(self, policy: RelayPolicy, maps: Mapping[str, BpfMap]) -> None:
        self.assured = self.provisional = self.expired = 0
        self.hosts: set[bytes] = set()
        self._policy = policy
        self._maps = maps

    def steps(self) -> Iterator[None]:
        """Do it, some hundred flows a step, so that others have their turn. Raises OSError."""
        for live in self._walk("flows", self._policy.assured_s):
            self.assured += live
            yield
        for live in self._walk("provisional", self._policy.provisional_s):
            self.provisional += live
            yield

    def _walk(self, name: str, life_s: float) -> Iterator[int]:
        """How many of each batch stay."""
        bpf_map = self._maps[name]
        oldest_ns = time.monotonic_ns() - int((life_s + _MARGIN_S) * 1e9)
        for keys, values in bpf_map.batches():
            flows = np.frombuffer(values, dtype=_FLOW)
            is_silent = flows["last_seen_ns"].astype(np.int64) < oldest_ns
            silent = np.frombuffer(keys, dtype=_KEY)[is_silent]
            if len(silent):
                self.expired += bpf_map.delete_all(silent.tobytes(), len(silent))
            hosts = np.unique(flows["transceiver"]["host"][~is_silent], axis=0)
            self.hosts |= {_packed(host.tobytes()) for host in hosts}
            yield len(flows) - len(silent)


def _packed(mapped: bytes) -> bytes:
    return mapped[12:] if mapped.startswith(_MAPPED_IPV4) else mapped
