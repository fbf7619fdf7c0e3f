"""A supervisor with services of tiny programs, and its admin socket."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.process import Process, ProcessSpec
from host.registry import ProcessRegistry
from host.service_manager import ServiceManager
from host.state_dir import StateDir
from host.supervisor import AdminMethod, ProcessGroup, Supervisor

History = list[tuple[str, ...]]
Drain = Callable[[float], Awaitable[None]]


async def no_drain(timeout_s: float) -> None:
    """Nothing to wait for."""


class FakeService:
    """Runs tiny programs and writes down what the supervisor asks of it."""

    def __init__(
        self, name: str, specs: Sequence[ProcessSpec], history: History, drain: Drain = no_drain
    ) -> None:
        self.name = name
        self.processes: Iterable[Process] = ()
        self.drain_timeouts: list[float] = []
        self._specs = specs
        self._history = history
        self._drain = drain

    def specs(self) -> Sequence[ProcessSpec]:
        return self._specs

    @property
    def has_taken_over(self) -> bool:
        return bool(self._history and "take over" in {step[0] for step in self._history})

    ends_with_supervisor = ""

    def listeners(self) -> dict[str, int]:
        return {}

    async def take_over(self) -> None:
        self._note("take over", self.processes)

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        return {"processes": [process.describe() for process in processes]}

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        self._note("drain", processes)
        self.drain_timeouts.append(timeout_s)
        await self._drain(timeout_s)

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        self.processes = processes

        async def ask(method: str = "ping") -> Any:
            return await next(iter(processes)).request(method)

        return {f"ask_{self.name}": ask}

    def close(self) -> None:
        self._note("close", self.processes)

    def _note(self, step: str, processes: Iterable[Process]) -> None:
        self._history.append((step, self.name, *(process.state.value for process in processes)))


class Bench:
    """One supervisor with its state directory, run as a task."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = StateDir(directory)
        self.running: asyncio.Task[None] | None = None
        self._services: tuple[FakeService, ...] = ()
        self._writers: list[asyncio.StreamWriter] = []

    def start(
        self,
        *services: FakeService,
        drain_s: float = 5.0,
        modules: Iterable[str] = (),
        manager: ServiceManager | None = None,
        inherited: Collection[int] = (),
    ) -> asyncio.Event:
        """Start the supervisor; the event tells that it is ready."""
        ready = asyncio.Event()
        self._services = services
        registry = ProcessRegistry(self.state_dir.processes_file)
        supervisor = Supervisor(
            self.state_dir,
            services,
            registry,
            version="1.2.3",
            drain_s=drain_s,
            manager=manager,
            inherited=inherited,
        )
        supervisor._modules |= set(modules)  # as if a service ran them
        self.running = asyncio.create_task(supervisor.run(ready.set))
        return ready

    async def start_and_wait(
        self, *services: FakeService, drain_s: float = 5.0, modules: Iterable[str] = ()
    ) -> None:
        ready = self.start(*services, drain_s=drain_s, modules=modules)
        await asyncio.wait_for(ready.wait(), 10)

    async def end(self) -> None:
        """Ask for the end and wait for it."""
        assert self.running is not None
        with contextlib.suppress(ChannelError):
            await self.ask("stop")
        await asyncio.wait_for(self.running, 10)

    async def ask(self, method: str, **params: Any) -> Any:
        """One request on a connection of its own."""
        reader, writer = await self.connect()
        channel = Channel(reader, writer)
        serving = asyncio.create_task(channel.run())
        try:
            return await channel.request(method, **params)
        finally:
            channel.close()
            await serving

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.state_dir.admin_socket, limit=STREAM_LIMIT)
        self._writers.append(writer)
        return reader, writer

    async def clean_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        for service in self._services:
            for process in service.processes:
                process._ending.set()  # the programs fixture kills what is left; nothing may start it again
        if self.running is not None and not self.running.done():
            self.running.cancel()
        if self.running is not None:
            await asyncio.wait({self.running}, timeout=5)
            if not self.running.cancelled():
                self.running.exception()  # a test that expects one asks for it
