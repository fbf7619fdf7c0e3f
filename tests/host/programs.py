"""Tiny child programs for the supervisor to run, written to a directory of the test."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from host.process import Process, ProcessSpec, ProcessState
from host.registry import Entry, ProcessRegistry
from tests.host.deadline import until
from wire.admin import Message

# Every program begins so: `settings` as it was configured, `serve()` answers any request until the channel closes.
_PRELUDE = """
import os, signal, socket, sys, time
from pathlib import Path
from host.line_socket import LineSocket

line = LineSocket(socket.socket(fileno=int(sys.argv[1])))
messages = []
while not messages:
    messages = line.receive()
    if messages is None:
        sys.exit()
settings = messages[0]["settings"]

def serve():
    while (messages := line.receive()) is not None:
        for message in messages:
            if "method" in message:
                line.send({"id": message["id"], "result": message["method"]})
                line.send({"event": "asked", "method": message["method"]})
            elif "event" in message:
                line.send({"event": "heard", "message": message})

"""
READY = 'line.send({"event": "ready"})\n'
GOOD = READY + "serve()\n"
SILENT = "serve()\n"
HUNG = READY + "time.sleep(600)\n"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD
# On SIGTERM a worker of ours ends by itself with exit code 0.
POLITE = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n" + GOOD


class Programs:
    """Makes specs and processes, and ends whatever is left of them."""

    def __init__(self, directory: Path) -> None:
        self.registry_file = directory / "processes.json"
        self.registry = ProcessRegistry(self.registry_file)
        self._directory = directory
        self._processes: list[Process] = []
        self._made = 0

    def spec(
        self, body: str, *, name: str = "", settings: Callable[[], dict[str, Any]] = dict, **fields: Any
    ) -> ProcessSpec:
        """A spec that runs ``body`` after the prelude."""
        self._made += 1
        module = f"relayctl_test_program_{self._made}"
        (self._directory / f"{module}.py").write_text(_PRELUDE + body)
        return ProcessSpec(
            name=name or f"program-{self._made}",
            module=module,
            settings=settings,
            fds=fields.pop("fds", ()),
            **fields,
        )

    def process(self, body: str, **fields: Any) -> Process:
        """A process that is ended with the test."""
        process = Process(self.spec(body, **fields), self.registry)
        self._processes.append(process)
        return process

    def found_in_registry(self) -> list[Entry]:
        """What a supervisor that started now would find."""
        return ProcessRegistry(self.registry_file).left_behind

    def living(self) -> list[int]:
        """Pids of the programs that still run."""
        pids = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                running = child.status() != psutil.STATUS_ZOMBIE
                if running and any("relayctl_test_program_" in word for word in child.cmdline()):
                    pids.append(child.pid)
        return pids

    async def end(self) -> None:
        """End everything, whatever state it is in."""
        for process in self._processes:
            process._ending.set()
        for _ in range(50):
            for pid in self.living():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            tasks = [process._task for process in self._processes if process._task is not None]
            if all(task.done() for task in tasks) and not self.living():
                break
            await asyncio.sleep(0.02)
        for process in self._processes:
            if process._task is not None:
                process._task.cancel()
                with contextlib.suppress(BaseException):
                    await process._task


class Heard:
    """Events that a program sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.messages.append(message)

    def values(self, event: str, key: str) -> list[Any]:
        """One field of every event of that name."""
        return [message[key] for message in self.messages if message["event"] == event]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(process: Process, number: int = signal.SIGKILL) -> int:
    """Send a signal from outside; returns the pid."""
    assert process.pid is not None
    os.kill(process.pid, number)
    return process.pid


async def restarted(process: Process, times: int = 1) -> None:
    """Wait until the process has come back."""
    await until(
        lambda: process.restarts >= times and process.state is ProcessState.READY,
        f"{times} restarts",
        5,
    )
