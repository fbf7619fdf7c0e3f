"""The fleet as a service: without Redis, its lines, and a host's own part of what it tells."""

from pathlib import Path

import pytest

from fleet.service import MAX_LINES
from host.errors import ConfigError, OperatorError
from relay.config import MAX_WORKERS
from tests.fleet.bench import FleetBench, config


async def test_without_redis_there_is_this_host(tmp_path: Path) -> None:
    bench = FleetBench(config(""), tmp_path)
    assert not bench.service.specs()
    assert bench.service.line is None
    assert bench.service.worker_line_fd(5) == -1
    await bench.start()

    async def presence() -> dict[str, object]:
        return {
            "transceivers": [
                {"address": "127.0.0.1:5000", "state": "ready", "sessions": 2, "max_sessions": 8}
            ]
        }

    bench.service.announce(presence)
    status = await bench.service.status(bench.processes)
    assert (status["redis"], status["state"]) == (None, "off")
    fleet = await bench.methods["fleet"]()
    assert fleet["redis"] is None
    assert (fleet["relays"], fleet["sessions"], fleet["load"]) == ([], 2, 0.25)
    (transceiver,) = fleet["transceivers"]
    assert transceiver["here"]
    assert transceiver["host_id"] == bench.service.host_id
    for method in ("cache_get", "cache_stats"):
        params = {"client": "203.0.113.2:40000"} if method == "cache_get" else {}
        with pytest.raises(OperatorError, match="relayctl start --redis"):
            await bench.methods[method](**params)
    await bench.stop()


def test_each_slot_has_a_line() -> None:
    assert MAX_LINES == MAX_WORKERS


def test_lines_are_another_for_each_slot(tmp_path: Path) -> None:
    bench = FleetBench(config("redis://127.0.0.1:1"), tmp_path)
    fds = {bench.service.worker_line_fd(slot) for slot in range(MAX_LINES)}
    assert len(fds) == MAX_LINES
    assert -1 not in fds
    assert bench.service.line is not None
    (spec,) = bench.service.specs()
    assert len(spec.fds) == MAX_LINES + 1
    assert not fds & set(spec.fds)
    bench.service.close()


async def test_one_part_of_the_host_that_cannot_be_told_of_costs_the_others_nothing(tmp_path: Path) -> None:
    bench = FleetBench(config(""), tmp_path)

    async def broken() -> dict[str, object]:
        raise OSError("no status")

    async def presence() -> dict[str, object]:
        return {"relay": {"vips": ["203.0.113.10:3478"], "state": "running"}}

    bench.service.announce(broken)
    bench.service.announce(presence)
    fleet = await bench.methods["fleet"]()
    assert [relay["vips"] for relay in fleet["relays"]] == [["203.0.113.10:3478"]]
    bench.service.close()


async def test_addresses_that_are_none(tmp_path: Path) -> None:
    bench = FleetBench(config("redis://127.0.0.1:1"), tmp_path)
    for params in ({"client": "nonsense"}, {"client": "203.0.113.2:1", "vip": "nonsense"}):
        with pytest.raises(ConfigError, match="nonsense"):
            await bench.methods["cache_get"](**params)
    bench.service.close()
