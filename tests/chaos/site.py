"""One relayctl with twenty real calls and as many numbered flows, and a Redis that troubles can be made for.

What a case has to leave untouched is looked at before, during and after it: calls, packets of assured flows, processes, what
``relayctl status`` and ``/healthz`` say, the log, the agent's memory; and afterwards the cache is full again.
"""

import contextlib
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.flood.calls import CallsJob
from bench.flood.running_calls import CallsReport, RunningCalls, running_calls
from tests.chaos.live_calls import LiveCalls, Seen, live_calls
from tests.e2e.instance import Instance, running, wait_until
from tests.e2e.namespaces import Host
from tests.measured import note_measured

CALLS, NUMBERED = 20, 20
VIP = "127.0.0.1:3478"
_CLIENT_IP = "198.51.100.2"
_TRANSCEIVERS = ("127.0.0.1:7001", "127.0.0.1:7002")
_FIRST_PORT = 20_000
# So that a trouble is noticed soon also where nobody asks: leases are written and read every second.
CONFIG = "[redis]\nlease_s = 4\n"
# Whoever waits for a Redis that does not answer waits for as long as a trouble lasts.
_MAX_PING_MS = 2000.0
_LOOK_INTERVAL_S = 0.25
_SETTLE_S = 0.5
_CALLS_TIMEOUT_S = 15.0
# Of the agent: Python with redis-py has about 40 MB.
_MAX_AGENT_BYTES = 160 * 1024 * 1024
# A call is told of when it begins and ends.
_IS_A_CALL = "transceiver.hub: session"
# A change of state is a line; a process that was killed a few.
_MAX_LOG_LINES = 12


@dataclass(frozen=True)
class Look:
    """What must be the same, or have grown, after a case."""

    calls: list[Seen]
    processes: list[tuple[str, int, int]]
    log_lines: int


@dataclass
class Site:
    """See the top of this file.

    entries: keys of the flows that Redis has now, with their TTL in seconds. started_s: how long ``relayctl start`` took.
    """

    instance: Instance
    calls: LiveCalls
    numbered: RunningCalls
    entries: Callable[[], dict[str, int]]
    started_s: float
    health: list[int] = field(default_factory=list)
    status_s: list[float] = field(default_factory=list)

    def fleet(self) -> dict[str, Any]:
        """What status says of Redis; how long it took is noted."""
        began = time.monotonic()
        fleet = self.instance.status()["fleet"]
        self.status_s.append(time.monotonic() - began)
        return dict(fleet)

    def wait_for_state(self, states: Collection[str], timeout_s: float) -> str:
        """Until status says one of these; what it says. Health is looked at meanwhile."""
        began, fleet = time.monotonic(), self.fleet()
        while fleet["state"] not in states:
            assert time.monotonic() - began < timeout_s, f"not {states} within {timeout_s:g} s: {fleet}"
            self.check_health()
            time.sleep(0.05)
            fleet = self.fleet()
        return _say(fleet)

    def check_health(self) -> None:
        """Liveness has no part of Redis."""
        with urllib.request.urlopen(self.instance.url + "healthz", timeout=2) as answer:
            self.health.append(answer.status)

    def agent(self) -> psutil.Process:
        """The process that speaks with Redis."""
        return psutil.Process(self.fleet()["agent"]["pid"])

    def look(self) -> Look:
        """Calls, processes but the agent, log."""
        status = self.instance.status()
        processes = [*status["relay"]["workers"], *status["transceivers"]["processes"]]
        log = (self.instance.state_dir.path / "test.log").read_text()
        assert "Traceback" not in log, log
        return Look(
            self.calls.look(),
            [(p["name"], p["pid"], p["restarts"]) for p in processes],
            sum(_IS_A_CALL not in line for line in log.splitlines()),
        )

    def wait_for_calls(self) -> None:
        """Until every call is in good order."""
        wait_until(
            lambda: all(map(is_well, self.calls.look())), _CALLS_TIMEOUT_S, f"{CALLS} calls that go well"
        )

    def expected_keys(self) -> set[str]:
        """What the cache has to hold: every call's flow and every numbered one."""
        clients = [session["client"] for session in self.instance.sessions()]
        ended = [process["ended"] for process in self.instance.status()["transceivers"]["processes"]]
        assert len(clients) == CALLS, f"{len(clients)} of {CALLS} calls are left; ended: {ended}"
        clients += [f"{_CLIENT_IP}:{_FIRST_PORT + number}" for number in range(NUMBERED)]
        return {f"relayctl:1:flow:{client}>{VIP}" for client in clients}

    def check_answers(self) -> None:
        """The agent finds every real call in Redis, and where it leads."""
        status = self.instance.status()["transceivers"]["processes"]
        owners = {process["name"]: process["address"] for process in status}
        for session in self.instance.sessions():
            (entry,) = self.instance.ask("cache_get", client=session["client"])
            assert (entry["state"], entry["transceiver"]) == ("hit", owners[session["transceiver"]]), entry

    def wait_until_cached(self, timeout_s: float = 5.0) -> float:
        """Until every flow is in Redis under its key, and will lapse; how long that took."""
        began, expected = time.monotonic(), self.expected_keys()

        def missing() -> set[str]:
            return expected - {key for key, ttl in self.entries().items() if 0 < ttl <= 180}

        while left := missing():
            assert time.monotonic() - began < timeout_s, (
                f"{len(left)} of {len(expected)} flows not cached within {timeout_s:g} s: {sorted(left)[:3]}; "
                f"{self.fleet()}"
            )
            time.sleep(0.05)
        return time.monotonic() - began


