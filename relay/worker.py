"""A relay worker: one process, one loop over its public, fleet and control sockets.

Run by the supervisor as ``python -m relay.worker FD``, where FD is its control channel: settings come on it, then the flows
of the worker before this one, then the word to serve. It ends on SIGTERM, after it has emptied its sockets. When the
channel closes it ends too, unless its flows are in the kernel's maps: then it goes on serving until the next supervisor
has taken its slot over.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

from host.line_socket import LineSocket
from host.log import configure_logging
from host.privileges import drop_privileges
from host.scheduling import take_short_turns
from relay.core.flow import Flow, FlowKey
from relay.core.forwarding import FlowNotice, RelayCore
from relay.core.verdict import FlowEvent
from relay.dataplane.bpf.abi import MAX_NEXT_HOPS
from relay.dataplane.bpf.flow_store import KernelFlowStore
from relay.dataplane.bpf.heart import Heart
from relay.dataplane.counters import WorkerCounters
from relay.dataplane.pace import Pace
from relay.dataplane.userspace import UserspaceDataPath
from relay.dataplane.watch import Watch
from relay.settings import WorkerSettings
from relay.worker_cache import RefreshRounds, WorkerCache
from wire.admin import Message
from wire.flow_record import FlowRecord

logger = logging.getLogger("relay.worker")

# Four beats before the kernel takes the worker for dead (BPF: heartbeat_timeout_ns).
_TICK_S = 0.25
_DRAIN_S = 1.0
# Flows a page; a page stays far below the longest line of a channel (wire.admin.MAX_LINE_BYTES).
MAX_FLOWS_A_PAGE = 5000


def _unix_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


class Worker:
    """Glue between the core, the data path and the supervisor."""

    def __init__(self, settings: WorkerSettings, control: LineSocket) -> None:
        self._control: LineSocket | None = control
        maps = settings.kernel_maps
        self._store = (
            KernelFlowStore(maps["flows"], maps["provisional"], settings.policy.vips) if maps else None
        )
        self._heart = Heart(maps["workers"], maps["heartbeat"], settings.slot) if maps else None
        self._core = RelayCore(
            settings.policy,
            settings.keys,
            unix_s=_unix_s(),
            store=self._store,
            has_cache=settings.line_fd >= 0,
        )
        self._counters = WorkerCounters(settings.counters_fd, settings.counters_page)
        public = [socket.socket(fileno=fd) for fd in settings.public_fds]
        fleet = [socket.socket(fileno=fd) for fd in settings.fleet_fds]
        checks = [socket.socket(fileno=fd) for fd in settings.check_fds]
        self._path = UserspaceDataPath(self._core, self._counters, public, fleet, checks=checks)
        self._watch = Watch(self._path.sockets)
        self._watch.add(control)
        self._cache = self._open_cache(settings)
        # A signal that arrives while the loop sleeps must wake it.
        self._wakeup, wakeup_writer = socket.socketpair()
        wakeup_writer.setblocking(False)
        self._wakeup_writer = wakeup_writer
        signal.set_wakeup_fd(wakeup_writer.fileno())
        self._watch.add(self._wakeup)
        self._draining = False
        self._pace = Pace(settings.gather_us, settings.busy_poll_us)
        # Transceivers' hosts that the supervisor has been told of.
        self._told_hosts: set[bytes] = set()

    def _open_cache(self, settings: WorkerSettings) -> WorkerCache | None:
        recall = self._core.recall
        if recall is None:
            return None
        # What is in the maps the supervisor tells of again.
        rounds = (
            RefreshRounds(self._core.flows.assured, settings.refresh_s, time.monotonic())
            if self._store is None
            else None
        )
        line = socket.socket(fileno=settings.line_fd)
        self._watch.add(line)
        return WorkerCache(line, recall, self._core.events, rounds, self._path.send_held)

    def adopt(self, records: list[FlowRecord]) -> None:
        """Go on with flows of other workers; those of the one before come before ``run``, so that no packet is lost."""
        now = time.monotonic()
        for record in records:
            key = FlowKey(record.client, record.vip)
            self._core.adopt(key, record.transceiver, record.ufrag_tag, now)

    def run(self) -> None:
        """Serve until told to end."""
        signal.signal(signal.SIGTERM, self._drain)
        # What is here stays: no collection needs to look at it again.
        gc.freeze()
        self._tick(time.monotonic())
        if self._control is not None:
            self._control.send({"event": "ready"})
        next_tick = time.monotonic() + _TICK_S
        while not self._draining:
            due = next_tick if self._cache is None else min(next_tick, self._cache.due)
            sockets, ready = self._watch.wait(self._pace.timeout_s(due))
            now = time.monotonic()
            packets = 0
            for sock in sockets:
                count = self._path.receive(sock, now)
                self._watch.note(sock, count)
                packets += count
            if self._control in ready and not self._receive_control(now):
                if self._store is None:
                    return
                self._go_on_alone()
            self._follow_notices()
            self._use_cache(ready, now)
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._tick(now)
            self._pace.rest(packets, now, is_busy=self._watch.is_busy)
        self._empty_sockets()

    def _drain(self, signal_number: int, frame: object) -> None:
        self._draining = True

    def _empty_sockets(self) -> None:
        now = time.monotonic()
        for sock in self._path.sockets:
            while self._path.receive(sock, now) and time.monotonic() - now < _DRAIN_S:
                pass
        if self._core.recall is not None:
            self._core.recall.give_up()
        self._follow_notices()
        self._use_cache(set(), now)
        self._tick(now)

    def _use_cache(self, ready: set[Any], now: float) -> None:
        cache = self._cache
        if cache is None:
            return
        if cache.socket in ready and not cache.receive(now):
            self._close_cache(cache)
            return
        cache.end_turn(now)

    def _close_cache(self, cache: WorkerCache) -> None:
        """The agent is gone for good, with its supervisor: unknown clients wait for their next checks again."""
        if self._core.recall is not None:
            self._core.recall.give_up()
        self._path.send_held()
        self._core.recall = self._cache = None
        self._watch.remove(cache.socket)
        cache.socket.close()

    def _go_on_alone(self) -> None:
        logger.warning("the supervisor is gone; serving until the next one takes over (`relayctl start`)")
        if self._control is not None:
            self._watch.remove(self._control)
            self._control.close()
            self._control = None

    def _tick(self, now: float) -> None:
        self._core.handle_timer(now, _unix_s())
        self._counters.add_events(self._core.events)
        self._counters.set_flows(len(self._core.flows), len(self._core.flows.assured))
        # A map that refuses (frozen by whoever broke into another worker) must not end calls.
        with contextlib.suppress(OSError):
            if self._heart is not None:
                self._heart.beat()
            if self._store is not None:
                self._store.refresh(self._core.flows, now)
        if self._control is not None:
            self._control.flush()

    def _follow_notices(self) -> None:
        while (notice := self._core.next_notice()) is not None:
            if notice.is_news and self._cache is not None:
                self._cache.note(notice.flow)
            if self._store is None:
                self._tell(notice)
                continue
            if not self._store.note(notice):
                self._core.events[FlowEvent.FLOW_REFUSED] += 1
            if not notice.ended:
                self._core.flows.save(notice.flow)
            self._tell_host(notice.flow.transceiver.host)

    def _tell_host(self, host: bytes) -> None:
        """For XDP to forward to it, the supervisor finds the way there."""
        if host in self._told_hosts or self._control is None:
            return
        if len(self._told_hosts) >= MAX_NEXT_HOPS:
            self._told_hosts.clear()
        self._told_hosts.add(host)
        self._control.send({"event": "transceiver", "host": host.hex()})

    def _tell(self, notice: FlowNotice) -> None:
        flow = notice.flow
        if flow.assured and self._control is not None:
            record = FlowRecord(*flow.key, flow.transceiver, flow.ufrag_tag)
            event = "flow_ended" if notice.ended else "flow_assured"
            self._control.send({"event": event, "flow": record.to_json()})

    def _receive_control(self, now: float) -> bool:
        control = self._control
        messages = control.receive() if control is not None else None
        if control is None or messages is None:
            return False
        for message in messages:
            match message:
                case {"method": str()}:
                    control.send({"id": message["id"], **self._answer(message, now)})
                case {"event": "adopt"}:
                    self.adopt([FlowRecord.from_json(flow) for flow in message["flows"]])
        return True

    def _answer(self, message: Message, now: float) -> Message:
        if message["method"] == "ping":
            return {"result": "pong"}
        if message["method"] == "flows":
            match message["params"]:
                case {"limit": int(limit), "client": str() | None as client}:
                    return {"result": self._list_flows(now, limit, client)}
            return {"error": "flows takes a limit (a whole number) and a client (text, or null)"}
        return {"error": f"no method {message['method']!r} in a worker"}

    def _list_flows(self, now: float, limit: int, client: str | None) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for flow in self._core.flows:
            if len(listed) >= min(limit, MAX_FLOWS_A_PAGE):
                break
            description = _describe_flow(flow, now)
            if client is None or client in (description["client"], str(flow.key.client.ip)):
                listed.append(description)
        return listed


def _describe_flow(flow: Flow, now: float) -> dict[str, Any]:
    return {
        "client": str(flow.key.client),
        "vip": str(flow.key.vip),
        "transceiver": str(flow.transceiver),
        "state": ("released" if flow.released else "assured") if flow.assured else "provisional",
        "age_s": round(now - flow.created_at, 1),
        "idle_s": round(now - flow.last_seen, 1),
        "packets_up": flow.packets_up,
        "bytes_up": flow.bytes_up,
        "packets_down": flow.packets_down,
        "bytes_down": flow.bytes_down,
    }


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    take_short_turns()
    sock = socket.socket(fileno=int(sys.argv[1]))
    control = LineSocket(sock)
    worker: Worker | None = None
    while (messages := control.receive()) is not None:
        for message in messages:
            match message:
                case {"event": "configure"}:
                    if message["core"] is not None:
                        os.sched_setaffinity(0, {message["core"]})
                    settings = WorkerSettings.from_message(message["settings"])
                    worker = Worker(settings, control)
                    drop_privileges(message["user"])
                case {"event": "adopt"} if worker is not None:
                    worker.adopt([FlowRecord.from_json(flow) for flow in message["flows"]])
                case {"event": "serve"} if worker is not None:
                    sock.setblocking(False)
                    worker.run()
                    return


if __name__ == "__main__":
    main()
