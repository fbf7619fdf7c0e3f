"""Calls of one transceiver, as a process: ``python -m bench.transceiver.load``.

The job is a line of JSON on standard input; then each line is a command, answered by a line. Between commands checks are
sent and answered. What a turn takes besides sending and receiving is done before and after it: packets are protected
before the first is sent, and those that came are unprotected and compared after the last. It ends with standard input.
"""

import gc
import json
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import Any

import pylibsrtp
from OpenSSL import SSL

from bench.errors import BenchError
from bench.transceiver.caller import Caller
from bench.transceiver.dtls import Certificate
from bench.transceiver.line import Key, Line, PlainLine, SockAddr, SppLine
from bench.transceiver.speech import make_speech
from bench.transceiver.tally import (
    FRAME_NS,
    Came,
    Said,
    Tally,
    count_exact,
    count_stream,
    delays_by_sound,
)
from bench.transceiver.turn import Turn
from bench.transceiver.vitals import cpu_ns
from wire.address import Address

_CHECK_INTERVAL_S = 2.5  # Chromium's
_RETRY_S, _SETUP_S = 0.25, 15.0
# What comes later than this is late in any case.
_SETTLE_S, _IDLE_S = 0.3, 0.1
_MAX_BYTES = 2048
# A loop that is late catches up by and by, never in one burst.
_MAX_SENDS, _MAX_READS = 2, 16
# Below this a loop asks again in place of sleeping: it would wake too late.
_SPIN_S = 0.00003
_HEAD_START_NS = 5_000_000
# Sound is compared of so many calls.
_LISTENED = 4


@dataclass(frozen=True, kw_only=True)
class LoadJob:
    """``url``: where offers are posted. ``pid``: the process under test, on ``served_core``; we are on ``core``.

    transceiver: its UDP address where we are its relay; empty for a plain peer that finds us at ``ip``.
    is_exact: payloads come back as they were sent.
    """

    url: str
    pid: int
    ip: str
    transceiver: str
    vip: str
    is_exact: bool
    core: int
    served_core: int