@dataclass(frozen=True)
class Trouble:
    """A case. ``made``: the trouble, for the life of the block. states, why: what status may say meanwhile, and has to name.

    hold_s: from when status has said so. noticed_s: within this it has. max_status_s: how long status may take.
    lasts: for as long as it is made; else it may end by itself.
    """

    name: str
    made: Callable[[], contextlib.AbstractContextManager[object]]
    states: frozenset[str]
    why: str
    hold_s: float = 2.5
    noticed_s: float = 4.0
    recovered_s: float = 5.0
    max_status_s: float = 1.0
    lasts: bool = True


@dataclass(frozen=True)
class Outcome:
    """What was seen of a case. said: what status said, first when the trouble was noticed. Times since it began, or ended."""

    said: list[str]
    held_s: float
    noticed_s: float
    connected_s: float
    cached_s: float
    agent_bytes: int
    before: Look
    after: Look
    packets: CallsReport

    def to_json(self) -> dict[str, Any]:
        """For people. ``lost`` is of real calls, of numbered packets up, and of those down."""
        (span,) = self.packets.spans
        return {
            "said": self.said[-1],
            "held_s": round(self.held_s, 1),
            "noticed_s": round(self.noticed_s, 2),
            "connected_s": round(self.connected_s, 2),
            "cached_s": round(self.cached_s, 2),
            "calls": sum(seen.state == "connected" for seen in self.after.calls),
            "lost": [_lost(self.after.calls) - _lost(self.before.calls), span.up.lost, span.down.lost],
            "of": [span.up.sent, span.down.sent],
            "longest_ping_ms": max(seen.longest_ping_ms for seen in self.after.calls),
            "agent_mb": round(self.agent_bytes / 2**20),
            "log_lines": self.after.log_lines - self.before.log_lines,
        }


def live_through(site: Site, trouble: Trouble) -> None:
    """Make the trouble, look, end it, wait for recovery, look again."""
    # What an earlier case left is not this one's, nor is a machine that is too busy for these calls.
    site.wait_for_state({"connected"}, trouble.recovered_s)
    site.wait_until_cached()
    site.wait_for_calls()
    site.health.clear()
    site.status_s.clear()
    site.calls.mark()
    before, began = site.look(), time.monotonic()
    with trouble.made(), _stranger():
        noticed = site.wait_for_state(trouble.states, trouble.noticed_s)
        noticed_s = time.monotonic() - began
        said, agent_bytes = _hold(site, trouble)
        held_s = time.monotonic() - began
    ended = time.monotonic()
    site.wait_for_state({"connected"}, trouble.recovered_s)
    connected_s = time.monotonic() - ended
    site.wait_until_cached()
    cached_s = time.monotonic() - ended
    site.check_answers()
    time.sleep(_SETTLE_S)
    site.wait_for_calls()
    after, packets = site.look(), site.numbered.report([(began, time.monotonic() - _SETTLE_S)])
    outcome = Outcome(
        [noticed, *said], held_s, noticed_s, connected_s, cached_s, agent_bytes, before, after, packets
    )
    note_measured(
        f"{trouble.name}: {json.dumps(outcome.to_json())}, status_ms {1000 * max(site.status_s):.0f}"
    )
    _check(site, trouble, outcome)


