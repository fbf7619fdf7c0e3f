"""Leases: told by one host, believed by another for as long as they are renewed, and by nobody if they are forged."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from fleet.flow_cache import CLOCK_SKEW_S, unix_s
from fleet.redis_client import Command, LinkError, Reply, Trouble
from fleet.registry import MAX_LEASES, Registry
from tests.fleet.bench import KEYS, FleetBench, fleet_bench
from tests.host.deadline import until
from tests.redis.server import RedisServer
from wire.keys import FleetKey, KeyRing
from wire.lease import seal_lease

INDEX = "relayctl:1:{fleet}"
HOST = {"host_id": "0123456789abcdef", "host_name": "h", "version": "1", "started_at": "now"}
TRANSCEIVER = {
    "name": "transceiver-0",
    "address": "10.0.1.7:5000",
    "internal_http": "10.0.1.7:41000",
    "state": "ready",
    "sessions": 3,
    "connected": 2,
    "max_sessions": 200,
}
RELAY = {
    "dataplane": "userspace",
    "vips": ["203.0.113.10:3478"],
    "workers": 2,
    "flows": 3,
    "assured_flows": 2,
    "state": "running",
}
NAME = "transceiver:10.0.1.7:5000"


def lease(**changes: Any) -> dict[str, Any]:
    return {**TRANSCEIVER, **HOST, **changes}


def announce(bench: FleetBench, state: dict[str, Any]) -> None:
    """``state`` may be changed later."""

    async def transceivers() -> dict[str, Any]:
        return {"transceivers": [dict(state)]}

    async def relay() -> dict[str, Any]:
        return {"relay": dict(RELAY)}

    bench.service.announce(transceivers)
    bench.service.announce(relay)


async def test_hosts_know_of_each_other(redis: RedisServer, tmp_path: Path) -> None:
    mine, theirs = dict(TRANSCEIVER), {**TRANSCEIVER, "address": "10.0.1.8:5000", "sessions": 5}
    heard: list[list[dict[str, Any]]] = []
    async with (
        fleet_bench(redis.url, tmp_path, lease_s=2.0) as here,
        fleet_bench(redis.url, tmp_path, lease_s=2.0) as there,
    ):
        announce(here, mine)
        announce(there, theirs)
        here.service.on_leases(heard.append)
        await until(lambda: heard and heard[-1], "the other's transceiver")
        (other,) = heard[-1]
        assert other["address"] == "10.0.1.8:5000"
        assert other["host_id"] == there.service.host_id
        # Both run under one kernel.
        assert other["machine"] == here.service.machine != ""
        await until(lambda: len(there.service.others()) == 4, "all leases")
        fleet = await here.methods["fleet"]()
        json.dumps(fleet)
        assert {(t["address"], t["here"]) for t in fleet["transceivers"]} == {
            ("10.0.1.7:5000", True),
            ("10.0.1.8:5000", False),
        }
        assert [relay["here"] for relay in fleet["relays"]] == [True, False]
        assert (fleet["sessions"], fleet["max_sessions"], fleet["load"]) == (8, 400, 0.02)
        assert fleet["redis"]["state"] == "connected"
        # Signaling decides which take sessions: it hears of all, and soon.
        theirs["state"] = "draining"
        await until(lambda: [t["state"] for t in heard[-1]] == ["draining"], "the new state")
        theirs |= {"state": "ready", "sessions": 200}
        await until(lambda: [t["sessions"] for t in heard[-1]] == [200], "a full transceiver")
    with redis_py.Redis(redis.host, redis.port) as client:
        assert client.keys("*") == []  # they have said goodbye


async def test_a_host_that_died_is_forgotten(redis: RedisServer, tmp_path: Path) -> None:
    heard: list[list[dict[str, Any]]] = []
    async with (
        fleet_bench(redis.url, tmp_path, lease_s=2.0) as here,
        fleet_bench(redis.url, tmp_path, lease_s=2.0) as there,
    ):
        announce(there, dict(TRANSCEIVER))
        here.service.on_leases(heard.append)
        await until(lambda: heard and heard[-1], "the other's transceiver")
        assert there.process.pid is not None
        os.kill(there.process.pid, signal.SIGSTOP)
        await until(lambda: not heard[-1], "nobody", 4)
        os.kill(there.process.pid, signal.SIGCONT)
        await until(lambda: heard[-1], "it is back", 4)
        # Redis dies: what was heard last holds for as long as its lease.
        redis.kill()
        assert heard[-1]
        await until(lambda: not heard[-1], "nobody", 4)
        fleet = await there.methods["fleet"]()
        assert [transceiver["here"] for transceiver in fleet["transceivers"]] == [True]


def fake_redis(values: dict[bytes, Reply]) -> Any:
    """What Registry.read asks of Redis, answered from these values."""

    async def execute(key: bytes, commands: Sequence[Command]) -> list[Reply]:
        if commands[0][0] == "ZREVRANGEBYSCORE":
            return [list(values)]
        asked = [bytes(command[1]) for command in commands if isinstance(command[1], bytes)]
        return [values[key.removeprefix(f"{INDEX}:".encode())] for key in asked]

    return execute


def make_registry(counts: Counter[str] | None = None, lease_s: float = 10.0) -> Registry:
    return Registry(KEYS, 1, lease_s, Counter() if counts is None else counts)


def sealed(document: dict[str, Any], name: str = NAME, age_s: float = 0.0, keys: KeyRing = KEYS) -> bytes:
    return seal_lease(keys, name, document, int(unix_s() - age_s))


@pytest.mark.parametrize(
    ("name", "make", "is_believed"),
    [
        pytest.param(NAME, lambda: sealed(lease()), True, id="good"),
        pytest.param(NAME, lambda: sealed(lease(note="new")), True, id="a newer host tells more"),
        pytest.param(NAME, lambda: sealed(lease(), age_s=60), True, id="clocks differ"),
        pytest.param(
            NAME, lambda: sealed(lease(), age_s=10 + CLOCK_SKEW_S + 5), False, id="an old one put back"
        ),
        pytest.param(NAME, lambda: sealed(lease(), age_s=-75), False, id="from the future"),
        pytest.param(NAME, lambda: sealed(lease(), "transceiver:10.0.1.8:5000"), False, id="another's"),
        pytest.param(
            NAME, lambda: sealed(lease(), keys=KeyRing([FleetKey(1, bytes(32))], 1)), False, id="others' key"
        ),
        pytest.param(NAME, lambda: sealed(lease())[:-1], False, id="truncated"),
        pytest.param(NAME, lambda: b"x" * 1025, False, id="too long"),
        pytest.param(NAME, lambda: LinkError(Trouble.WRONG_TYPE, ""), False, id="another type"),
        pytest.param(NAME, lambda: 5, False, id="no bytes"),
        pytest.param(NAME, lambda: b"", None, id="lapsed"),
        pytest.param(NAME, lambda: sealed({**HOST}), False, id="nothing of a transceiver in it"),
        pytest.param(NAME, lambda: sealed(lease(sessions="3")), False, id="sessions are text"),
        pytest.param(NAME, lambda: sealed(lease(sessions=True)), False, id="sessions are a truth value"),
        pytest.param("relay:1", lambda: sealed({**RELAY, **HOST}, "relay:1"), True, id="a relay"),
        pytest.param(
            "relay:1", lambda: sealed({**RELAY, **HOST, "vips": [5]}, "relay:1"), False, id="VIPs are numbers"
        ),
        pytest.param("bomb:1", lambda: sealed(lease(), "bomb:1"), None, id="no kind of lease"),
        pytest.param("relay:\xff", lambda: b"", None, id="no text"),
        pytest.param("relay:" + 200 * "x", lambda: b"x", None, id="an endless name"),
    ],
)
async def test_what_is_believed(name: str, make: Callable[[], Reply], is_believed: bool | None) -> None:
    counts = Counter[str]()
    leases = await make_registry(counts).read(fake_redis({name.encode("latin-1"): make()}))
    assert len(leases) == (is_believed is True)
    assert counts["leases_forged"] == (is_believed is False)


async def test_one_that_nobody_renews_lapses_though_somebody_keeps_putting_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("fleet.registry.time.monotonic", lambda: now)
    registry, old = make_registry(), sealed(lease(), age_s=2)
    execute = fake_redis({NAME.encode(): old})
    assert [found["expires_s"] for found in await registry.read(execute)] == [10.0]
    now += 9
    assert [found["age_s"] for found in await registry.read(execute)] == [9.0]
    now += 2
    assert await registry.read(execute) == []
    fresh = fake_redis({NAME.encode(): sealed(lease())})
    assert [found["age_s"] for found in await registry.read(fresh)] == [0.0]
    assert await registry.read(execute) == []


async def test_one_that_was_taken_out_for_a_while_is_no_younger_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed = 0.0
    began = unix_s()
    monkeypatch.setattr("fleet.registry.time.monotonic", lambda: 1000.0 + passed)
    monkeypatch.setattr("fleet.registry.unix_s", lambda: began + passed)
    registry, old = make_registry(), sealed(lease())
    execute, nothing = fake_redis({NAME.encode(): old}), fake_redis({})
    assert len(await registry.read(execute)) == 1
    for _ in range(9):
        passed += 11
        assert await registry.read(nothing) == []
        assert await registry.read(execute) == []
    # What is too old by its stamp needs not be remembered.
    assert not registry._seen


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.registry._MAX_SEEN", 3)
    registry = make_registry()
    for port in range(1, 9):
        name = f"transceiver:10.0.1.7:{port}"
        await registry.read(fake_redis({name.encode(): sealed(lease(), name, age_s=10 - port)}))
    assert [name.rpartition(":")[2] for name in registry._seen] == ["8", "7", "6"]


async def test_more_leases_than_are_read(redis: RedisServer, tmp_path: Path) -> None:
    with redis_py.Redis(redis.host, redis.port) as client:
        soon = unix_s() + 5
        client.zadd(INDEX, {f"transceiver:10.0.0.1:{port}": soon for port in range(2 * MAX_LEASES)})
        client.zadd(INDEX, {NAME: soon + 5, b"\xff\xfe": soon + 6})
        client.set(f"{INDEX}:{NAME}", sealed(lease()))
        client.set(f"{INDEX}:transceiver:10.0.0.1:2", b"x" * 5_000_000)
    async with fleet_bench(redis.url, tmp_path, lease_s=2.0) as bench:
        await until(lambda: bench.service.others(), "the good one")
        assert [found["address"] for found in bench.service.others()] == ["10.0.1.7:5000"]


async def test_defects_of_a_source_or_a_listener_silence_nobody(redis: RedisServer, tmp_path: Path) -> None:
    heard: list[int] = []
    part: dict[str, Any] = {}

    def listen(leases: list[dict[str, Any]]) -> None:
        heard.append(len(leases))
        raise RuntimeError("a defect")

    async with fleet_bench(redis.url, tmp_path, lease_s=2.0) as bench:
        bench.service.on_leases(listen)
        announce(bench, part)  # it has no address yet
        await until(lambda: len(heard) > 2, "the listener is told again")
        part |= TRANSCEIVER
        await until(lambda: len(bench.service.others()) == 2, "both leases")


async def test_a_lease_that_is_too_long_costs_the_others_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with fleet_bench(redis.url, tmp_path, lease_s=2.0) as bench:
        announce(bench, {**TRANSCEIVER, "name": "x" * 2000})
        await until(lambda: bench.service.others(), "the relay's lease")
        assert {found["kind"] for found in bench.service.others()} == {"relay"}
