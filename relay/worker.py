"""A relay worker: one process, one loop over its public, fleet and control sockets.

Run by the supervisor as ``python -m relay.worker FD``, where FD is its control channel: settings come on it, then the flows
of the worker before this one, then the word to serve. It ends when the channel closes, and on SIGTERM after it has
emptied its sockets.
"""

import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

from fleet.flow_cache import FlowRecord
from host.line_socket import LineSocket
from host.log import configure_logging
from relay.core.flow_table import Flow, FlowKey
from relay.core.forwarding import RelayCore
from relay.dataplane.counters import WorkerCounters
from relay.dataplane.userspace import UserspaceDataPath
from relay.settings import WorkerSettings
from wire.admin import Message

_TICK_S = 1.0
# Flows a page; a page stays far below the longest line of a channel (wire.admin.MAX_LINE_BYTES).
MAX_FLOWS_A_PAGE = 5000


def _unix_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


class Worker:
    """Glue between the core, the data path and the supervisor."""

    def __init__(self, settings: WorkerSettings, control: LineSocket) -> None:
        self._control = control
        self._core = RelayCore(settings.policy, settings.keys, unix_s=_unix_s())
        self._counters = WorkerCounters(settings.counters_fd)
        public = [socket.socket(fileno=fd) for fd in settings.public_fds]
        fleet = [socket.socket(fileno=fd) for fd in settings.fleet_fds]
        self._path = UserspaceDataPath(self._core, self._counters, public, fleet)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        for sock in self._path.sockets:
            self._selector.register(sock, selectors.EVENT_READ, sock)
        # A signal that arrives while the loop sleeps must wake it.
        self._wakeup, wakeup_writer = socket.socketpair()
        wakeup_writer.setblocking(False)
        self._wakeup_writer = wakeup_writer
        signal.set_wakeup_fd(wakeup_writer.fileno())
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._draining = False

    def adopt(self, records: list[FlowRecord]) -> None:
        """Go on with the flows of the worker before this one; before ``run``, so that no packet meets an empty table."""
        now = time.monotonic()
        for record in records:
            key = FlowKey(record.client, record.vip)
            self._core.adopt(key, record.transceiver, record.server_ufrag, now)

    def run(self) -> None:
        """Serve until told to end."""
        signal.signal(signal.SIGTERM, self._drain)
        self._control.send({"event": "ready"})
        control, next_tick = self._control, time.monotonic()
        while not self._draining:
            ready = self._selector.select(max(0.0, next_tick - time.monotonic()))
            now = time.monotonic()
            for key, _ in ready:
                if key.data is not None:
                    self._path.receive(key.data, now)
                elif key.fileobj is control and not self._receive_control(now):
                    return
            self._tell_notices()
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._tick(now)
        self._empty_sockets()

    def _drain(self, signal_number: int, frame: object) -> None:
        self._draining = True

    def _empty_sockets(self) -> None:
        now = time.monotonic()
        for sock in self._path.sockets:
            while self._path.receive(sock, now) and time.monotonic() - now < _TICK_S:
                pass
        self._tick(now)

    def _tick(self, now: float) -> None:
        self._core.handle_timer(now, _unix_s())
        self._counters.add_events(self._core.events)
        self._counters.set_flows(len(self._core.flows), self._core.flows.assured_count)
        self._control.flush()

    def _tell_notices(self) -> None:
        while (notice := self._core.next_notice()) is not None:
            flow = notice.flow
            record = FlowRecord(*flow.key, flow.transceiver, flow.server_ufrag)
            event = "flow_ended" if notice.ended else "flow_assured"
            self._control.send({"event": event, "flow": record.to_json()})

    def _receive_control(self, now: float) -> bool:
        messages = self._control.receive()
        if messages is None:
            return False
        for message in messages:
            if "method" in message:
                self._control.send({"id": message["id"], **self._answer(message, now)})
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
        "state": "assured" if flow.assured else "provisional",
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
    sock = socket.socket(fileno=int(sys.argv[1]))
    control = LineSocket(sock)
    worker: Worker | None = None
    while (messages := control.receive()) is not None:
        for message in messages:
            match message:
                case {"event": "configure"}:
                    if message["core"] is not None:
                        os.sched_setaffinity(0, {message["core"]})
                    worker = Worker(WorkerSettings.from_message(message["settings"]), control)
                case {"event": "adopt"} if worker is not None:
                    worker.adopt([FlowRecord.from_json(flow) for flow in message["flows"]])
                case {"event": "serve"} if worker is not None:
                    sock.setblocking(False)
                    worker.run()
                    return


if __name__ == "__main__":
    main()
