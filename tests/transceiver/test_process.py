"""A transceiver as its supervisor sees it: a process on inherited sockets, which lives on without it while it has calls."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from host.line_socket import LineSocket
from host.process import CHILD_ENVIRONMENT
from host.sockets import bind_tcp, bind_udp, bound_address
from tests.host.deadline import wait_until
from tests.transceiver.checks import VIP
from tests.transceiver.offers import VOICE
from tests.transceiver.processes import CLUSTER_ID, KEYS, LOOPBACK
from tests.transceiver.whip import SDP
from transceiver.config import EchoMode
from transceiver.load_board import LoadBoard, create_board_fd
from transceiver.media.settings import MediaPath
from transceiver.settings import TransceiverSettings
from transceiver.signaling.resources import INTERNAL_HEADER
from wire.address import Address

SIBLING = {INTERNAL_HEADER: KEYS.sealing.internal_http}


class RunningTransceiver:
    """The process; only it has its sockets."""

    def __init__(self) -> None:
        udp, http, internal = (
            bind_udp("udp", LOOPBACK),
            bind_tcp("http", LOOPBACK),
            bind_tcp("http", LOOPBACK),
        )
        self.http, self.internal = bound_address(http), bound_address(internal)
        load_fd = create_board_fd()
        self.board = LoadBoard(load_fd)
        self.board.open(0, self.internal.port)
        self.board.admit(0, True)
        settings = TransceiverSettings(
            keys=KEYS,
            cluster_id=CLUSTER_ID,
            address=bound_address(udp),
            vips=(VIP,),
            relay_networks=(ip_network("127.0.0.0/8"),),
            max_sessions=10,
            max_memory_bytes=1 << 40,
            max_cpu=1000.0,
            media=MediaPath.DIRECT,
            echo=EchoMode.PASSTHROUGH,
            opus_complexity=5,
            opus_adaptive=True,
            internal_http=self.internal,
            bearer_token="",
            origins=(),
            requests_per_s=1000.0,
            request_burst=1000,
            tls_cert="",
            tls_key="",
            index=0,
            load_fd=load_fd,
            udp_fd=udp.fileno(),
            http_fd=http.fileno(),
            internal_http_fd=internal.fileno(),
        )
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), udp.fileno(), http.fileno(), internal.fileno(), load_fd)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transceiver.process", str(theirs.fileno())],
            pass_fds=fds,
            env={**os.environ, **CHILD_ENVIRONMENT},
        )
        for sock in (theirs, udp, http, internal):
            sock.close()
        os.close(load_fd)
        ours.settimeout(10)
        self._sock, self.channel = ours, LineSocket(ours)
        self.channel.send(
            {"event": "configure", "settings": settings.to_message(), "core": None, "user": None}
        )
        while not (messages := self.channel.receive()):
            assert messages is not None, "the process is gone"
        assert messages == [{"event": "ready"}]

    def call(self) -> str:
        """The resource of a new session."""
        with asked("POST", self.http, "/whip", VOICE, SDP) as response:
            location: str = response.headers["Location"]
            return location

    def close_channel(self) -> None:
        """As a supervisor that died."""
        self._sock.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._sock.close()
        self.board.close()


def asked(
    method: str,
    address: Address,
    path: str,
    body: str = "",
    headers: dict[str, str] | None = None,
    timeout_s: float = 5,
) -> Any:
    request = urllib.request.Request(f"http://{address}{path}", body.encode(), headers or {}, method=method)
    return urllib.request.urlopen(request, timeout=timeout_s)


def is_listening(address: Address) -> bool:
    try:
        socket.create_connection((str(address.ip), address.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def transceiver() -> Iterator[RunningTransceiver]:
    running = RunningTransceiver()
    yield running
    running.close()


def test_idle_transceiver_ends_with_its_supervisor(transceiver: RunningTransceiver) -> None:
    transceiver.close_channel()
    assert transceiver.process.wait(10) == 0


def test_transceiver_outlives_its_supervisor_until_its_last_call_ends(
    transceiver: RunningTransceiver,
) -> None:
    calls = [transceiver.call() for _ in range(2)]
    transceiver.close_channel()
    wait_until(lambda: not is_listening(transceiver.http), "the public port is free for the next supervisor")
    bind_tcp("transceiver.http", transceiver.http).close()
    with pytest.raises(HTTPError) as refused:
        asked("POST", transceiver.internal, "/whip", VOICE, SDP | SIBLING)
    with closing(refused.value):
        assert refused.value.code == 503, "it takes no new calls"
    asked("DELETE", transceiver.internal, calls[0], headers=SIBLING).close()
    with pytest.raises(subprocess.TimeoutExpired):
        transceiver.process.wait(1.2)  # two looks at its calls
    asked("DELETE", transceiver.internal, calls[1], headers=SIBLING).close()
    assert transceiver.process.wait(10) == 0


def test_sigterm_ends_it_with_its_calls(transceiver: RunningTransceiver) -> None:
    transceiver.call()
    os.kill(transceiver.process.pid, signal.SIGTERM)
    assert transceiver.process.wait(10) == 0


def test_sigterm_ends_also_one_whose_supervisor_is_gone(transceiver: RunningTransceiver) -> None:
    """So the next supervisor can, with `relayctl stop`."""
    transceiver.call()
    transceiver.close_channel()
    wait_until(lambda: not is_listening(transceiver.http), "it has noticed")
    os.kill(transceiver.process.pid, signal.SIGTERM)
    assert transceiver.process.wait(10) == 0


def test_draining_transceiver_keeps_its_call_and_takes_no_other(transceiver: RunningTransceiver) -> None:
    transceiver.call()
    transceiver.board.admit(0, False)
    assert transceiver.board.load(0).sessions == 1
    with pytest.raises(HTTPError) as refused:
        transceiver.call()
    with closing(refused.value):
        assert refused.value.code == 503


def test_offer_that_waited_in_a_process_that_hung_makes_no_call(transceiver: RunningTransceiver) -> None:
    """Its sender has given it to another meanwhile."""
    os.kill(transceiver.process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        asked("POST", transceiver.internal, "/whip", VOICE, SDP | SIBLING, timeout_s=0.2)
    wait_until(lambda: transceiver.board.is_hung(0), "the board tells that it hangs")
    os.kill(transceiver.process.pid, signal.SIGCONT)
    wait_until(lambda: not transceiver.board.is_hung(0), "it tells of itself again")
    wait_until(lambda: transceiver.channel.request("status")["ended"] == {"hung up": 1}, "the call is ended")
    assert transceiver.board.load(0).sessions == 0


def test_drained_calls_are_ended_with_that_reason(transceiver: RunningTransceiver) -> None:
    transceiver.call()
    transceiver.channel.request("end_sessions", reason="drained")
    status = transceiver.channel.request("status")
    assert (status["sessions"], status["ended"]) == (0, {"drained": 1})


def test_no_thread_has_a_capability(transceiver: RunningTransceiver) -> None:
    transceiver.call()
    for status in Path(f"/proc/{transceiver.process.pid}/task").glob("*/status"):
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        held = {name: fields[name].strip() for name in ("CapPrm", "CapEff", "CapBnd")}
        assert set(held.values()) == {"0000000000000000"}, fields["Name"]
        assert fields["NoNewPrivs"].strip() == "1"
