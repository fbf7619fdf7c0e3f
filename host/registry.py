"""Which processes a supervisor started, written down so that those that outlive it are found."""

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_END_POLL_S = 0.02


@dataclass(frozen=True)
class Entry:
    """A process: what it is called, the module that it runs, and when it was started (clock ticks since the boot)."""

    name: str
    module: str
    pid: int
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; its pid may be another's by now."""
        try:
            return self.module in psutil.Process(self.pid).cmdline() and not self.has_ended
        except psutil.Error:
            return False

    @property
    def has_ended(self) -> bool:
        """Whether it holds nothing any more: gone, or only waiting to be reaped."""
        state, start_ticks = _read_stat(self.pid)
        return state in ("", "Z", "X") or start_ticks != self.start_ticks

    def kill(self, signal_number: int) -> None:
        """Send a signal, if it lives."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


class ProcessRegistry:
    """A file with one entry a living process. ``left_behind`` are those of supervisors before this one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.left_behind = [entry for entry in _read(path) if entry.is_alive]
        self._ours: dict[int, Entry] = {}

    def add(self, name: str, module: str, pid: int) -> None:
        """Note a process that was just started."""
        state, start_ticks = _read_stat(pid)
        if state:
            self._ours[pid] = Entry(name, module, pid, start_ticks)
            self._write()

    def remove(self, pid: int) -> None:
        """Note that a process has ended."""
        if self._ours.pop(pid, None) is not None:
            self._write()

    def end_left_behind(self, module: str | None = None, timeout_s: float = 2.0) -> list[Entry]:
        """End the processes of earlier supervisors, all or those of one module; returns them.

        SIGTERM, and SIGKILL for those that have not ended after the time-out.
        """
        ending = [e for e in self.left_behind if e.is_alive and module in (None, e.module)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for entry in ending:
                entry.kill(number)
            deadline = time.monotonic() + timeout_s
            while not all(entry.has_ended for entry in ending) and time.monotonic() < deadline:
                time.sleep(_END_POLL_S)
        self.left_behind = [entry for entry in self.left_behind if entry.is_alive]
        self._write()
        return ending

    def close(self) -> None:
        """Remove the file, unless processes of earlier supervisors still need it."""
        self._ours.clear()
        self._write()

    def _write(self) -> None:
        entries = [*(e for e in self.left_behind if e.is_alive), *self._ours.values()]
        # The state directory may be gone, or full: then a later start finds less than it could.
        with contextlib.suppress(OSError):
            if not entries:
                self._path.unlink(missing_ok=True)
                return
            fresh = self._path.with_name(f".{self._path.name}.new")
            fresh.write_text(json.dumps([asdict(entry) for entry in entries]))
            fresh.replace(self._path)


def _read(path: Path) -> list[Entry]:
    try:
        entries = [
            Entry(str(e["name"]), str(e["module"]), int(e["pid"]), int(e["start_ticks"]))
            for e in json.loads(path.read_text())
        ]
    # whatever stands there must not keep anybody from starting, or from stopping
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
    return [entry for entry in entries if entry.pid > 0]


def _read_stat(pid: int) -> tuple[str, int]:
    """State and start of a process, in clock ticks since the boot, which no change of the clock moves (proc(5))."""
    try:
        # the name in parentheses may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0
