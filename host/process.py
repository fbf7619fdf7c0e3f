"""One child process of a supervisor: started, watched, restarted with back-off, ended.

state       what holds
starting    the process runs but has not said ``ready``
ready       it works
backing_off it ended by itself; the next start is due
stopped     it was told to end, or never started
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import psutil

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.errors import StartError
from host.registry import ProcessRegistry
from wire.admin import Message

logger = logging.getLogger(__name__)

# The first restart is immediate: a crash by one packet must not cost a call. A process that keeps crashing waits longer.
_BACK_OFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
# A process that lived this long is healthy again.
_HEALTHY_AFTER_S = 30.0
# A virtual machine without KVM takes 20 s for what takes 1 s elsewhere.
_READY_TIMEOUT_S = 60.0
_PING_INTERVAL_S = 2.0
# A worker that does not answer for this long drops packets anyway; calls survive 15 s without consent answers (Chromium).
_PING_TIMEOUT_S = 6.0
_TERM_GRACE_S = 5.0
_CLOSED_CHANNEL_GRACE_S = 1.0
# numpy's would start a thread at import, and a thread keeps the capabilities that the others give up.
CHILD_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}


class ProcessState(StrEnum):
    """See the table at the top of this file."""

    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What to run: ``python -m module`` with inherited file descriptors and settings sent over its channel.

    core: the CPU that the process is pinned to, or None. user: whom it runs as, None for our own user.
    settings: called at each start, so that a restarted process gets what is true then.
    handover: called right after the settings are sent, to send what its predecessor left.
    on_ready: it works, for the first time or again. on_event: what it says by itself. on_exit: it has ended, wanted or not.
    """

    name: str
    module: str
    fds: tuple[int, ...]
    settings: Callable[[], dict[str, Any]]
    handover: Callable[[Channel], Awaitable[None]] | None = None
    on_ready: Callable[[], None] = field(default=lambda: None)
    on_event: Callable[[Message], None] = field(default=lambda message: None)
    on_exit: Callable[[], None] = field(default=lambda: None)
    core: int | None = None
    user: str | None = None


