"""The fleet as a service: without Redis, its lines, and a host's own part of what it tells."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from fleet.service import MAX_LINES
from fleet.settings import AgentSettings
from host.errors import ConfigError, OperatorError
from relay.config import MAX_WORKERS
from tests.fleet.bench import FleetBench, config, flow
from wire.flow_record import open_flow_untrusted, seal_flow
from wire.keys import FleetKey, KeyRing
from wire.lease import open_lease_untrusted, seal_lease


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


def test_the_agent_gets_no_key_but_those_of_records(tmp_path: Path) -> None:
    keys = KeyRing([FleetKey(1, bytes(range(32))), FleetKey(2, bytes(32))], 2)
    bench = FleetBench(config("redis://127.0.0.1:1"), tmp_path, keys)
    message = json.loads(json.dumps(bench.service._settings()))
    assert [set(key) for key in message["keys"]["keys"]] == 2 * [{"id", "flow_record", "lease"}]
    for key_id in (1, 2):
        key = keys.get(key_id)
        assert key is not None
        assert b64encode(key.secret).decode() not in json.dumps(message)
    # They open what relays seal, and the other way round.
    theirs = AgentSettings.from_message(message).keys
    value = seal_flow(theirs, flow(), 5)
    assert open_flow_untrusted(keys, flow().client, flow().vip, value) == (flow(), 5)
    for ring in (keys, KeyRing.from_json({**keys.to_json(), "sealing": 1})):
        assert open_lease_untrusted(theirs, "relay:1", seal_lease(ring, "relay:1", {"a": 1}, 7)) == (
            {"a": 1},
            7,
        )
    assert "RecordKey(2)" in repr(theirs.sealing)
    bench.service.close()


async def test_addresses_that_are_none(tmp_path: Path) -> None:
    bench = FleetBench(config("redis://127.0.0.1:1"), tmp_path)
    for params in ({"client": "nonsense"}, {"client": "203.0.113.2:1", "vip": "nonsense"}):
        with pytest.raises(ConfigError, match="nonsense"):
            await bench.methods["cache_get"](**params)
    bench.service.close()
