"""Calls of stock aiortc clients in one process: ``python -m bench.recovery.aiortc_calls URL TOKEN_FILE COUNT``.

Each line of standard input is answered by one line of JSON: how each call is. They hang up when standard input ends.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from cli.call import EchoCall
from host.errors import OperatorError

# All at once, on a machine that has their transceivers to run too.
_SETUP_S = 30.0


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _state(call: EchoCall) -> dict[str, Any]:
    report = await call.report()
    return {"state": report.state, "silent_s": report.silent_s, "answered": len(report.round_trips_ms)}


async def _run(url: str, token: str, count: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        made = [EchoCall(url, bearer_token=token, setup_timeout_s=_SETUP_S) for _ in range(count)]
        try:
            calls = await asyncio.gather(*map(stack.enter_async_context, made))
        except OperatorError as error:
            _tell({"error": str(error)})
            return
        _tell({"calls": [await _state(call) for call in calls]})
        while await asyncio.to_thread(sys.stdin.readline):
            _tell({"calls": list(await asyncio.gather(*map(_state, calls)))})


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2]).read_text().strip(), int(sys.argv[3])))
