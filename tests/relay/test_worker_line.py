"""A worker process with a line to the fleet's cache, whose other end, as the client's and the transceiver's, the test plays."""

import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from fleet.line import AgentLine, Finding, Found, open_line
from host.sockets import bind_udp, bound_address
from tests.host.deadline import wait_until
from tests.relay.network import CLIENT_HELLO, RTP, SERVER_HELLO, spp
from tests.relay.test_worker import LOOPBACK, RunningWorker
from wire.address import Address
from wire.flow_record import FlowRecord
from wire.spp import HEADER_BYTES

PACKETS = [RTP.ljust(40 + number % 2 * 40, bytes((number,))) for number in range(6)]
# Long enough for a busy machine to do something that it should not.
QUIET_S = 0.3


class AskingWorker(RunningWorker):
    """A worker whose cache the test is."""

    def __init__(self, kernel_maps: Mapping[str, int] | None = None, **options: object) -> None:
        ours, theirs = open_line()
        self._ends = ours, theirs
        super().__init__(ours.fileno(), kernel_maps, **options)
        self.agent = AgentLine(theirs)
        self._told: list[FlowRecord] = []
        self._asked: list[bytes] = []

    def close(self) -> None:
        super().close()
        for end in self._ends:
            end.close()

    def close_line(self) -> None:
        """As an agent that is gone with its supervisor."""
        for end in self._ends:
            end.close()

    def read_line(self) -> None:
        told, asked = self.agent.receive_untrusted()
        self._told += told
        self._asked += asked

    def asked(self) -> bytes:
        """The next question."""

        def has_asked() -> bool:
            self.read_line()
            return bool(self._asked)

        wait_until(has_asked, "a question")
        return self._asked.pop(0)

    def told(self, count: int) -> list[FlowRecord]:
        """So many flows that it tells of."""

        def has_told() -> bool:
            self.read_line()
            return len(self._told) >= count

        wait_until(has_told, "what it tells")
        told, self._told = self._told[:count], self._told[count:]
        return told

    def finds(self, transceiver: Address) -> None:
        record = FlowRecord(bound_address(self.client), self.vip, transceiver, self.call.tag)
        assert not self.agent.answer([Finding(record.name, Found.HIT, record)])

    def finds_none(self, found: Found) -> None:
        assert not self.agent.answer([Finding(self.record().name, found)])

    def transceiver_sends(self, payload: bytes, sender: socket.socket | None = None) -> None:
        fleet = bound_address(self.slot.fleet[0])
        datagram = spp(bound_address(self.client), self.vip, payload)
        (sender or self.transceiver).sendto(datagram, (str(fleet.ip), fleet.port))

    def arrived(self) -> bytes:
        """At the transceiver, behind its header."""
        datagram: bytes = self.transceiver.recv(2048)
        assert datagram.startswith(spp(bound_address(self.client), self.vip))
        return datagram[HEADER_BYTES:]

    def counted(self) -> dict[str, int]:
        return {label: count for label, count in self.slot.counters.verdicts().items() if count}

    def events_counted(self) -> dict[str, int]:
        return {label: count for label, count in self.slot.counters.events().items() if count}


def is_quiet(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], QUIET_S)[0]


@pytest.fixture
def worker() -> Iterator[AskingWorker]:
    running = AskingWorker()
    yield running
    running.close()