class Load:
    """All calls, and the one socket."""

    def __init__(self, job: LoadJob) -> None:
        self._job = job
        self._line = _line(job)
        self._certificate = Certificate()
        self._speech = make_speech()
        self._frame_of = {frame: index for index, frame in enumerate(self._speech.frames)}
        self._calls: list[Caller] = []
        self._by_key: dict[Key, Caller] = {}
        self._by_ufrag: dict[bytes, Caller] = {}
        self._made = self._next_check = 0
        self._checked_at = time.monotonic()
        self._arrived: list[tuple[int, Caller, bytes]] = []
        self._is_listening = False
        self._spoke_at = time.monotonic_ns()

    # commands

    def set_calls(self, count: int) -> dict[str, Any]:
        """So many calls, one made after the other; those that are too many hang up."""
        began, cpu = time.monotonic(), cpu_ns(self._job.pid)
        before = len(self._calls)
        while len(self._calls) < count:
            self._set_up()
        made_s = time.monotonic() - began
        self._drain()  # the other side has yet to take our last flight
        cpu_s = (cpu_ns(self._job.pid) - cpu) / 1e9
        while len(self._calls) > count:
            self._hang_up(self._calls.pop())
        return {
            "calls": len(self._calls),
            "made": max(0, count - before),
            "seconds": made_s,
            "cpu_s": cpu_s,
            "profile": self._calls[0].dtls.profile if self._calls else "",
        }

    def run(self, seconds: float, warm_s: float, first: int = 0, count: int | None = None) -> dict[str, Any]:
        """Have calls speak; what came of everything after ``warm_s``."""
        calls = self._calls[first : None if count is None else first + count]
        pace = round((seconds + warm_s) * 1e9 / FRAME_NS)
        since = round(warm_s * 1e9 / FRAME_NS)
        paused = (time.monotonic_ns() - self._spoke_at) * 48_000 // 1_000_000_000
        said_from = {}
        spoken = []
        for call in calls:
            said_from[call.index] = call.spoken
            call.pause(paused)
            spoken.append(call.speak(pace))
        gc.collect()
        gc.disable()
        self._arrived, self._is_listening = [], True
        turn = self._speak(calls, spoken, since)
        self._drain()
        self._is_listening = False
        gc.enable()
        self._spoke_at = time.monotonic_ns()
        sent = [
            Said(turn.sent_at[i :: len(calls)], said_from[call.index], len(self._speech.frames))
            for i, call in enumerate(calls)
        ]
        tally = self._count(calls, sent, since)
        return {**tally.to_json(), **turn.to_json(), "own_drops": self._line.own_drops(), "calls": len(calls)}

    # setting up

    def _set_up(self) -> None:
        call = Caller(self._made, self._line, self._certificate, self._speech)
        self._made += 1
        if isinstance(self._line, SppLine):
            call.peer = self._line.transceiver
            self._by_key[call.header] = call
        self._by_ufrag[call.ufrag.encode()] = call
        call.dial(self._job.url)
        self._calls.append(call)
        deadline = time.monotonic() + _SETUP_S
        while not call.dtls.is_done:
            if call.peer and not call.is_answered:
                self._send(call, call.check())
            self._receive_for(call, _RETRY_S)
            if time.monotonic() > deadline:
                raise BenchError(f"call {call.index} was not set up within {_SETUP_S:g} s")

    def _receive_for(self, call: Caller, seconds: float) -> None:
        """Until the call's handshake is done, at most for so long."""
        until = time.monotonic() + seconds
        while not call.dtls.is_done and time.monotonic() < until:
            self._wait(until - time.monotonic())
            self._receive()

    def _hang_up(self, call: Caller) -> None:
        call.hang_up(self._job.url)
        self._by_key = {key: one for key, one in self._by_key.items() if one is not call}
        del self._by_ufrag[call.ufrag.encode()]

    # a turn

    def _speak(self, calls: list[Caller], spoken: list[list[bytes]], since: int) -> Turn:
        """Each packet at its time, the calls' phases evenly spread over the 20 ms."""
        peers = [call.peer for call in calls]
        assert all(peers)
        count, total, clock, sock = (
            len(calls),
            len(calls) * len(spoken[0]),
            time.monotonic_ns,
            self._line.sock,
        )
        step = FRAME_NS / count
        packets = [spoken[i % count][i // count] for i in range(total)]
        measured = since * count
        started = clock() + _HEAD_START_NS
        turn = Turn(self._job.pid, self._job.served_core, started, step)
        sent_at, number = turn.sent_at, 0
        while number < total:
            now = clock()
            for _ in range(_MAX_SENDS):
                if number == total or now < started + number * step:
                    break
                if number == measured:
                    turn.begin(now)
                sock.sendto(packets[number], peers[number % count])  # type: ignore[arg-type]
                sent_at.append(clock())
                number += 1
            if not self._receive():
                self._check()
                wait_s = (started + number * step - clock()) / 1e9
                if wait_s > _SPIN_S:
                    self._wait(wait_s)
        turn.end(clock())
        return turn

    def _drain(self) -> None:
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until:
            self._wait(until - time.monotonic())
            self._receive()

    def _count(self, calls: list[Caller], sent: list[Said], since: int) -> Tally:
        came: dict[int, list[Came]] = {call.index: [] for call in calls}
        total = Tally()
        for at, call, datagram in self._arrived:
            # https://www.rfc-editor.org/rfc/rfc5761#section-4: RTCP
            if 192 <= datagram[1] <= 223:
                continue
            try:
                packet = call.open(datagram)
            except pylibsrtp.Error:
                total.damaged += 1
                continue
            if call.index in came:
                came[call.index].append(Came(at, packet.number, packet.payload))
        for order, (call, said) in enumerate(zip(calls, sent, strict=True)):
            if self._job.is_exact:
                total.add(count_exact(said, came[call.index], self._frame_of, since, len(said.at)))
            else:
                total.add(count_stream(said, came[call.index], since))
                if order < _LISTENED:
                    begin, end = said.at[since], said.at[-1]
                    recent = [packet for packet in came[call.index] if begin <= packet.at <= end]
                    total.delays_ms += delays_by_sound(said, recent, self._speech.heard)
        self._arrived = []
        return total

    # the socket

    def _send(self, call: Caller, datagram: bytes) -> None:
        assert call.peer is not None
        self._line.sock.sendto(call.header + datagram, call.peer)

    def _wait(self, seconds: float) -> None:
        select.select([self._line.sock], [], [], max(0.0, seconds))

    def _receive(self) -> bool:
        """Take some of what came; whether something did."""
        skip, sock = self._line.header_bytes, self._line.sock
        for number in range(_MAX_READS):
            try:
                datagram, source = sock.recvfrom(_MAX_BYTES)
            except BlockingIOError:
                return number > 0
            call = self._by_key.get(self._line.key(datagram, source))
            if len(datagram) > skip and 128 <= datagram[skip] <= 191:
                if self._is_listening and call is not None:
                    self._arrived.append((time.monotonic_ns(), call, datagram[skip:]))
            else:
                self._receive_other(call, datagram[skip:], source)
        return True

    def _receive_other(self, call: Caller | None, datagram: bytes, source: SockAddr) -> None:
        if datagram[:1] <= b"\x03":
            if call is None:
                call = self._meet(datagram, source)
            if call is not None:
                for answer in call.receive_stun(datagram, source):
                    self._line.sock.sendto(call.header + answer, source)
        elif call is not None:
            if isinstance(self._line, PlainLine):
                call.peer = source
            try:
                flight = call.dtls.receive(datagram)
            except SSL.Error:
                return  # a goodbye, or a record after it
            for made in flight:
                self._send(call, made)

    def _meet(self, datagram: bytes, source: SockAddr) -> Caller | None:
        """The call that a plain peer's first check names; from now on its socket tells."""
        for ufrag, call in self._by_ufrag.items():
            if ufrag + b":" in datagram:
                self._by_key[source] = call
                call.peer = call.peer or source
                return call
        return None

    def _check(self) -> None:
        """The consent checks that are due; a lite agent sends none."""
        if not isinstance(self._line, SppLine) or not self._calls:
            return
        now = time.monotonic()
        due = int((now - self._checked_at) / _CHECK_INTERVAL_S * len(self._calls))
        if due:
            self._checked_at = now
            for _ in range(min(due, len(self._calls))):
                self._next_check = (self._next_check + 1) % len(self._calls)
                call = self._calls[self._next_check]
                self._send(call, call.check())

    def idle(self) -> None:
        """Until there is something on standard input: answer and check."""
        while True:
            readable, _, _ = select.select([self._line.sock, sys.stdin], [], [], _IDLE_S)
            if sys.stdin in readable:
                return
            self._receive()
            self._check()


def _line(job: LoadJob) -> Line:
    if not job.transceiver:
        return PlainLine(job.ip)
    address = Address.parse(job.transceiver)
    return SppLine((str(address.ip), address.port), Address.parse(job.vip))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Obey standard input."""
    job = LoadJob(**json.loads(sys.stdin.readline()))
    os.sched_setaffinity(0, {job.core})
    load = Load(job)
    _say({})
    while True:
        load.idle()
        line = sys.stdin.readline()
        if not line:
            return
        command = json.loads(line)
        try:
            _say(load.run(**command["run"]) if "run" in command else load.set_calls(command["calls"]))
        except (BenchError, SSL.Error) as error:
            _say({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    main()
