"""The supervisor: runs the processes of its services, answers the admin socket, ends everything in order.

Order of an end: every service drains (the last started first), then its processes stop. So transceivers say goodbye to
their clients while the relay still carries it.

``upgrade`` ends nothing: this process becomes another supervisor (host.successor), which takes over. Its ``--ready-fd`` is
the connection that asked. It is given the lock, so that nobody starts another, and listening sockets, so that nobody is refused.
No request to end is lost: one that came before calls the upgrade off, a signal that comes after waits for the successor. This
ends everything, its predecessor's processes too, and so takes over first.
"""

import asyncio
import contextlib
import datetime
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any, Protocol

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.process import Process, ProcessSpec
from host.registry import ProcessRegistry
from host.service_manager import ServiceManager
from host.state_dir import StateDir
from host.successor import ENDING_SIGNALS, become, reap
from wire.admin import encode_message

logger = logging.getLogger(__name__)

_LEFT_BEHIND_POLL_S = 0.1
# What an end takes beside the drain: goodbyes, emptied sockets, processes that have to be killed.
_END_MARGIN_S = 30.0
# More than a process may take to be ready, and to be ended if it is not.
_START_MARGIN_S = 90.0
_TOLD_TO_END = "the supervisor was told to end; nothing is upgraded"

AdminMethod = Callable[..., Awaitable[Any]]


class ProcessGroup:
    """The processes of one service; it may grow and shrink."""

    def __init__(self, specs: Sequence[ProcessSpec], registry: ProcessRegistry) -> None:
        self._registry = registry
        self._processes = [Process(spec, registry) for spec in specs]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    async def start(self) -> None:
        """Start all, side by side. Raises StartError."""
        await asyncio.gather(*(process.start() for process in self._processes))

    async def add(self, specs: Sequence[ProcessSpec]) -> None:
        """Start more, side by side. Raises StartError; then none of them is left."""
        added = [Process(spec, self._registry) for spec in specs]
        self._processes += added
        try:
            await asyncio.gather(*(process.start() for process in added))
        except BaseException:
            await self.remove(added)
            raise

    async def remove(self, processes: Sequence[Process]) -> None:
        """End those, side by side."""
        await asyncio.gather(*(process.stop() for process in processes))
        self._processes = [process for process in self._processes if process not in processes]

    async def stop(self) -> None:
        """End all, side by side."""
        await asyncio.gather(*(process.stop() for process in self._processes))


