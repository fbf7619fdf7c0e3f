"""What a relay's supervisor has of the fleet: lines for its workers and one of its own, and a presence."""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fleet.config import RedisConfig
from fleet.line import AgentLine, Finding, Found
from fleet.service import FleetService, PresenceSource
from host.config_table import ConfigTable
from host.registry import ProcessRegistry
from host.supervisor import ProcessGroup
from relay.config import RelayConfig
from relay.core.policy import Vip
from relay.dataplane.bpf.pins import PinDir
from relay.supervisor import RelayService
from tests.relay.network import KEYS
from tests.transceiver.waiting import until
from wire.address import Address

VIPS = tuple(
    Vip(listen, told)
    for listen, told in [(Address.parse("127.0.0.1:34781"), Address.parse("203.0.113.10:3478"))]
)


class AnnouncedFleet(FleetService):
    """Keeps what is announced, and has the agent's ends."""

    def __init__(self, url: str) -> None:
        table = ConfigTable("redis", {"url": url, "flow_ttl_s": 90})
        super().__init__(RedisConfig.from_table(table), 7, KEYS, "1.2.3")
        self.announced: list[PresenceSource] = []

    def announce(self, source: PresenceSource) -> None:
        self.announced.append(source)

    def agent(self, line: int) -> AgentLine:
        return AgentLine(self._lines[line][1])


@pytest.fixture(params=["redis://127.0.0.1:1/0", ""], ids=["Redis", "no Redis"])
def fleet(request: pytest.FixtureRequest) -> Iterator[AnnouncedFleet]:
    made = AnnouncedFleet(request.param)
    yield made
    made.close()


def start(tmp_path: Path, fleet: FleetService | None) -> RelayService:
    config = RelayConfig.from_table(ConfigTable("relay", {"workers": 2, "dataplane": "userspace"}), VIPS)
    registry = ProcessRegistry(tmp_path / "processes.json")
    return RelayService(config, 7, KEYS, PinDir(tmp_path), registry, fleet=fleet)


def test_each_worker_inherits_its_line(tmp_path: Path, fleet: AnnouncedFleet) -> None:
    relay = start(tmp_path, fleet)
    for index, spec in enumerate(relay.specs()):
        settings = spec.settings()
        assert settings["refresh_s"] == 30
        assert settings["line_fd"] == fleet.worker_line_fd(index)
        assert (settings["line_fd"] in spec.fds) == fleet.enabled
        assert all(os.fstat(fd) for fd in spec.fds)
    relay.close()
    if fleet.enabled:
        assert os.fstat(fleet.worker_line_fd(0)), "it is the fleet's to close"


def test_relay_without_a_fleet_has_no_line(tmp_path: Path) -> None:
    relay = start(tmp_path, None)
    assert [spec.settings()["line_fd"] for spec in relay.specs()] == [-1, -1]
    relay.close()


async def test_presence_says_what_the_relay_is_and_has(tmp_path: Path, fleet: AnnouncedFleet) -> None:
    relay = start(tmp_path, fleet)
    (source,) = fleet.announced
    for number, slot in enumerate(relay._slots):
        slot.counters.set_flows(10 + number, 3 + number)
    expected = {
        "dataplane": "userspace",
        "vips": ["203.0.113.10:3478"],
        "workers": 2,
        "flows": 21,
        "assured_flows": 7,
        "state": "running",
    }
    assert await source() == {"relay": expected}
    await relay.take_over()
    await relay.drain(ProcessGroup([], relay._registry), 1)
    assert await source() == {"relay": {**expected, "state": "draining"}}
    relay.close()


async def test_supervisor_hears_that_the_cache_has_lost_its_memory(tmp_path: Path) -> None:
    fleet = AnnouncedFleet("redis://127.0.0.1:1/0")
    relay = start(tmp_path, fleet)
    heard: list[bool] = []

    class Sweeper:
        def tell_again(self) -> None:
            heard.append(True)

    await relay.take_over()
    agent = fleet.agent(-1)
    assert agent.want_everything(), "without XDP it is for the workers to tell"
    await asyncio.sleep(0.05)
    relay._sweeper = Sweeper()  # type: ignore[assignment]  # what is asked of it
    for round_ in range(1, 30):
        assert agent.want_everything(), "nobody reads it"
        await until(partial(lambda count: len(heard) == count, round_))
    agent.answer([Finding(bytes(36), Found.MISS)])
    await asyncio.sleep(0.05)
    assert len(heard) == 29, "nobody asked for it"
    fleet._lines[-1][1].send(b"F" + bytes(36) + b"\x09" + bytes(26))
    await until(agent.want_everything)  # what was sent before it has to be read first
    await until(lambda: len(heard) == 30)
    await relay.drain(ProcessGroup([], relay._registry), 1)
    relay._sweeper = None
    relay.close()
    fleet.close()