def test_unknown_client_goes_on_once_its_transceiver_has_confirmed_it(worker: AskingWorker) -> None:
    worker.serve()
    worker.client_sends(*PACKETS[:3])
    assert worker.asked() == worker.record().name
    worker.finds(worker.call.transceiver)
    assert worker.arrived() == b"", "it is asked before anything is sent"
    worker.client_sends(PACKETS[3])
    wait_until(lambda: worker.counted() == {"hold": 4}, "a held packet")
    worker.transceiver_sends(b"")
    worker.client_sends(*PACKETS[4:])
    assert [worker.arrived() for _ in PACKETS] == PACKETS
    assert worker.hear("flow_assured")["flow"] == worker.record().to_json()
    worker.transceiver_sends(SERVER_HELLO)
    assert worker.client.recv(2048) == SERVER_HELLO
    wait_until(lambda: worker.events_counted() == {"flow_recalled": 1}, "the event")
    counted = worker.counted()
    assert counted["hold"] >= 4
    assert counted == {
        "hold": counted["hold"], "confirm_flow": 1, "forward_flow": len(PACKETS), "forward_client": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "event"),
    [
        (Found.MISS, "recall_missed"),
        (Found.FORGED, "recall_missed"),
        (Found.UNAVAILABLE, "recall_unavailable"),
    ],
)
def test_client_that_the_cache_does_not_give_waits_for_its_next_check(
    worker: AskingWorker, found: Found, event: str
) -> None:
    worker.serve()
    worker.client_sends(*PACKETS[:2])
    worker.asked()
    worker.finds_none(found)
    wait_until(lambda: worker.counted() == {"hold": 2, "drop_unknown_flow": 2}, "the drops")
    worker.client_sends(PACKETS[2])
    wait_until(lambda: worker.counted()["drop_unknown_flow"] == 3, "a drop at once")
    wait_until(lambda: worker.events_counted() == {event: 1}, "the event")
    worker.connect()
    assert worker.hear("flow_assured")["flow"] == worker.record().to_json()


def test_agent_that_does_not_answer_costs_the_packets_alone(worker: AskingWorker) -> None:
    worker.serve()
    began = time.monotonic()
    worker.client_sends(*PACKETS[:2])
    wait_until(lambda: worker.counted() == {"hold": 2, "drop_unknown_flow": 2}, "the deadline")
    assert time.monotonic() - began >= 0.4
    wait_until(lambda: worker.events_counted() == {"recall_unavailable": 1}, "the event")


def test_transceiver_that_does_not_confirm_gets_nothing(worker: AskingWorker) -> None:
    worker.serve()
    worker.client_sends(*PACKETS[:2])
    worker.asked()
    worker.finds(worker.call.transceiver)
    assert [worker.arrived(), worker.arrived()] == [b"", b""], "it is asked twice"
    wait_until(lambda: worker.counted() == {"hold": 2, "drop_unknown_flow": 2}, "the drops")
    wait_until(lambda: worker.events_counted() == {"recall_unconfirmed": 1}, "the event")
    worker.transceiver_sends(b"")
    wait_until(lambda: worker.counted().get("drop_spp_malformed") == 1, "a word that is too late")
    worker.client_sends(PACKETS[2])
    assert is_quiet(worker.transceiver)


def test_word_of_another_socket_of_the_fleet_confirms_nothing(worker: AskingWorker) -> None:
    worker.serve()
    worker.client_sends(PACKETS[0])
    worker.asked()
    with closing(bind_udp("another", LOOPBACK)) as another:
        worker.finds(worker.call.transceiver)
        assert worker.arrived() == b""
        worker.transceiver_sends(b"", another)
        wait_until(lambda: worker.counted().get("drop_spp_malformed") == 1, "a drop")
        assert worker.arrived() == b""
        worker.transceiver_sends(b"")
        assert worker.arrived() == PACKETS[0]
        assert is_quiet(another)


def test_target_outside_the_transceiver_networks_gets_nothing() -> None:
    worker = AskingWorker(transceiver_networks=["127.0.0.1/32"])
    try:
        worker.serve()
        worker.client_sends(PACKETS[0])
        worker.asked()
        with closing(bind_udp("outside", Address.parse("127.0.0.9:0"))) as outside:
            worker.finds(bound_address(outside))
            wait_until(lambda: worker.counted() == {"hold": 1, "drop_unknown_flow": 1}, "a drop")
            assert is_quiet(outside)
        wait_until(lambda: worker.events_counted() == {"recall_missed": 1}, "the event")
    finally:
        worker.close()


