"""A relay core between one client and its fleet, with a clock that the test turns; and a store of flows in memory."""

from dataclasses import replace
from typing import Any

from relay.core.flow import Flow, FlowKey
from relay.core.forwarding import FlowNotice, FlowStore, Outcome, RelayCore
from relay.core.verdict import FlowEvent
from tests.relay.network import (
    CALL,
    CLIENT_HELLO,
    CLIENT_V4,
    KEYS,
    POLICY,
    SERVER_HELLO,
    UNIX_S,
    Call,
    check,
    spp,
)
from wire.address import Address


class MemoryStore:
    """Flows of several workers, as the kernel's maps keep them (relay/dataplane/bpf/flow_store.py)."""

    def __init__(self) -> None:
        self.flows: dict[FlowKey, Flow] = {}
        self.reads = 0

    def read(self, key: FlowKey) -> Flow | None:
        self.reads += 1
        stored = self.flows.get(key)
        return None if stored is None else replace(stored)

    def write(self, flow: Flow) -> None:
        shared = self.flows.get(flow.key)
        if shared is not None and flow.goes_on_from(shared):
            flow.catch_up(shared)
        flow.stored, flow.stored_counts = True, flow.counts
        self.flows[flow.key] = replace(flow)

    def note(self, notice: FlowNotice) -> None:
        if notice.ended:
            self.flows.pop(notice.flow.key, None)
        else:
            self.write(notice.flow)


class Relay:
    """``changes`` are those of the policy."""

    def __init__(self, store: FlowStore | None = None, *, has_cache: bool = False, **changes: Any) -> None:
        self.policy = replace(POLICY, **changes)
        self.core = RelayCore(self.policy, KEYS, unix_s=UNIX_S, store=store, has_cache=has_cache)
        self.now = 1000.0

    def client_sends(self, datagram: bytes, client: Address = CLIENT_V4, vip_index: int = 0) -> Outcome:
        return self.core.receive_from_client(datagram, client, vip_index, self.now)

    def transceiver_sends(
        self, payload: bytes, transceiver: Address, client: Address = CLIENT_V4, vip_index: int = 0
    ) -> Outcome:
        datagram = spp(client, self.policy.vips[vip_index].address, payload)
        return self.core.receive_from_fleet(datagram, transceiver, self.now)

    def let_pass(self, seconds: float) -> None:
        """Time, with the timer at its end."""
        self.now += seconds
        self.core.handle_timer(self.now, UNIX_S + self.now - 1000.0)

    def connect(self, call: Call = CALL, client: Address = CLIENT_V4, vip_index: int = 0) -> Flow:
        """A check, then DTLS both ways."""
        self.client_sends(check(call), client, vip_index)
        self.client_sends(CLIENT_HELLO, client, vip_index)
        self.transceiver_sends(SERVER_HELLO, call.transceiver, client, vip_index)
        return self.flow_of(client, vip_index)

    def key_of(self, client: Address = CLIENT_V4, vip_index: int = 0) -> FlowKey:
        return FlowKey(client, self.policy.vips[vip_index].address)

    def find_flow(self, client: Address = CLIENT_V4, vip_index: int = 0) -> Flow | None:
        return self.core.flows.get(self.key_of(client, vip_index))

    def flow_of(self, client: Address = CLIENT_V4, vip_index: int = 0) -> Flow:
        flow = self.find_flow(client, vip_index)
        assert flow is not None
        return flow

    def count(self, event: FlowEvent) -> int:
        return self.core.events[event]

    def notices(self) -> list[FlowNotice]:
        """Those since the last call."""
        return list(iter(self.core.next_notice, None))

    def told(self) -> list[tuple[Address, str, bool]]:
        """Notices since the last call as (client, ufrag_tag, ended)."""
        return [(flow.key.client, flow.ufrag_tag, ended) for flow, ended, _ in self.notices()]
