"""The one process that speaks with Redis: run by the supervisor as ``python -m fleet.agent FD``."""

import asyncio
import signal
import socket
import sys
from typing import Any

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.log import configure_logging


async def _answer(method: str, params: dict[str, Any]) -> Any:
    if method == "ping":
        return "pong"
    raise ChannelError(f"no method {method!r} in the agent")


async def _main(control_fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=control_fd), limit=STREAM_LIMIT)
    await reader.readline()
    channel = Channel(reader, writer, on_request=_answer)
    channel.send_event("ready")
    await channel.run()


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    asyncio.run(_main(int(sys.argv[1])))


if __name__ == "__main__":
    main()