def test_flow_that_turns_assured_is_told_at_once(worker: AskingWorker) -> None:
    worker.serve()
    began = time.monotonic()
    worker.connect()
    assert worker.told(1) == [worker.record()]
    assert time.monotonic() - began < 1
    time.sleep(QUIET_S)
    worker.read_line()
    assert worker._told == []


def test_recalled_flow_is_told_in_the_next_round(worker: AskingWorker) -> None:
    worker.configure(refresh_s=1.0)
    worker.tell("serve")
    worker.hear("ready")
    worker.client_sends(PACKETS[0])
    worker.asked()
    worker.finds(worker.call.transceiver)
    worker.arrived()
    worker.transceiver_sends(b"")
    assert worker.arrived() == PACKETS[0]
    assert worker.told(1) == [worker.record()]


def test_living_flows_are_told_again_and_at_once_if_the_agent_wants_it(worker: AskingWorker) -> None:
    worker.configure(refresh_s=1.0)
    records = {FlowRecord(Address(bytes((127, 1, n >> 8, n & 255)), 40000), worker.vip, worker.call.transceiver, "x" * 8) for n in range(700)}  # fmt: skip
    worker.tell("adopt", flows=[record.to_json() for record in records])
    worker.tell("serve")
    worker.hear("ready")
    assert set(worker.told(700)) == records
    time.sleep(1.5)
    worker.read_line()
    worker._told.clear()
    worker.agent.want_everything()
    time.sleep(QUIET_S)
    worker.read_line()
    assert worker._told == [], "they have been silent for a round"


def test_hurried_round_does_not_wait_for_the_next_one(worker: AskingWorker) -> None:
    worker.serve()
    worker.connect()
    worker.told(1)
    began = time.monotonic()
    assert worker.agent.want_everything()
    assert worker.told(1) == [worker.record()]
    assert time.monotonic() - began < 2


def test_worker_after_a_crash_asks_by_the_same_line() -> None:
    ours, theirs = open_line()
    with closing(ours), closing(theirs):
        agent = AgentLine(theirs)
        first = RunningWorker(ours.fileno())
        first.serve()
        first.client_sends(PACKETS[0])
        wait_until(lambda: bool(agent.receive_untrusted()[1]), "a question")
        stale = Finding(first.record().name, Found.MISS)
        agent.answer([stale, stale])
        first.close()
        second = RunningWorker(ours.fileno())
        try:
            second.serve()
            second.client_sends(PACKETS[0])
            wait_until(lambda: agent.receive_untrusted()[1] == [second.record().name], "a question")
        finally:
            second.close()


def test_worker_that_ends_drops_what_it_holds(worker: AskingWorker) -> None:
    worker.serve()
    worker.client_sends(*PACKETS[:2])
    worker.asked()
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert worker.counted() == {"hold": 2, "drop_unknown_flow": 2}


@pytest.mark.parametrize("while_asking", [False, True])
def test_line_that_is_closed_leaves_a_worker_as_without_cache(
    worker: AskingWorker, while_asking: bool
) -> None:
    """And it does not spin on it."""
    worker.serve()
    if while_asking:
        worker.client_sends(PACKETS[0])
        worker.asked()
    worker.close_line()
    before = 1 if while_asking else 0
    wait_until(lambda: worker.counted().get("drop_unknown_flow", 0) == before, "the end of what was held")
    used = cpu_s(worker.process.pid)
    worker.client_sends(PACKETS[1])
    wait_until(lambda: worker.counted().get("drop_unknown_flow", 0) == before + 1, "a drop")
    time.sleep(1.0)
    assert cpu_s(worker.process.pid) - used < 0.4
    worker.connect()


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_dtls_is_held_too(worker: AskingWorker) -> None:
    worker.serve()
    worker.client_sends(CLIENT_HELLO)
    worker.asked()
    worker.finds(worker.call.transceiver)
    assert worker.arrived() == b""
    worker.transceiver_sends(b"")
    assert worker.arrived() == CLIENT_HELLO
