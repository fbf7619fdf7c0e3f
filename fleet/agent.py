"""The one process that speaks with Redis.

Run by the supervisor as ``python -m fleet.agent FD``, where FD is its control channel; the ends of the lines are inherited.
It is ready at once, whether there is a Redis or not, and what Redis does, or says, can end nobody else. When the channel
closes it goes on for as long as a worker has the other end of a line. It ends on SIGTERM.
"""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fleet.cache import FleetCache
from fleet.line import AgentLine
from fleet.redis_client import LinkError
from fleet.settings import AgentSettings
from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.errors import OperatorError
from host.log import configure_logging
from host.privileges import drop_privileges
from host.scheduling import take_short_turns
from wire.address import Address
from wire.admin import Message, decode_message_untrusted
from wire.errors import WireError

logger = logging.getLogger("fleet.agent")

# Three times what 100,000 flows that wait need: a hostile Redis must not take the host's memory.
_MAX_DATA_BYTES = 256 * 1024 * 1024
_TICK_S = 0.25
# A Redis that comes and goes, as one at the edge of its memory does, has everything told no more often.
_AGAIN_PAUSE_S = 2.0
# A supervisor that says nothing for so long does not live, nor should its leases; one that asks a process that hangs takes 5 s.
_PRESENCE_TIMEOUT_S = 7.0
_GOODBYE_S = 0.5


class Agent:
    """Glue between the lines, the supervisor and the cache."""

    def __init__(self, settings: AgentSettings, tls: ssl.SSLContext | None) -> None:
        self._cache = FleetCache(settings, tls, on_again=self._want_everything)
        self._lines = [AgentLine(socket.socket(fileno=fd)) for fd in settings.line_fds]
        # Redis may lack what it was told: `again` is due.
        self._wants_everything = False
        # When it may be asked for.
        self._again_from = 0.0
        # Lines that have not got it yet: their queue is full, or the last one is unread, as in the line of no worker.
        self._owed: set[AgentLine] = set()
        self._own_leases: dict[str, dict[str, Any]] = {}
        self._heard_at = 0.0
        self._renew = asyncio.Event()
        self._lease_s = settings.redis.lease_s
        self._ending = asyncio.Event()
        self._channel: Channel | None = None
        self._has_reported_shut_line = False

    async def run(self, channel: Channel) -> None:
        """Serve until SIGTERM, or without a supervisor until nobody has a line."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        self._channel = channel
        chores = [
            asyncio.create_task(self._serve_supervisor(channel), name="the supervisor's channel"),
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._tick(), name="ticks"),
        ]
        for chore in chores:
            chore.add_done_callback(self._follow_chore)
        channel.send_event("ready")
        await self._cache.start()
        for line in self._lines:
            loop.add_reader(line.fileno(), self._receive, line)
        await self._ending.wait()
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._cache.registry.give_up(self._cache.write, list(self._own_leases))
        for chore in chores:
            chore.cancel()
        await self._cache.close()
        channel.close()

    async def answer(self, method: str, params: dict[str, Any]) -> Any:
        """Requests of the supervisor."""
        match method, params:
            case "ping", _:
                return "pong"
            case "status", _:
                return self._cache.describe()
            case "cache_stats", _:
                return await self._cache.stats()
            case "cache_get", {"client": str(client), "vips": list(vips)}:
                return [await self._cache.get(Address.parse(client), Address.parse(vip)) for vip in vips]
        raise ChannelError(f"no method {method!r} in the agent")

    def follow_supervisor(self, message: Message) -> None:
        """Events of the supervisor."""
        match message:
            case {"event": "presence", "leases": dict(leases)}:
                self._heard_at = asyncio.get_running_loop().time()
                changed = _states(leases) != _states(self._own_leases)
                self._own_leases = leases
                if changed:
                    self._renew.set()
            case {"event": "secrets", "password": str(password), "sentinel_password": str(sentinel_password)}:
                logger.info("the password has changed")
                self._cache.use_secrets(password, sentinel_password)

    async def _serve_supervisor(self, channel: Channel) -> None:
        await channel.run()
        if not self._ending.is_set():
            logger.warning("the supervisor is gone; serving until the last worker is")
        self._end_if_alone()

    def _receive(self, line: AgentLine) -> None:
        try:
            told, asked = line.receive_untrusted()
            self._cache.tell(told)
            self._cache.ask(line, asked)
        except WireError:
            # Whoever broke into a worker: others have the same line after it.
            self._cache.counts["malformed"] += 1
        if line.is_closed:
            self._drop(line)
            # The supervisor has every line's other end, and may be just about to be gone.
            asyncio.get_running_loop().call_later(_GOODBYE_S, self._report_shut_line)
            self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._channel is not None and self._channel.is_closed and not self._lines:
            self._ending.set()

    def _report_shut_line(self) -> None:
        if self._channel is not None and not self._channel.is_closed and not self._has_reported_shut_line:
            self._has_reported_shut_line = True
            logger.warning("a worker has shut its line down, and hears of no flows until the relay restarts")

    def _drop(self, line: AgentLine) -> None:
        asyncio.get_running_loop().remove_reader(line.fileno())
        self._lines.remove(line)
        self._owed.discard(line)
        line.close()

    def _follow_chore(self, chore: asyncio.Task[None]) -> None:
        """One that failed ends the agent: the supervisor starts another."""
        if not chore.cancelled() and chore.exception() is not None:
            logger.error("%s failed", chore.get_name(), exc_info=chore.exception())
            self._ending.set()

    def _want_everything(self) -> None:
        self._wants_everything = True

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._cache.note_state()
            if self._wants_everything and loop.time() >= self._again_from:
                self._again_from = loop.time() + _AGAIN_PAUSE_S
                self._wants_everything = False
                self._cache.counts["again"] += 1
                self._owed.update(self._lines)
            self._owed = {line for line in self._owed if not line.want_everything()}
            await asyncio.sleep(_TICK_S)

    async def _keep_leases(self) -> None:
        """Renew ours, and tell the supervisor of everybody's."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_s / 4):
                    await self._renew.wait()
            self._renew.clear()
            with contextlib.suppress(LinkError, TimeoutError):
                if self._own_leases and loop.time() - self._heard_at < _PRESENCE_TIMEOUT_S:
                    async with asyncio.timeout(self._lease_s / 2):
                        await self._cache.registry.renew(self._cache.write, self._own_leases)
            with contextlib.suppress(LinkError, TimeoutError):
                async with asyncio.timeout(self._lease_s / 2):
                    leases = await self._cache.registry.read(self._cache.read)
                if self._channel is not None:
                    self._channel.send_event("leases", leases=leases)


def _states(leases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What others should hear of at once."""
    return {name: document.get("state") for name, document in leases.items()}


async def _main(control_fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=control_fd), limit=STREAM_LIMIT)
    line = await reader.readline()
    if not line:
        return
    message = decode_message_untrusted(line)
    settings = AgentSettings.from_message(message["settings"])
    # While the key can still be read.
    tls = settings.redis.tls_context()
    drop_privileges(message["user"])
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, _MAX_DATA_BYTES))
    # Names are looked up in these; a resolver that hangs has them all, and nothing else waits.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    agent = Agent(settings, tls)
    await agent.run(Channel(reader, writer, on_request=agent.answer, on_event=agent.follow_supervisor))


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    # Clients wait for what it finds.
    take_short_turns()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_main(int(sys.argv[1])))
    except OperatorError as error:
        logger.error("%s", error)
        sys.exit(1)
    logging.shutdown()
    # Else Python waits for a resolver that hangs.
    os._exit(0)


if __name__ == "__main__":
    main()
