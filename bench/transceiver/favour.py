"""What else this machine does must not take a measured process's core; where we may."""

import contextlib
from pathlib import Path

import psutil

_NICENESS = -15


def favour(pid: int) -> None:
    """A process that leads a session of its own, or is in one with nothing else of weight."""
    with contextlib.suppress(psutil.AccessDenied):
        psutil.Process(pid).nice(_NICENESS)
    # sched(7), autogroup: without it niceness counts within a session only
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(f"{_NICENESS}\n")
