"""Twenty real calls in a process of their own, so that what a test does never makes them wait.

The job is a line on standard input, ``{"url": …, "count": …}``; ``{"up": seconds}`` is said once all calls are up. Then each
line is a question: ``look`` is answered with what every call saw, ``mark`` likewise, and pings are counted anew; ``call`` with
what one more call saw, that ends again; ``restart`` once ICE was restarted on every call at once.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.call import EchoCall
from host.errors import OperatorError
from tests.e2e.ice_restart import restart_ice

# 20 at once are a burst of key exchanges; they take about 2 s of a core.
_SETUP_TIMEOUT_S = 40.0
_NEWCOMER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Seen:
    """One call. Counts are since its beginning, but for ``longest_ping_ms``: since the last mark.

    silent_s: since the tone was last heard. lost_up: as the transceiver reports, lost_down: as the client counts.
    """

    state: str
    heard: bool
    silent_s: float
    answered: int
    overdue: int
    longest_ping_ms: float
    received: int
    lost_up: int
    lost_down: int


class LiveCalls:
    """The test's end of the process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def look(self) -> list[Seen]:
        """Every call."""
        return [Seen(**seen) for seen in self._ask("look")]

    def mark(self) -> list[Seen]:
        """Every call; the longest ping is from now on."""
        return [Seen(**seen) for seen in self._ask("mark")]

    def restart_ice(self) -> None:
        """On every call, all at once."""
        self._ask("restart")

    def one_more(self) -> dict[str, float]:
        """A new call, up and ended again: its phases in ms."""
        return dict(self._ask("call"))

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "they ended"}')
        assert "error" not in answer, f"calls: {answer['error']}"
        return answer["answer"]


@contextlib.contextmanager
def live_calls(url: str, count: int) -> Iterator[LiveCalls]:
    """That many calls for the life of the block, all of them up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.live_calls"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            calls = LiveCalls(process)
            calls._ask(json.dumps({"url": url, "count": count}))
            yield calls
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
        finally:
            process.kill()


async def _run() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    job = json.loads(await lines.readline())
    began = time.monotonic()
    try:
        async with contextlib.AsyncExitStack() as stack:
            calls = [EchoCall(job["url"], setup_timeout_s=_SETUP_TIMEOUT_S) for _ in range(job["count"])]
            await asyncio.gather(*(stack.enter_async_context(call) for call in calls))
            _say({"answer": {"up": time.monotonic() - began}})
            marks = [0] * len(calls)
            while line := (await lines.readline()).decode().strip():
                if line in ("look", "mark"):
                    looks = await asyncio.gather(*map(_look, calls, marks))
                    if line == "mark":
                        marks = [seen.answered for seen in looks]
                    _say({"answer": [asdict(seen) for seen in looks]})
                elif line == "restart":
                    await asyncio.gather(*map(restart_ice, calls))
                    _say({"answer": len(calls)})
                else:
                    async with EchoCall(job["url"], setup_timeout_s=_NEWCOMER_TIMEOUT_S) as newcomer:
                        _say({"answer": (await newcomer.report()).phases_ms})
    except OperatorError as error:
        _say({"error": str(error)})


async def _look(call: EchoCall, mark: int) -> Seen:
    report = await call.report()
    return Seen(
        state=report.state,
        heard=report.heard,
        silent_s=report.silent_s,
        answered=len(report.round_trips_ms),
        overdue=report.pings_overdue,
        longest_ping_ms=round(max(report.round_trips_ms[mark:], default=0.0), 1),
        received=report.downlink.get("received", 0),
        lost_up=report.uplink.get("lost", 0),
        lost_down=report.downlink.get("lost", 0),
    )


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_run())
