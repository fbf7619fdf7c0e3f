"""Whatever comes in whatever order: bounds hold, a packet leaves for whom it may, once, and in its turn."""

from collections import defaultdict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.core import recall
from relay.core.forwarding import RelayCore
from relay.core.recall import Recall
from relay.core.verdict import Verdict
from tests.relay.network import CALL, KEYS, OTHER_CALL, POLICY, RTP, SERVER_HELLO, UNIX_S, Call, check, spp
from wire.address import Address
from wire.flow_record import FlowRecord

CLIENTS = [Address.parse(f"198.51.100.{number}:40000") for number in range(1, 4)]
CALLS = {CALL.transceiver: CALL, OTHER_CALL.transceiver: OTHER_CALL}
FOREIGN = Address.parse("10.2.0.1:5000")
FLEET = st.sampled_from(list(CALLS))
WHO = st.sampled_from(CLIENTS)
VIP = POLICY.vips[0].address


class Clients(RuleBasedStateMachine):
    """What a packet may do is known from what was sent, found, asked, confirmed and checked, not from the relay's state."""

    @initialize(clients=st.integers(1, 3), size=st.integers(20, 120), missed=st.integers(1, 3))
    def start(self, clients: int, size: int, missed: int) -> None:
        self.patch = pytest.MonkeyPatch()
        for name, bound in (
            ("MAX_CLIENTS", clients),
            ("MAX_BYTES", size),
            ("MAX_MISSED", missed),
            ("MAX_PACKETS", 3),
        ):
            self.patch.setattr(recall, name, bound)
        self.clients, self.size, self.missed = clients, size, missed
        self.core = RelayCore(POLICY, KEYS, unix_s=UNIX_S, has_cache=True)
        self.now = 1000.0
        self.numbers = count()
        # Packets that are held, of each client in the order in which they came.
        self.held: dict[Address, list[bytes]] = defaultdict(list)
        # To whom each client's packets may go.
        self.may_get: dict[Address, set[Address]] = defaultdict(set)
        # What the cache said first while a client's packets were held.
        self.found: dict[Address, Address] = {}
        self.last_left: dict[Address, int] = {}

    @property
    def recall(self) -> Recall:
        assert self.core.recall is not None
        return self.core.recall

    def name(self, client: Address) -> bytes:
        return FlowRecord(client, VIP, CALL.transceiver, "").name

    def leaves(self, client: Address, packet: bytes, transceiver: Address) -> None:
        assert transceiver in self.may_get[client]
        number = int(packet[len(RTP) :])
        assert number > self.last_left.get(client, -1), "it was overtaken"
        self.last_left[client] = number

    def drain(self) -> None:
        """As the data path does after each packet, and before that packet leaves."""
        for key, packet, transceiver in self.recall.take_departures():
            if not packet:
                assert transceiver == self.found[key.client] != FOREIGN, "nobody found whom it asks"
                continue
            self.held[key.client].remove(packet)
            if not self.held[key.client]:
                self.found.pop(key.client, None)
            if transceiver is not None:
                self.leaves(key.client, packet, transceiver)

    @rule(client=WHO)
    def media(self, client: Address) -> None:
        packet = RTP + str(next(self.numbers)).encode()
        outcome = self.core.receive_from_client(packet, client, 0, self.now)
        self.drain()
        if outcome.verdict is Verdict.HOLD:
            self.held[client].append(packet)
        elif outcome.destination is not None:
            self.leaves(client, packet, outcome.destination)
            assert not self.held[client]
        else:
            assert outcome.verdict in (Verdict.DROP_UNKNOWN_FLOW, Verdict.DROP_HOLD_FULL)

    @rule(client=WHO, call=st.sampled_from([CALL, OTHER_CALL]))
    def check(self, client: Address, call: Call) -> None:
        outcome = self.core.receive_from_client(check(call), client, 0, self.now)
        assert outcome.destination == call.transceiver
        self.may_get[client].add(call.transceiver)
        self.drain()

    @rule(client=WHO, transceiver=st.sampled_from([*CALLS, FOREIGN]))
    def find(self, client: Address, transceiver: Address) -> None:
        if self.held[client]:
            self.found.setdefault(client, transceiver)
        self.recall.receive_found(FlowRecord(client, VIP, transceiver, CALL.tag), self.now)
        self.drain()

    @rule(client=WHO, is_away=st.booleans())
    def find_nothing(self, client: Address, is_away: bool) -> None:
        receive = self.recall.receive_unavailable if is_away else self.recall.receive_not_found
        receive(self.name(client), self.now)
        self.drain()

    @rule(client=WHO, source=st.sampled_from([*CALLS, FOREIGN]))
    def confirm(self, client: Address, source: Address) -> None:
        found = self.found.get(client)
        outcome = self.core.receive_from_fleet(spp(client, VIP), source, self.now)
        assert outcome.destination is None
        if found is not None:
            assert (outcome.verdict is Verdict.CONFIRM_FLOW) == (source == found)
        if outcome.verdict is Verdict.CONFIRM_FLOW:
            assert source == found or source in self.may_get[client]
            self.may_get[client].add(source)
        self.drain()

    @rule(client=WHO, source=FLEET)
    def talk(self, client: Address, source: Address) -> None:
        self.core.receive_from_fleet(spp(client, VIP, SERVER_HELLO), source, self.now)
        self.drain()

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 2.0, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.core.handle_timer(self.now, UNIX_S)
        assert self.recall.due > self.now
        self.drain()

    @invariant()
    def bounds_hold(self) -> None:
        waiting = self.recall._waiting
        assert len(waiting) <= self.clients
        assert len(self.recall._missed) <= self.missed
        held = {client: packets for client, packets in self.held.items() if packets}
        assert sum(len(packet) for packets in held.values() for packet in packets) <= self.size
        assert self.recall._bytes == sum(len(packet) for packets in held.values() for packet in packets)
        assert {key.client: entry.packets for key, entry in waiting.items()} == held
        assert all(len(packets) <= 3 for packets in held.values())
        assert sum(map(len, self.recall._stages.values())) == len(waiting)

    @invariant()
    def who_has_a_flow_waits_for_nothing(self) -> None:
        assert not any(flow.key in self.recall._waiting for flow in self.core.flows)

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.recall.give_up()
            self.drain()
            assert not any(self.held.values()), "a packet had no end"
            self.patch.undo()


TestClients = Clients.TestCase
TestClients.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
