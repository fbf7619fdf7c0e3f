"""A worker as its supervisor sees it: a process on inherited sockets, without XDP, told what to do over its channel."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from host.channel import ChannelError
from host.config_table import ConfigTable
from host.line_socket import LineSocket
from host.process import CHILD_ENVIRONMENT
from host.sockets import bind_udp, bound_address
from relay.config import RelayConfig
from relay.core.policy import Vip
from relay.dataplane.split import Split
from relay.settings import WorkerSettings
from relay.slots import SlotMaker, WorkerSlot
from tests.host.deadline import wait_until
from tests.relay.network import (
    CLIENT_HELLO,
    CLUSTER_ID,
    KEYS,
    RTP,
    SERVER_HELLO,
    Call,
    call_at,
    check,
    spp,
)
from wire.address import Address
from wire.admin import Message
from wire.flow_record import FlowRecord
from wire.spp import HEADER_BYTES

LOOPBACK = Address.parse("127.0.0.1:0")


class RunningWorker:
    """The process, its slot, and one client and one transceiver on sockets of this machine.

    line_fd: the worker's end of a line to a cache. kernel_maps: of the kernel's data path; its sockets are those without it.
    ``options`` are further ones of the ``[relay]`` table.
    """

    def __init__(
        self, line_fd: int = -1, kernel_maps: Mapping[str, int] | None = None, **options: Any
    ) -> None:
        with closing(bind_udp("probe", LOOPBACK)) as probe:
            listen = bound_address(probe)
        config = RelayConfig.from_table(
            ConfigTable("relay", {"workers": 1, **options}), (Vip(listen, listen),)
        )
        maker = SlotMaker(config, None, lambda index: line_fd)
        self.vip = listen
        self.slot: WorkerSlot = maker.make(0)
        self.slot.kernel_maps.update(kernel_maps or {})
        self.policy = maker.policy(CLUSTER_ID, [self.slot])
        self.client, self.transceiver = bind_udp("client", LOOPBACK), bind_udp("transceiver", LOOPBACK)
        for sock in (self.client, self.transceiver):
            sock.settimeout(5)
        now = int(time.clock_gettime(time.CLOCK_REALTIME))
        self.call: Call = call_at(str(bound_address(self.transceiver)), issued_at=now)
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), *self.slot.fds),
                env={**os.environ, **CHILD_ENVIRONMENT},
            )
        ours.settimeout(5)
        self._sock, self.channel = ours, LineSocket(ours)
        self.events: list[Message] = []

    def configure(self, user: str | None = None, refresh_s: float = 60.0) -> None:
        settings = WorkerSettings(
            policy=self.policy,
            keys=KEYS,
            slot=0,
            public_fds=tuple(sock.fileno() for sock in self.slot.public),
            check_fds=tuple(sock.fileno() for sock in self.slot.checks),
            fleet_fds=tuple(sock.fileno() for sock in self.slot.fleet),
            counters_fd=self.slot.counters_fd,
            counters_page=0,
            kernel_maps=self.slot.kernel_maps,
            gather_us=500,
            busy_poll_us=0,
            line_fd=self.slot.line_fd,
            refresh_s=refresh_s,
        )
        self.tell("configure", settings=settings.to_message(), core=None, user=user)

    def tell(self, event: str, **fields: Any) -> None:
        self.channel.send({"event": event, **fields})

    def hear(self, event: str) -> Message:
        """The next event of that name; the worker tells nothing else meanwhile."""
        while not self.events:
            messages = self.channel.receive()
            assert messages is not None, "the worker is gone"
            self.events += messages
        heard = self.events.pop(0)
        assert heard["event"] == event
        return heard

    def serve(self, **options: Any) -> None:
        self.configure(**options)
        self.tell("serve")
        self.hear("ready")

    def client_sends(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.client.sendto(datagram, (str(self.vip.ip), self.vip.port))

    def connect(self) -> None:
        """A check, then DTLS both ways."""
        self.client_sends(check(self.call), CLIENT_HELLO)
        for payload in (check(self.call), CLIENT_HELLO):
            assert self.transceiver.recv(2048)[HEADER_BYTES:] == payload
        header = spp(bound_address(self.client), self.vip)
        fleet = bound_address(self.slot.fleet[0])
        self.transceiver.sendto(header + SERVER_HELLO, (str(fleet.ip), fleet.port))
        assert self.client.recv(2048) == SERVER_HELLO

    def record(self) -> FlowRecord:
        return FlowRecord(bound_address(self.client), self.vip, self.call.transceiver, self.call.tag)

    def close_channel(self) -> None:
        """As a supervisor that died."""
        self._sock.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in (self._sock, self.client, self.transceiver):
            sock.close()
        self.slot.kernel_maps.clear()
        self.slot.close()


@pytest.fixture
def worker() -> Iterator[RunningWorker]:
    running = RunningWorker()
    yield running
    running.close()


def test_worker_forwards_and_tells_of_assured_flows_alone(worker: RunningWorker) -> None:
    worker.serve()
    worker.connect()
    assert worker.hear("flow_assured")["flow"] == worker.record().to_json()
    assert worker.slot.counters.verdicts()["forward_flow"] == 1
    wait_until(lambda: worker.slot.counters.gauges()["assured_flows"] == 1, "the gauges")


def test_worker_serves_media_and_checks_of_two_sockets(worker: RunningWorker) -> None:
    Split().lead(worker.slot.public, 1)
    worker.serve()
    worker.client_sends(check(worker.call))
    assert worker.transceiver.recv(2048)[HEADER_BYTES:] == check(worker.call)
    worker.client_sends(CLIENT_HELLO)
    assert worker.transceiver.recv(2048)[HEADER_BYTES:] == CLIENT_HELLO


def test_worker_goes_on_with_the_flows_of_the_one_before(worker: RunningWorker) -> None:
    """Media is forwarded at once, also what came while there was no worker."""
    worker.client_sends(RTP)
    worker.configure()
    worker.tell("adopt", flows=[worker.record().to_json()])
    worker.tell("serve")
    worker.hear("ready")
    assert worker.transceiver.recv(2048) == spp(bound_address(worker.client), worker.vip, RTP)


def test_worker_takes_up_flows_while_it_serves(worker: RunningWorker) -> None:
    worker.serve()
    worker.tell("adopt", flows=[worker.record().to_json()])
    assert worker.channel.request("ping") == "pong"
    worker.client_sends(RTP)
    assert worker.transceiver.recv(2048)[HEADER_BYTES:] == RTP


def test_worker_answers_what_it_is_asked(worker: RunningWorker) -> None:
    worker.serve()
    worker.connect()
    worker.hear("flow_assured")
    client = str(bound_address(worker.client))
    (flow,) = worker.channel.request("flows", limit=10, client=None)
    assert (flow["client"], flow["transceiver"]) == (client, str(worker.call.transceiver))
    assert (flow["state"], flow["packets_up"], flow["packets_down"]) == ("assured", 2, 1)
    assert worker.channel.request("flows", limit=10, client=client) == [
        {**flow, "age_s": pytest.approx(0, abs=10), "idle_s": pytest.approx(0, abs=10)}
    ]
    assert worker.channel.request("flows", limit=10, client="192.0.2.1") == []
    assert worker.channel.request("flows", limit=0, client=None) == []
    for method, params in (("flows", {"limit": "all"}), ("restart", {})):
        with pytest.raises(ChannelError, match=method):
            worker.channel.request(method, **params)


@pytest.mark.parametrize("when", ["before settings", "before serving", "serving", "carrying a call"])
def test_worker_without_kernel_maps_ends_with_its_supervisor(worker: RunningWorker, when: str) -> None:
    """Nobody could take its sockets over: its flows are in its own memory."""
    if when == "before serving":
        worker.configure()
    elif when != "before settings":
        worker.serve()
    if when == "carrying a call":
        worker.connect()
    worker.close_channel()
    assert worker.process.wait(10) == 0


def test_sigterm_ends_it_after_its_sockets_are_empty(worker: RunningWorker) -> None:
    worker.serve()
    worker.connect()
    os.kill(worker.process.pid, signal.SIGSTOP)
    worker.client_sends(*[RTP] * 100)
    os.kill(worker.process.pid, signal.SIGTERM)
    os.kill(worker.process.pid, signal.SIGCONT)
    assert worker.process.wait(10) == 0
    assert [worker.transceiver.recv(2048)[HEADER_BYTES:] for _ in range(100)] == [RTP] * 100
    assert worker.slot.counters.verdicts()["forward_flow"] == 101


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")
@pytest.mark.parametrize(("user", "uid"), [(None, "0"), ("nobody", "65534")])
def test_no_thread_of_a_worker_that_serves_has_a_capability(
    worker: RunningWorker, user: str | None, uid: str
) -> None:
    worker.serve(user=user)
    worker.connect()
    for status in Path(f"/proc/{worker.process.pid}/task").glob("*/status"):
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        values = {name: value.split()[0] for name, value in lines.items() if value.split()}
        assert {values[name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert (values["NoNewPrivs"], values["Uid"]) == ("1", uid)
