"""The flow cache: a real agent between workers' lines and a real Redis."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py

from fleet.flow_cache import CLOCK_SKEW_S, unix_s
from fleet.line import Found
from tests.fleet.bench import KEYS, TRANSCEIVER, VIP, fleet_bench, flow, key_of
from tests.redis.server import RedisServer
from wire.address import Address
from wire.flow_record import FlowRecord, open_flow_untrusted, seal_flow
from wire.keys import FleetKey, KeyRing

TTL_S = 180
IPV6 = FlowRecord(
    Address.parse("[2001:db8::2]:40000"), Address.parse("[2001:db8::10]:3478"), TRANSCEIVER, "tag6"
)


def raw(server: RedisServer) -> redis_py.Redis:
    return redis_py.Redis(server.host, server.port)


async def test_a_flow_that_is_told_is_found(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack(), IPV6.pack()])
        await bench.written(2)
        findings = await bench.ask([flow(), IPV6, flow(1)])
        assert [finding.record for finding in findings] == [flow(), IPV6, None]
        assert [finding.found for finding in findings] == [Found.HIT, Found.HIT, Found.MISS]
        with raw(redis) as client:
            assert client.keys("*6:flow*") == []
            assert sorted(client.keys()) == sorted(key_of(record).encode() for record in (flow(), IPV6))
            assert TTL_S - 3 <= client.ttl(key_of(IPV6)) <= TTL_S
            value = client.get(key_of(flow()))
            assert isinstance(value, bytes)
            assert b"tag" not in value
            record, sealed_at = open_flow_untrusted(KEYS, flow().client, VIP, value)
        assert record == flow()
        assert abs(unix_s() - sealed_at) < 3
        counts = await bench.counts()
        assert (counts["told"], counts["written"], counts["hits"], counts["misses"]) == (2, 2, 2, 1)


async def test_told_again_lives_longer_and_the_newest_counts(redis: RedisServer, tmp_path: Path) -> None:
    moved = flow(transceiver=Address.parse("10.0.1.8:5000"))
    async with fleet_bench(redis.url, tmp_path, flow_ttl_s=30) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.written(1)
        with raw(redis) as client:
            client.expire(key_of(flow()), 5)
            bench.line.tell([moved.pack()])
            await bench.written(2)
            assert client.ttl(key_of(flow())) > 25
        (finding,) = await bench.ask([flow()])
        assert finding.record == moved


def _sealed(record: FlowRecord, age_s: float = 0.0, keys: KeyRing = KEYS) -> bytes:
    return seal_flow(keys, record, int(unix_s() - age_s))


# What stands in the place of a flow, and what is told of it.
_FOUND: dict[str, tuple[Callable[[FlowRecord], bytes], Found]] = {
    "garbage": (lambda record: b"garbage", Found.FORGED),
    "garbage as long as a value": (lambda record: b"x" * 48, Found.FORGED),
    "a huge value": (lambda record: b"x" * 20_000_000, Found.FORGED),
    "truncated": (lambda record: _sealed(record)[:-1], Found.FORGED),
    "longer": (lambda record: _sealed(record) + b"\0", Found.FORGED),
    "another client's": (lambda record: _sealed(flow(99)), Found.FORGED),
    "others' key": (
        lambda record: _sealed(record, keys=KeyRing([FleetKey(1, bytes(32))], 1)),
        Found.FORGED,
    ),
    "an old one put back": (lambda record: _sealed(record, TTL_S + CLOCK_SKEW_S + 5), Found.FORGED),
    "from the future": (lambda record: _sealed(record, -CLOCK_SKEW_S - 20), Found.FORGED),
    "old, but not too old": (lambda record: _sealed(record, TTL_S), Found.HIT),
    "clocks differ": (lambda record: _sealed(record, -CLOCK_SKEW_S + 5), Found.HIT),
}


async def test_what_others_may_have_written(redis: RedisServer, tmp_path: Path) -> None:
    records = {name: flow(index) for index, name in enumerate(_FOUND)}
    with raw(redis) as client:
        for name, record in records.items():
            client.set(key_of(record), _FOUND[name][0](record))
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        for _ in range(2):  # nothing is deleted, and nothing of it matters to others
            findings = dict(zip(records, await bench.ask(records.values()), strict=True))
            assert {name: finding.found for name, finding in findings.items()} == {
                name: found for name, (_, found) in _FOUND.items()
            }
        assert (await bench.counts())["stale"] == 2 * 2
        for name, record in records.items():
            (described,) = await bench.methods["cache_get"](client=str(record.client), vip=str(VIP))
            is_good = _FOUND[name][1] is Found.HIT
            assert (described["state"] in ("forged", "stale")) == (not is_good)
            assert bool(described["why"]) == (not is_good)
        assert bench.process.restarts == 0


async def test_another_type_is_forged(redis: RedisServer, tmp_path: Path) -> None:
    with raw(redis) as client:
        client.rpush(key_of(flow()), "a", "b")
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        for _ in range(4):  # it says nothing of Redis
            findings = await bench.ask([flow(), flow(1)])
            assert [finding.found for finding in findings] == [Found.FORGED, Found.MISS]
        assert (await bench.status())["state"] == "connected"
        # What a client's own flow is, wins over it.
        bench.line.tell([flow().pack()])
        await bench.written(1)
        assert (await bench.ask([flow()]))[0].found is Found.HIT


async def test_clusters_that_share_a_redis_do_not_meet(redis: RedisServer, tmp_path: Path) -> None:
    with raw(redis) as client:
        client.set(key_of(flow(), cluster_id=2), _sealed(flow()))
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        assert (await bench.ask([flow()]))[0].found is Found.MISS


async def test_each_line_has_its_own_answers(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        lines = [bench.worker_line(slot) for slot in (0, 1, 63)]
        names = {flow(index).name for index in range(5)}
        for line in lines:  # together: one question to Redis
            line.ask(names)
        for line in lines:
            found: list[bytes] = []
            while len(found) < len(names):
                found += [finding.name for finding in line.receive()[0]]
                await asyncio.sleep(0.001)
            assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"X", id="no kind of message"),
        pytest.param(b"T" + b"x" * 61, id="a part of a flow"),
        pytest.param(b"A" + b"x" * 37, id="more than a name"),
        pytest.param(b"T" + b"\xff" * 62, id="a flow that is no flow"),
        pytest.param(b"F" + b"x" * 63, id="an answer"),
    ],
)
async def test_a_hostile_worker_ends_nothing(redis: RedisServer, tmp_path: Path, message: bytes) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        for _ in range(3):
            bench.service._lines[0][0].send(message)
        bench.line.tell([flow().pack()])
        await bench.written(1)
        assert (await bench.ask([flow()]))[0].found is Found.HIT
        assert (await bench.counts())["malformed"] == (3 if message else 0)
        assert bench.process.restarts == 0


async def test_ten_thousand_questions_at_once(redis: RedisServer, tmp_path: Path) -> None:
    """With room for a busy machine: it takes 0.15 s."""
    async with fleet_bench(redis.url, tmp_path, timeout_s=1.0) as bench:
        await bench.reaches("connected")
        names = [flow(index).name for index in range(10_000)]
        lines = [bench.worker_line(slot) for slot in range(20)]
        began = time.monotonic()
        for slot, line in enumerate(lines):
            assert line.ask(names[slot * 500 : slot * 500 + 500]) == 0
        answers = 0
        for slot, line in enumerate(lines):
            while answers < 500 * (slot + 1):
                answers += len(line.receive()[0])
                assert time.monotonic() - began < 3
        assert (await bench.counts())["misses"] == 10_000


async def test_what_an_operator_sees_of_an_entry(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.written(1)
        (hit,) = await bench.methods["cache_get"](client="203.0.113.2:40000", vip="203.0.113.10:3478")
        assert hit.pop("age_s") < 5
        assert 170 < hit.pop("ttl_s") <= 180
        assert hit == {
            "client": "203.0.113.2:40000",
            "vip": "203.0.113.10:3478",
            "state": "hit",
            "why": "",
            "transceiver": "10.0.1.7:5000",
            "ufrag_tag": "tag00000",
        }
        (miss,) = await bench.methods["cache_get"](client="203.0.113.2:40001", vip="203.0.113.10:3478")
        assert miss["state"] == "miss"
        stats = await bench.methods["cache_stats"]()
        (server,) = stats["servers"]
        assert (server["role"], server["keys"], server["error"]) == ("master", 1, "")
        assert stats["read_ms"]["median"] > 0
