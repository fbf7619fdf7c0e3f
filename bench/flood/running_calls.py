"""A process of ``bench.flood.calls``, started and asked."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.flood.calls import CallsJob
from bench.flood.lanes import Count


@dataclass(frozen=True)
class Span:
    """What was sent from one time to another, by kind; ``answers`` counts checks, and as lost those without an answer."""

    up: Count
    down: Count
    checks: Count
    answers: Count


@dataclass(frozen=True, kw_only=True)
class CallsReport:
    """What became of packets, by span; the rest is since the beginning.

    late, doubled, damaged: packets out of order within their flow, come again, or not as they were sent. stray: of no flow.
    send_errors, own_drops: refused or dropped by the sockets of the calls themselves, no fault of the relay's.
    behind_s: how far they once were behind their pace.
    """

    spans: tuple[Span, ...]
    late: int
    doubled: int
    damaged: int
    stray: int
    send_errors: int
    own_drops: int
    behind_s: float


class RunningCalls:
    """Calls that carry packets both ways."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, line: str) -> dict[str, Any]:
        """One line to it, one line back. Raises BenchError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        message: dict[str, Any] = json.loads(answer) if answer else {"error": "they ended"}
        if "error" in message:
            raise BenchError(f"calls: {message['error']}")
        return message

    def report(self, spans: Sequence[tuple[float, float]]) -> CallsReport:
        """Of spans in monotonic seconds; what is still on its way counts as lost."""
        message = self.say(json.dumps({"spans": spans}))
        found = [
            Span(**{kind: Count(**counted) for kind, counted in span.items()}) for span in message["spans"]
        ]
        return CallsReport(**{**message, "spans": tuple(found)})


@contextlib.contextmanager
def running_calls(job: CallsJob) -> Iterator[RunningCalls]:
    """Calls for the life of the block, all of them up. Raises BenchError."""
    command = [sys.executable, "-m", "bench.flood.calls"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            calls = RunningCalls(process)
            calls.say(json.dumps(asdict(job)))
            yield calls
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)
        finally:
            process.kill()
