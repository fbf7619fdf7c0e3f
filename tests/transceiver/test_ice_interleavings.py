"""The ICE-lite agent under any interleaving of checks, replays and packets: the attacker is never selected."""

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.transceiver.checks import OTHER_RELAY, RELAY, client, write_check
from tests.transceiver.ice_call import Call
from transceiver.ice import MAX_PATHS, Credential, Path

_CLIENTS = st.integers(0, 11).map(client)
_ATTACKERS = st.integers(600, 611).map(client)


class AnyInterleaving(RuleBasedStateMachine):
    """A client that roams among 12 addresses, against a replayer who sees every packet and has 12 of his own."""

    @initialize()
    def begin(self) -> None:
        self.call = Call()
        self.sent: list[bytes] = []
        self.sequence_number = 65_500
        self.arrived = -1

    @rule(path=_CLIENTS, use_candidate=st.booleans())
    def check(self, path: Path, use_candidate: bool) -> None:
        self.sent.append(write_check(self.call.agent.credential, use_candidate=use_candidate))
        assert self.call.receive(self.sent[-1], path).answer

    @precondition(lambda self: self.sent)
    @rule(attacker=_ATTACKERS, data=st.data(), times=st.integers(1, 20))
    def replay(self, attacker: Path, data: st.DataObject, times: int) -> None:
        captured = data.draw(st.sampled_from(self.sent))
        for _ in range(times):
            result = self.call.receive(captured, attacker, OTHER_RELAY)
            assert (result.validated, result.removed) == (False, None)

    @rule(path=_CLIENTS | _ATTACKERS)
    def dtls(self, path: Path) -> None:
        self.call.dtls(path)

    @rule(path=_CLIENTS, late_by=st.integers(0, 3))
    def media(self, path: Path, late_by: int) -> None:
        self.sequence_number += 1
        number = self.sequence_number - late_by
        newest = self.call.agent.is_newest_rtp(1, number & 0xFFFF)
        assert newest is (number > self.arrived)
        self.arrived = max(self.arrived, number)
        self.call.media(path, newest=newest)
        if newest and self.call.agent.handshake_done and path in self.call.agent.paths:
            assert self.call.agent.selected == path

    @rule(attacker=_ATTACKERS)
    def attacker_repeats_media(self, attacker: Path) -> None:
        assert not self.call.agent.receive_datagram(160, attacker)
        self.call.agent.authenticate(attacker, OTHER_RELAY, newest=True, now=self.call.now)

    @precondition(lambda self: self.call.agent.selected is not None)
    @rule()
    def complete_handshake(self) -> None:
        self.call.agent.complete_handshake()

    @rule(seconds=st.sampled_from([0.02, 0.5, 1.0, 6.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.call.wait(seconds)
        for server_ufrag in self.call.agent.expire_credentials(self.call.now):
            self.sent = [check for check in self.sent if server_ufrag.encode() not in check]

    @rule(number=st.integers(0, 10**6))
    def restart(self, number: int) -> None:
        if f"server{number:07}" in self.call.agent.server_ufrags:
            return
        new = Credential(f"server{number:07}", f"password{number:07}", f"client{number:07}")
        for server_ufrag in self.call.agent.restart(new, self.call.now):
            self.sent = [check for check in self.sent if server_ufrag.encode() not in check]

    @rule(length=st.integers(1, 1200), dtls=st.booleans())
    def send(self, length: int, dtls: bool) -> None:
        destination = self.call.agent.destination(length, dtls=dtls, now=self.call.now)
        if destination is not None:
            assert destination[0] in self.call.agent.paths
            assert destination[1] == RELAY

    @invariant()
    def selected_is_validated_and_never_the_attacker(self) -> None:
        agent = self.call.agent
        assert agent.selected is None or agent.selected in agent.paths
        assert (agent.selected is None) is (not agent.paths)
        assert len(agent.paths) <= MAX_PATHS
        assert all(path.client.host[3] < 12 for path in agent.paths)
        assert agent.credential.server_ufrag in agent.server_ufrags


TestAnyInterleaving = pytest.mark.slow(AnyInterleaving.TestCase)


def test_attackers_of_the_machine_are_apart_from_its_clients() -> None:
    hosts = [client(index).client.host[3] for index in (*range(12), *range(600, 612))]
    assert len(set(hosts)) == 24
    assert all(host < 12 for host in hosts[:12])
    assert all(host >= 12 for host in hosts[12:])
    assert all(a != b for a, b in pairwise(hosts))