class Service(Protocol):
    """A set of processes with a part in ``status`` and methods on the admin socket."""

    name: str

    def specs(self) -> Sequence[ProcessSpec]:
        """The processes to run."""
        ...

    async def take_over(self) -> None:
        """All processes of all services are ready: take packets, also from those that a dead supervisor left behind."""
        ...

    @property
    def has_taken_over(self) -> bool:
        """Whether what an earlier supervisor left is of no use any more."""
        ...

    @property
    def ends_with_supervisor(self) -> str:
        """Why its calls would not outlive the supervisor, in words; empty if they do."""
        ...

    def listeners(self) -> dict[str, int]:
        """Descriptors of listening sockets, by name, that a successor may go on with."""
        ...

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        """The service's part of ``status``."""
        ...

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Take no new work and let the old end, for at most ``timeout_s``."""
        ...

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        """Further admin methods."""
        ...

    def close(self) -> None:
        """Release sockets and memory; the processes have ended."""
        ...


class Supervisor:
    """Runs services until it is told to end."""

    def __init__(
        self,
        state_dir: StateDir,
        services: Sequence[Service],
        registry: ProcessRegistry,
        *,
        version: str,
        drain_s: float,
        manager: ServiceManager | None = None,
        inherited: Collection[int] = (),
    ) -> None:
        """inherited: children of this process that it has not started (host.successor)."""
        self._state_dir = state_dir
        self._registry = registry
        self._services = services
        self._version = version
        self._drain_s = drain_s
        self._manager = manager or ServiceManager()
        self._inherited = inherited
        self._processes = {service.name: ProcessGroup(service.specs(), registry) for service in services}
        # A service that does not run here is not ours to end either.
        self._modules = {process.spec.module for group in self._processes.values() for process in group}
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._second_signal = asyncio.Event()
        self._has_heard_signal = False
        self._state = "starting"
        self._started = time.monotonic()
        self._started_at = datetime.datetime.now(datetime.UTC)
        self._methods: dict[str, AdminMethod] = {"status": self._status, "stop": self._request_stop}
        for service in services:
            self._methods |= service.methods(self._processes[service.name])

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call ``on_ready``, serve until SIGTERM, SIGINT or ``stop``. Raises StartError."""
        with self._hearing_signals():
            await self._run(on_ready)

    async def _run(self, on_ready: Callable[[], None]) -> None:
        self._manager.tell(STATUS=f"relayctl {self._version} starts")
        admin = await self._listen()
        reaping = asyncio.create_task(reap(self._inherited), name="reaping the predecessor's children")
        try:
            starting = asyncio.create_task(self._start())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done() and self._is_successor:
                await self._finish_start(starting)
            if starting.done():
                starting.result()
                self._state = "running"
                logger.info("running, pid %d, state in %s", os.getpid(), self._state_dir.path)
                on_ready()
                self._manager.tell(READY=1, STATUS=self._running)
                await stopping
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        finally:
            # A start that failed leaves those alone that an earlier supervisor left: they serve calls.
            has_taken_over = self._state == "running" or any(s.has_taken_over for s in self._services)
            self._state = "draining"
            self._manager.tell(STOPPING=1, STATUS=f"ending; calls may go on for {self._drain_s:g} s")
            self._manager.tell(EXTEND_TIMEOUT_USEC=round((self._drain_s + _END_MARGIN_S) * 1e6))
            ending = asyncio.create_task(self._end_left_behind() if has_taken_over else asyncio.sleep(0))
            await self._end(ending)
            await ending
            self._registry.close()
            reaping.cancel()
            admin.close()
            with contextlib.suppress(ConnectionError):
                await admin.wait_closed()

    async def _finish_start(self, starting: asyncio.Task[None]) -> None:
        """Told to end, a successor takes over first, so that it ends its predecessor's processes too; unless told twice."""
        logger.info("taking over first; at once on a second signal, but then what is left behind goes on")
        self._manager.tell(EXTEND_TIMEOUT_USEC=round(_START_MARGIN_S * 1e6))
        second_signal = asyncio.create_task(self._second_signal.wait())
        await asyncio.wait({starting, second_signal}, return_when=asyncio.FIRST_COMPLETED)
        second_signal.cancel()

    async def _start(self) -> None:
        await asyncio.gather(*(self._processes[service.name].start() for service in self._services))
        for service in self._services:
            await service.take_over()

    @property
    def _is_successor(self) -> bool:
        """Whether processes that are left behind are children of this process."""
        return any(entry.pid in self._inherited for entry in self._registry.left_behind)

    @contextlib.contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def hear(number: int, frame: FrameType | None) -> None:
            # An upgrade asks before the loop has its next turn.
            self._has_heard_signal = True
            loop.call_soon_threadsafe(self._receive_signal)

        # Nor may another thread hear them.
        block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ENDING_SIGNALS)
        loop.set_default_executor(ThreadPoolExecutor(initializer=block))
        handlers = {number: signal.signal(number, hear) for number in ENDING_SIGNALS}
        # A predecessor has left them blocked. Processes that are started from here on have them unblocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @property
    def _is_told_to_end(self) -> bool:
        return self._has_heard_signal or self._stop.is_set()

    def _receive_signal(self) -> None:
        if self._stop.is_set():
            logger.warning("second signal: ending at once")
            self._hurry.set()
            self._second_signal.set()
        else:
            logger.info("told to end: %g s for the calls, at once on a second signal", self._drain_s)
        self._stop.set()

    async def _end_left_behind(self) -> None:
        """Let the calls of an earlier start go on for as long as our own may, then end its processes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self._has_calls_left_behind() and not self._hurry.is_set():  # noqa: ASYNC110  # others end them
                    await asyncio.sleep(_LEFT_BEHIND_POLL_S)
        for module in self._modules:
            await asyncio.to_thread(self._registry.end_left_behind, module)

    def _has_calls_left_behind(self) -> bool:
        return any(e.is_alive for e in self._registry.left_behind if e.module in self._modules)

    async def _end(self, left_behind_ended: asyncio.Task[None]) -> None:
        for service in reversed(self._services):
            processes = self._processes[service.name]
            draining = asyncio.create_task(service.drain(processes, self._drain_s))
            hurry = asyncio.create_task(self._hurry.wait())
            try:
                await asyncio.wait(
                    {draining, hurry}, timeout=self._drain_s + 5, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for task in (draining, hurry):
                    task.cancel()
                (ended,) = await asyncio.gather(draining, return_exceptions=True)
                if isinstance(ended, Exception):
                    logger.error("%s did not drain: %s", service.name, ended)
            # Their goodbyes need a relay, too.
            await left_behind_ended
            await processes.stop()
            service.close()

    async def _listen(self) -> asyncio.Server:
        path = self._state_dir.admin_socket
        path.unlink(missing_ok=True)
        # The directory is 0700 and ours; the socket is 0600 from its first moment all the same.
        old_umask = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._serve, path, limit=STREAM_LIMIT)
        finally:
            os.umask(old_umask)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer(method: str, params: dict[str, Any]) -> Any:
            if method == "upgrade":
                return self._request_upgrade(writer, **params)
            return await self._answer(method, params)

        await Channel(reader, writer, on_request=answer).run()

    async def _answer(self, method: str, params: dict[str, Any]) -> Any:
        handler = self._methods.get(method)
        if handler is None:
            raise ChannelError(
                f"no method {method!r}; this supervisor knows {', '.join(sorted([*self._methods, 'upgrade']))}"
            )
        return await handler(**params)

    async def _status(self) -> dict[str, Any]:
        parts = await asyncio.gather(*(s.status(self._processes[s.name]) for s in self._services))
        return {
            "version": self._version,
            "pid": os.getpid(),
            "state": self._state,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "state_dir": str(self._state_dir.path),
            "left_behind": [
                {"name": entry.name, "pid": entry.pid}
                for entry in self._registry.left_behind
                if entry.is_alive
            ],
            **{service.name: part for service, part in zip(self._services, parts, strict=True)},
        }

    async def _request_stop(self, drain_s: float | None = None) -> dict[str, Any]:
        if drain_s is not None:
            self._drain_s = float(drain_s)
            if drain_s == 0:
                self._hurry.set()
        self._stop.set()
        return {"pid": os.getpid(), "drain_s": self._drain_s}

    def _request_upgrade(
        self, asker: asyncio.StreamWriter, command: list[str], keeps: Sequence[str] = ()
    ) -> dict[str, Any]:
        """``command`` starts a supervisor in this state directory, and tells the outcome to its ``--ready-fd``.

        If it is not begun after all, this supervisor tells the outcome, with ``begun`` false.

        keeps: what it knows how to go on with, as ``--NAME-fd``: ``lock``, and names of listening sockets.
        """
        if self._state != "running":
            raise ChannelError(f"the supervisor is {self._state}; upgrade one that runs")
        if self._is_told_to_end:
            raise ChannelError(_TOLD_TO_END)
        for service in self._services:
            if why := service.ends_with_supervisor:
                raise ChannelError(f"calls would end with this supervisor: {why}; use `relayctl restart`")
        if not os.access(command[0], os.X_OK):
            raise ChannelError(f"cannot run {command[0]}")
        ours = {"lock": self._state_dir.lock_fd}
        for service in self._services:
            ours |= service.listeners()
        kept = {name: fd for name, fd in ours.items() if name in keeps}
        # After the answer, which is written before anything else has its turn.
        asyncio.get_running_loop().call_soon(
            self._become, command, asker, os.dup(asker.get_extra_info("socket").fileno()), kept
        )
        return {"pid": os.getpid(), "version": self._version}

    def _become(
        self, command: list[str], asker: asyncio.StreamWriter, outcome_fd: int, kept: dict[str, int]
    ) -> None:
        logger.info("upgrade: becoming what %s starts", command[0])
        self._manager.tell(STATUS=f"relayctl {self._version} is being upgraded")
        fds = {"ready": outcome_fd, **kept}
        options = [part for name, fd in fds.items() for part in (f"--{name}-fd", str(fd))]
        environment = {**os.environ, **self._manager.environment}
        why = _TOLD_TO_END
        try:
            become([*command, *options], fds.values(), environment, unless=lambda: self._is_told_to_end)
        except OSError as error:
            why = f"cannot run {command[0]} ({error.strerror}); the supervisor of version {self._version} goes on"
        logger.error("upgrade: %s", why)
        self._manager.tell(STATUS=self._running)
        os.close(outcome_fd)
        asker.write(encode_message({"error": why, "begun": False}))
        asker.close()

    @property
    def _running(self) -> str:
        return f"relayctl {self._version} runs"