def _check(site: Site, trouble: Trouble, seen: Outcome) -> None:
    for text in seen.said if trouble.lasts else seen.said[:1]:
        assert re.search(trouble.why, text), text
    for was, is_now in zip(seen.before.calls, seen.after.calls, strict=True):
        assert is_now.answered > was.answered
        assert is_now.received > was.received
        assert (is_now.lost_up, is_now.lost_down) == (was.lost_up, was.lost_down)
        assert is_now.longest_ping_ms < _MAX_PING_MS
    (span,) = seen.packets.spans
    assert (span.up.lost, span.down.lost, span.answers.lost) == (0, 0, 0)
    assert min(span.up.sent, span.down.sent, span.answers.sent) > 0
    packets = seen.packets
    assert (packets.late, packets.doubled, packets.damaged, packets.own_drops) == (0, 0, 0, 0)
    assert seen.after.processes == seen.before.processes
    assert set(site.health) == {200}
    assert max(site.status_s) < trouble.max_status_s
    assert seen.agent_bytes < _MAX_AGENT_BYTES
    assert seen.after.log_lines - seen.before.log_lines <= _MAX_LOG_LINES


def is_well(seen: Seen) -> bool:
    """It is up, heard now, and every ping was answered within a second."""
    return seen.state == "connected" and seen.heard and seen.silent_s < 1 and seen.overdue == 0


@contextlib.contextmanager
def site_running(
    host: Host, directory: Path, url: str, entries: Callable[[], dict[str, int]], config: str = CONFIG
) -> Iterator[Site]:
    """For the life of the block, with all calls up."""
    directory.mkdir(exist_ok=True)
    config_file = directory / "relayctl.toml"
    config_file.write_text(config)
    arguments = ["--config", str(config_file), "--redis", url, "--listen", VIP, "--dataplane", "userspace"]
    arguments += ["--workers", "2", "--transceivers", "2"]
    began = time.monotonic()
    with running(directory / "state", *arguments) as instance:
        started_s = round(time.monotonic() - began, 1)
        job = CallsJob(
            client_namespace=host.name,
            transceiver_namespace=host.name,
            vip=VIP,
            client_ips=(_CLIENT_IP,),
            transceivers=_TRANSCEIVERS,
            keys_file=str(instance.state_dir.keys_file),
            flows=NUMBERED,
            packets_per_s=20,
            sizes=(110, 240),
            first_port=_FIRST_PORT,
            dtls_every=10,
        )
        with running_calls(job) as numbered, live_calls(instance.url, CALLS) as calls:
            site = Site(instance, calls, numbered, entries, started_s)
            site.wait_for_calls()
            yield site


def _hold(site: Site, trouble: Trouble) -> tuple[list[str], int]:
    """What was said while it lasted, and the agent's memory at most."""
    said: list[str] = []
    agent_bytes = 0
    until = time.monotonic() + trouble.hold_s
    shown = site.instance.run("status")
    assert shown.returncode == 0, shown.stderr
    site.calls.one_more()
    while not said or time.monotonic() < until:
        fleet = site.fleet()
        said.append(_say(fleet))
        if trouble.lasts:
            assert fleet["state"] in trouble.states, fleet
        site.check_health()
        with contextlib.suppress(psutil.Error):  # it may be the trouble itself
            agent_bytes = max(agent_bytes, psutil.Process(fleet["agent"]["pid"] or 0).memory_info().rss)
        time.sleep(_LOOK_INTERVAL_S)
    return said, agent_bytes


@contextlib.contextmanager
def _stranger() -> Iterator[None]:
    """Media of a client that nobody knows: the relay asks the cache for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        host, port = VIP.split(":")
        sock.connect((host, int(port)))
        for _ in range(5):
            sock.send(bytes((0x80,)) + bytes(99))
        yield


def _say(fleet: dict[str, Any]) -> str:
    return f"{fleet['state']}: {fleet.get('why')}"


def _lost(calls: list[Seen]) -> int:
    return sum(seen.lost_up + seen.lost_down for seen in calls)