class Process:
    """Keeps one spec running."""

    def __init__(self, spec: ProcessSpec, registry: ProcessRegistry) -> None:
        self.spec = spec
        self._registry = registry
        self.state = ProcessState.STOPPED
        self.pid: int | None = None
        self.restarts = 0
        self.last_exit: str | None = None
        self.started_at = 0.0
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._ending = asyncio.Event()
        self._usage: psutil.Process | None = None

    async def start(self) -> None:
        """Start and wait until it is ready. Raises StartError."""
        self._ending.clear()
        self._task = asyncio.create_task(self._keep_running(), name=self.spec.name)
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait(
                {ready, self._task}, timeout=_READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        if not self._ready.is_set():
            raise StartError(
                f"{self.spec.name} did not start ({self.last_exit or 'no answer'}); its log says why"
            )

    async def stop(self) -> None:
        """End the process with SIGTERM, and with SIGKILL after a grace."""
        self._ending.set()
        if self._task is None:
            return
        self.kill(signal.SIGTERM)
        _, running = await asyncio.wait({self._task}, timeout=_TERM_GRACE_S)
        if running:
            logger.warning("%s did not end within %g s, killed", self.spec.name, _TERM_GRACE_S)
            self.kill(signal.SIGKILL)
            await asyncio.wait({self._task})
        self._task = None

    def kill(self, signal_number: int) -> None:
        """Send a signal, if the process lives."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    async def request(self, method: str, *, timeout_s: float = 5.0, **params: Any) -> Any:
        """Ask the process. Raises ChannelError also while it is being restarted."""
        if self._channel is None:
            raise ChannelError(f"{self.spec.name} is not running")
        return await self._channel.request(method, timeout_s=timeout_s, **params)

    async def send(self, event: str, **fields: Any) -> None:
        """Tell the process something, if it runs, and wait until it has read most of it."""
        if self._channel is not None:
            self._channel.send_event(event, **fields)
            with contextlib.suppress(ConnectionError):
                await self._channel.drain()

    @property
    def uptime_s(self) -> float:
        """Since its last start; 0 while there is no process."""
        return round(time.monotonic() - self.started_at, 1) if self.pid else 0.0

    def describe(self) -> dict[str, Any]:
        """State for ``status``. ``cpu_percent`` is of one core, since the last call."""
        description: dict[str, Any] = {
            "name": self.spec.name,
            "pid": self.pid,
            "state": self.state.value,
            "core": self.spec.core,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "uptime_s": self.uptime_s,
        }
        if self._usage is not None:
            with contextlib.suppress(psutil.Error):
                description["cpu_percent"] = self._usage.cpu_percent()
                description["rss_bytes"] = self._usage.memory_info().rss
        return description

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            self.started_at = time.monotonic()
            try:
                await self._run_once()
            except OSError as error:  # no process or descriptor to be had now
                self.last_exit = f"not started ({error.strerror})"
            except Exception as error:  # a defect of ours must not leave the process unwatched
                logger.exception("%s: supervision failed", self.spec.name)
                self.last_exit = f"supervision failed ({type(error).__name__})"
            self._ready.clear()
            if self._ending.is_set():
                break
            if time.monotonic() - self.started_at > _HEALTHY_AFTER_S:
                failures = 0
            delay_s = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
            failures += 1
            self.restarts += 1
            self.state = ProcessState.BACKING_OFF
            logger.warning("%s ended (%s), restart in %g s", self.spec.name, self.last_exit, delay_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._ending.wait()
                break
        self.state = ProcessState.STOPPED

    async def _run_once(self) -> None:
        # First all that can fail without a process to end.
        settings = self.spec.settings()
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT)
            channel = Channel(reader, writer, on_event=self._receive_event)
            try:
                child = await asyncio.create_subprocess_exec(
                    # -P: never import from the directory that the operator happens to be in
                    *(sys.executable, "-P", "-m", self.spec.module, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *self.spec.fds),
                    start_new_session=True,
                    env={**os.environ, **CHILD_ENVIRONMENT},
                )
            except BaseException:
                channel.close()
                raise
        self._channel, self.pid = channel, child.pid
        self.started_at, self.state = time.monotonic(), ProcessState.STARTING
        self._registry.add(self.spec.name, self.spec.module, child.pid)
        with contextlib.suppress(psutil.Error):
            self._usage = psutil.Process(child.pid)
        channel.send_event("configure", settings=settings, core=self.spec.core, user=self.spec.user)
        serving = asyncio.create_task(channel.run())
        watching = asyncio.create_task(self._watch())
        handing = asyncio.create_task(self._hand_over(channel))
        try:
            exit_code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
            watching.cancel()
            handing.cancel()
            channel.close()
            self._registry.remove(child.pid)
            await serving
            self._channel = self.pid = self._usage = None
        self.last_exit = _describe_exit(exit_code)
        self.spec.on_exit()

    async def _hand_over(self, channel: Channel) -> None:
        if self.spec.handover is not None:
            with contextlib.suppress(ConnectionError):
                await self.spec.handover(channel)

    def _receive_event(self, message: Message) -> None:
        if message["event"] == "ready":
            logger.info("%s ready, pid %s", self.spec.name, self.pid)
            self.state = ProcessState.READY
            self.spec.on_ready()
            self._ready.set()
            return
        try:
            self.spec.on_event(message)
        except (KeyError, ValueError):
            logger.exception("%s sent an event that makes no sense", self.spec.name)

    async def _watch(self) -> None:
        """Kill a process that no longer answers, so that it is started anew."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._ready.wait()
        except TimeoutError:
            logger.error("%s is not ready after %g s, killed", self.spec.name, _READY_TIMEOUT_S)
            self.kill(signal.SIGKILL)
            return
        while True:
            await asyncio.sleep(_PING_INTERVAL_S)
            try:
                await self.request("ping", timeout_s=_PING_TIMEOUT_S)
            except ChannelError as error:
                if self._channel is None or self._channel.is_closed:
                    # It has ended, and this task with it; or it lives on without its supervisor.
                    await asyncio.sleep(_CLOSED_CHANNEL_GRACE_S)
                logger.error("%s hangs (%s), killed", self.spec.name, error)
                self.kill(signal.SIGKILL)
                return


def _describe_exit(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-exit_code}"
