"""What Redis may do, and what workers hear then: soon an answer, whatever it is."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from fleet.line import Found
from host.process import ProcessState
from tests.fleet.bench import FleetBench, fleet_bench, flow
from tests.fleet.impostor import server_that
from tests.host.deadline import until
from tests.redis.server import RedisServer

PEOPLE_WAIT_S = 0.4


async def first_answer_is(bench: FleetBench, found: Found) -> None:
    began = time.monotonic()
    (finding,) = await bench.ask([flow()])
    assert finding.found is found
    assert time.monotonic() - began < PEOPLE_WAIT_S


async def tell_one(bench: FleetBench) -> None:
    await bench.reaches("connected")
    bench.line.tell([flow().pack()])
    await bench.written(1)
    await bench.hears_again()


async def test_killed_and_back_without_its_memory(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        redis.kill()
        for _ in range(5):
            await first_answer_is(bench, Found.UNAVAILABLE)
        await bench.reaches("away", why="cannot be reached")
        bench.line.tell([flow().pack()])
        assert bench.again == 0
        redis.start()
        await bench.reaches("connected")
        await bench.hears_again()
        await first_answer_is(bench, Found.MISS)
        bench.line.tell([flow().pack()])
        await bench.written(2)
        await first_answer_is(bench, Found.HIT)


async def test_restarted_so_fast_that_nobody_asked(redis: RedisServer, tmp_path: Path) -> None:
    """The connection was re-made: Redis may be empty."""
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        redis.kill()
        redis.start()
        await bench.hears_again()
        assert (await bench.counts())["reconnects"] >= 1


async def test_frozen(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        redis.freeze()
        for _ in range(3):
            await first_answer_is(bench, Found.UNAVAILABLE)
        await bench.reaches("degraded", "away", why="does not answer within")
        began = time.monotonic()
        await first_answer_is(bench, Found.UNAVAILABLE)
        assert time.monotonic() - began < 0.1  # at once: it is not even asked
        redis.thaw()
        await bench.reaches("connected")
        await first_answer_is(bench, Found.HIT)
        assert bench.process.restarts == 0


async def test_not_there_at_the_start(redis: RedisServer, tmp_path: Path) -> None:
    redis.kill()
    began = time.monotonic()
    async with fleet_bench(redis.url, tmp_path) as bench:
        assert bench.process.state is ProcessState.READY
        assert time.monotonic() - began < 3
        await first_answer_is(bench, Found.UNAVAILABLE)
        await bench.reaches("away")
        redis.start()
        await bench.reaches("connected")
        await bench.hears_again()


async def test_full(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        redis.cli("config", "set", "maxmemory-policy", "noeviction")
        redis.cli("config", "set", "maxmemory", "1")
        bench.line.tell([flow(1).pack()])
        status = await bench.reaches("degraded", why="is full")
        assert (status["reads"]["state"], status["writes"]["state"]) != ("open", "closed")
        await first_answer_is(bench, Found.HIT)
        await asyncio.sleep(0.5)  # PINGs are answered all the while
        assert (await bench.status())["state"] == "degraded"
        redis.cli("config", "set", "maxmemory", "0")
        await bench.reaches("connected")
        await bench.hears_again()


async def test_read_only(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        redis.cli("replicaof", "127.0.0.1", "1")
        bench.line.tell([flow(1).pack()])
        await bench.reaches("degraded", why="read-only")
        await first_answer_is(bench, Found.HIT)
        redis.cli("replicaof", "no", "one")
        await bench.reaches("connected")
        await bench.hears_again()


async def test_agent_killed(redis: RedisServer, tmp_path: Path) -> None:
    """Lines outlive it; what is asked meanwhile is answered by the next one."""
    async with fleet_bench(redis.url, tmp_path) as bench:
        await tell_one(bench)
        assert bench.process.pid is not None
        os.kill(bench.process.pid, signal.SIGKILL)
        bench.line.tell([flow(1).pack()])
        findings = await bench.ask([flow()])
        assert findings[0].found in (Found.HIT, Found.UNAVAILABLE)
        await until(lambda: bench.process.restarts == 1, "a restart")
        await bench.reaches("connected")
        await bench.hears_again()
        await bench.written(1)
        assert [f.found for f in await bench.ask([flow(), flow(1)])] == [Found.HIT, Found.HIT]


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0" * 1000,
    b"$99999999999999\r\n",
    b"$-7\r\n",
    b"*1000000000\r\n",
    b"*1\r\n" * 1000,
    b"-MOVED elsewhere\r\n",
    b"-MOVED\r\n",
    b"-\xff\xfe\r\n",
    b"%3\r\n+a\r\n",
    b">3\r\n+message\r\n+a\r\n+b\r\n",
    b"+PONG\r\n" * 100,
    b":5\r\n" * 100,
    b"$-1\r\n" * 100,
    b"*2\r\n+a\r\n+b\r\n" * 50,
    b"",
]


@pytest.mark.parametrize("part", range(4))
async def test_garbage_instead_of_redis(tmp_path: Path, part: int) -> None:
    async def hear(said: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(1000):
                writer.write(said)
                await writer.drain()
                if not said:
                    return

        async with (
            server_that(serve) as address,
            fleet_bench(f"redis://{address}", tmp_path, lease_s=2.0) as bench,
        ):
            for _ in range(3):
                (finding,) = await bench.ask([flow()])
                assert finding.found in (Found.UNAVAILABLE, Found.FORGED), said
            bench.line.tell([flow().pack()])
            await bench.methods["cache_stats"]()
            assert (await bench.status())["agent"]["restarts"] == 0, said

    await asyncio.gather(*map(hear, GARBAGE[part::4]))


async def test_an_endless_answer_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"$536870912\r\n")
        for _ in range(2000):
            writer.write(bytes(100_000))
            await writer.drain()

    async with server_that(serve) as address, fleet_bench(f"redis://{address}", tmp_path) as bench:
        for _ in range(3):
            assert (await bench.ask([flow()]))[0].found is Found.UNAVAILABLE
        status = await bench.reaches("away")
        assert status["agent"]["restarts"] == 0
        assert status["agent"]["rss_bytes"] < 400e6


async def test_slow(redis: RedisServer, tmp_path: Path) -> None:
    """300 ms a look-up: too slow for a look-up, good enough for telling; and no storm of either."""
    connections = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await asyncio.sleep(0.15)
                writer.write(data)
                await writer.drain()
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        back, forth = await asyncio.open_connection(redis.host, redis.port)
        try:
            await asyncio.gather(pump(reader, forth), pump(back, writer))
        finally:
            forth.transport.abort()

    async with server_that(serve) as address, fleet_bench(f"redis://{address}", tmp_path) as bench:
        bench.line.tell([flow().pack()])
        status = await bench.reaches("degraded", timeout_s=8)
        while status["writes"]["state"] != "closed":
            status = await bench.reaches("degraded")
        assert status["reads"]["error"]
        bench.line.tell([flow().pack()])
        await bench.written(1)
        before = connections
        for _ in range(20):
            await first_answer_is(bench, Found.UNAVAILABLE)
            await asyncio.sleep(0.05)
        assert connections - before < 5


async def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    async with fleet_bench("redis://no-such-host.invalid", tmp_path) as bench:
        await first_answer_is(bench, Found.UNAVAILABLE)
        await bench.reaches("away", why="no-such-host.invalid")
