"""Runs on the client in relayctl's environment: one call, until standard input ends.

The first line of standard input is JSON: ``url``, ``token``, ``setup_s``, and ``message_bytes`` for messages of that length on
a data channel of their own. Each line of output is JSON, several a second at first and one a second then: what the call
counted up to now. The last one has ``over``.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from cli.call import CallError, EchoCall

_SAMPLE_S = 0.25
_MESSAGE_S = 0.2


class Messages:
    """Long messages on a data channel, and how many came back as they were."""

    def __init__(self, call: EchoCall, length: int) -> None:
        self.sent = self.answered = 0
        self._length = length
        self._unanswered: set[str] = set()
        self._channel = call.peer.createDataChannel("long")
        self._channel.on("message", self._receive)

    async def send(self) -> None:
        """Until cancelled."""
        while True:
            if self._channel.readyState == "open":
                message = os.urandom(self._length // 2).hex()
                self._unanswered.add(message)
                self._channel.send(message)
                self.sent += 1
            await asyncio.sleep(_MESSAGE_S)

    def _receive(self, message: str) -> None:
        if message in self._unanswered:
            self._unanswered.remove(message)
            self.answered += 1


class Gaps:
    """The longest time without a packet of the echo."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._received = -1
        self._grown_at = float("inf")

    def note(self, received: int) -> None:
        """Packets up to now."""
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._grown_at)
        if received != self._received:
            self._received, self._grown_at = received, now


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def place(order: dict[str, Any], over: asyncio.Event) -> None:
    url, token = order["url"], order["token"]
    async with EchoCall(url, bearer_token=token, setup_timeout_s=order["setup_s"]) as call:
        gaps, began = Gaps(), time.monotonic()
        messages = Messages(call, order.get("message_bytes", 0))
        sending = asyncio.create_task(messages.send()) if order.get("message_bytes") else None
        told_at = 0.0
        while True:
            report = await call.report()
            gaps.note(report.downlink.get("received", 0))
            now = time.monotonic()
            if now - told_at >= 1 or over.is_set():
                told_at = now
                tell(
                    seconds=round(now - began, 1),
                    over=over.is_set(),
                    longest_gap_s=round(gaps.longest_s, 2),
                    messages={"sent": messages.sent, "answered": messages.answered},
                    **report.to_json(),
                )
            if over.is_set():
                break
            await asyncio.sleep(_SAMPLE_S)
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def main() -> int:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    order = json.loads(await reader.readline())
    over = asyncio.Event()

    async def wait_for_end() -> None:
        await reader.read()
        over.set()

    ending = asyncio.create_task(wait_for_end())
    try:
        await place(order, over)
    except CallError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        ending.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
