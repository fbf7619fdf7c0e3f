"""A worker's part in the fleet's cache of flows: it asks for clients that it does not know, and tells of its assured flows.

All of it goes by a line to the agent (fleet/line.py), after the packets of a turn; nothing here waits for an answer.
"""

import socket
from collections.abc import Callable

from fleet.line import Found, RelayLine
from relay.core.assured_flows import AssuredFlows
from relay.core.flow import Flow
from relay.core.recall import Recall
from relay.core.verdict import FlowEvent
from wire.errors import WireError
from wire.flow_record import FlowRecord

# About 0.2 ms of a worker's time, in which packets wait.
_SLICE_ROWS = 500
# When the cache has lost its memory: 100,000 flows are told again within 5 s.
_HURRIED_SLICE_S = 0.025
_NEVER = float("inf")


class RefreshRounds:
    """Tells of all living flows again and again, a slice of the table at a time; a round takes ``round_s``."""

    def __init__(self, flows: AssuredFlows, round_s: float, now: float) -> None:
        self.due = now
        self._flows = flows
        self._round_s = round_s
        self._next_row = 0
        # Of a round in a hurry.
        self._rows_owed = 0

    def tell_again(self, now: float) -> None:
        """Tell everything now, as fast as packets allow: once around from here, so that who asks often hears of all."""
        self.due, self._rows_owed = now, self._flows.row_count

    def take(self, now: float) -> list[bytes]:
        """Records of the next slice, when it is due."""
        if now < self.due:
            return []
        begin, rows = self._next_row, self._flows.row_count
        slice_s = _HURRIED_SLICE_S if self._rows_owed > 0 else self._round_s / max(1, -(-rows // _SLICE_ROWS))
        self.due = now + slice_s
        self._rows_owed -= _SLICE_ROWS
        self._next_row = begin + _SLICE_ROWS if begin + _SLICE_ROWS < rows else 0
        # What was silent for a whole round is not refreshed: it ends soon, or has ended.
        return self._flows.records(begin, begin + _SLICE_ROWS, now - self._round_s)


class WorkerCache:
    """See the top of this file. ``rounds`` is None where others tell of this worker's flows again."""

    def __init__(
        self,
        line: socket.socket,
        recall: Recall,
        events: list[int],
        rounds: RefreshRounds | None,
        send_held: Callable[[], None],
    ) -> None:
        self.socket = line
        self._line = RelayLine(line)
        self._recall = recall
        self._events = events
        self._rounds = rounds
        self._send_held = send_held
        self._news: list[bytes] = []

    @property
    def due(self) -> float:
        """When there is something to do, though nothing has come."""
        return min(self._recall.due, self._rounds.due if self._rounds else _NEVER)

    def note(self, flow: Flow) -> None:
        """An assured flow that the cache does not have as it is now."""
        self._news.append(FlowRecord(*flow.key, flow.transceiver, flow.ufrag_tag).pack())

    def receive(self, now: float) -> bool:
        """Follow what the agent says; False if nobody is at the other end any more."""
        try:
            findings, again = self._line.receive()
        except (WireError, ValueError):  # an agent that was broken into ends no worker
            return True
        for name, found, record in findings:
            if record is not None:
                self._recall.receive_found(record, now)
            elif found is Found.UNAVAILABLE:
                self._recall.receive_unavailable(name, now)
            else:
                self._recall.receive_not_found(name, now)
        if again and self._rounds is not None:
            self._rounds.tell_again(now)
        return bool(findings) or again or not self._line.is_closed

    def end_turn(self, now: float) -> None:
        """Say what is to be said after the packets of a turn."""
        if now >= self._recall.due:
            self._recall.handle_timer(now)
        if questions := self._recall.next_questions():
            unasked = self._line.ask(questions)
            for name in questions[len(questions) - unasked :]:
                self._recall.receive_unavailable(name, now)
        if self._rounds is not None:
            self._news += self._rounds.take(now)
        if self._news:
            self._events[FlowEvent.FLOW_UNTOLD] += self._line.tell(self._news)
            self._news.clear()
        self._send_held()
