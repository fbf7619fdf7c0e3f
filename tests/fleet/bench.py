"""A fleet service with its real agent, and the lines of workers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from fleet.config import RedisConfig
from fleet.line import Finding, RelayLine
from fleet.service import FleetService
from host.config_table import ConfigTable
from host.process import Process
from host.registry import ProcessRegistry
from host.supervisor import ProcessGroup
from tests.host.deadline import until
from wire.address import Address
from wire.flow_record import FlowRecord
from wire.keys import FleetKey, KeyRing

KEYS = KeyRing([FleetKey(1, bytes(range(32)))], 1)
VIP = Address.parse("203.0.113.10:3478")
TRANSCEIVER = Address.parse("10.0.1.7:5000")


def flow(index: int = 0, transceiver: Address = TRANSCEIVER) -> FlowRecord:
    """The flow of a client of its own."""
    client = (
        Address(bytes((203, 0, 113, 2)), 40_000 + index)
        if index < 20_000
        else Address(bytes((10, 9, index >> 8 & 255, index & 255)), 1 + (index >> 16))
    )
    return FlowRecord(client, VIP, transceiver, f"tag{index % 100_000:05}")


def key_of(record: FlowRecord, cluster_id: int = 1) -> str:
    return f"relayctl:{cluster_id}:flow:{record.client}>{record.vip}"


def config(url: str, **options: Any) -> RedisConfig:
    """As if it stood in the file."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return RedisConfig.from_table(ConfigTable("redis", {"url": url, **options}))


class FleetBench:
    """One host's fleet service. ``line``: of its first worker."""

    def __init__(self, config: RedisConfig, directory: Path, keys: KeyRing = KEYS) -> None:
        self.service = FleetService(config, 1, keys, "1.2.3")
        self.registry = ProcessRegistry(directory / f"processes-{self.service.host_id}.json")
        self.processes = ProcessGroup(self.service.specs(), self.registry)
        self.methods = self.service.methods(self.processes)
        self.again = 0

    @property
    def line(self) -> RelayLine:
        return self.worker_line(0)

    def worker_line(self, slot: int) -> RelayLine:
        """As the worker of that slot has it."""
        return RelayLine(self.service._lines[slot][0])

    @property
    def process(self) -> Process:
        (process,) = self.processes
        return process

    async def start(self) -> None:
        await self.processes.start()
        await self.service.take_over()

    async def stop(self) -> None:
        await self.service.drain(self.processes, 0)
        await self.processes.stop()
        self.service.close()

    async def status(self) -> dict[str, Any]:
        status = await self.service.status(self.processes)
        json.dumps(status)
        return status

    async def counts(self) -> dict[str, int]:
        return dict((await self.status())["counts"])

    async def reaches(self, *states: str, why: str = "", timeout_s: float = 5.0) -> dict[str, Any]:
        """Wait until Redis is told to be so, with these words; the status then."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (status := await self.status())["state"] not in states or why not in status["why"]:
            assert asyncio.get_running_loop().time() < deadline, f"not {states}: {status}"
            await asyncio.sleep(0.02)
        return status

    async def written(self, count: int, timeout_s: float = 5.0) -> None:
        """Wait until so many flows have been written in all."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (counts := await self.counts())["written"] < count:
            assert asyncio.get_running_loop().time() < deadline, counts
            await asyncio.sleep(0.01)

    async def ask(
        self, records: Iterable[FlowRecord], timeout_s: float = 3.0, line: RelayLine | None = None
    ) -> list[Finding]:
        """The answers, in the order of the questions."""
        line = line or self.line
        names = [record.name for record in records]
        assert line.ask(names) == 0
        found: dict[bytes, Finding] = {}
        deadline = asyncio.get_running_loop().time() + timeout_s
        while len(found) < len(set(names)):
            assert asyncio.get_running_loop().time() < deadline, f"{len(found)} of {len(names)} answers"
            findings, again = line.receive()
            self.again += again
            found |= {finding.name: finding for finding in findings}
            if not findings:
                await asyncio.sleep(0.001)
        return [found[name] for name in names]

    async def hears_again(self, timeout_s: float = 5.0) -> None:
        """Wait until everything is to be told again."""

        def hear() -> bool:
            self.again += self.line.receive()[1]
            return self.again > 0

        await until(hear, "again", timeout_s)
        self.again = 0


@contextlib.asynccontextmanager
async def fleet_bench(url: str, directory: Path, **options: Any) -> AsyncIterator[FleetBench]:
    """For the life of the block."""
    keys = options.pop("keys", KEYS)
    bench = FleetBench(config(url, **options), directory, keys)
    try:
        await bench.start()
        yield bench
    finally:
        await bench.stop()
