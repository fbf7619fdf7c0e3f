"""The agent as a process of its own: what it does when its supervisor dies."""

import asyncio
import socket
import sys
from pathlib import Path

from fleet.line import Found, RelayLine, open_line
from fleet.settings import AgentSettings
from host.channel import STREAM_LIMIT, Channel
from tests.fleet.bench import KEYS, config, flow
from tests.host.deadline import until
from tests.redis.server import RedisServer


async def test_it_serves_until_the_last_worker_is_gone(redis: RedisServer, tmp_path: Path) -> None:
    lines = [open_line() for _ in range(3)]
    agent_fds = tuple(agent_end.fileno() for _, agent_end in lines)
    settings = AgentSettings(
        redis=config(redis.url),
        secrets=config(redis.url).read_secrets(),
        cluster_id=1,
        keys=KEYS,
        line_fds=agent_fds,
    )
    ours, theirs = socket.socketpair()
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "fleet.agent", str(theirs.fileno())),
        pass_fds=(theirs.fileno(), *agent_fds),
    )
    try:
        theirs.close()
        for _, agent_end in lines:
            agent_end.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT)
        events: list[str] = []
        channel = Channel(reader, writer, on_event=lambda message: events.append(message["event"]))
        serving = asyncio.create_task(channel.run())
        channel.send_event("configure", settings=settings.to_message(), core=None, user=None)
        await until(lambda: "ready" in events, "it is ready")
        line = RelayLine(lines[0][0])
        await until(lambda: line.receive()[1], "everything is to be told")
        # The supervisor dies, and with it all its ends but the one of a worker that goes on.
        channel.close()
        await serving
        for relay_end, _ in lines[1:]:
            relay_end.close()
        line.tell([flow().pack()])
        found: list[Found] = []

        def ask() -> bool:
            line.ask([flow().name])
            found.extend(finding.found for finding in line.receive()[0])
            return Found.HIT in found

        await until(ask, "it serves on")
        assert agent.returncode is None
        lines[0][0].close()
        assert await asyncio.wait_for(agent.wait(), 5) == 0
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
        for relay_end, _ in lines:
            relay_end.close()
