"""A supervisor becomes its successor: the same process, by execve, with another version's code.

What it leaves behind is what a supervisor that died leaves behind, but for its children: they are the successor's, which
has not started them, and has to reap them.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Mapping
from typing import NoReturn

import psutil

_REAP_INTERVAL_S = 0.5
_STANDARD_FDS = 3


def become(command: list[str], kept_fds: Collection[int], environment: Mapping[str, str]) -> NoReturn:
    """Run ``command`` in place of this process; of its descriptors stay the standard ones and ``kept_fds``.

    Raises OSError; then this process goes on.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _STANDARD_FDS:
            with contextlib.suppress(OSError):  # the one that listdir had open itself
                os.set_inheritable(fd, fd in kept_fds)
    os.execve(command[0], command, environment)


def inherited_children() -> frozenset[int]:
    """Pids of children of this process; asked before it starts any, they are those of its predecessor."""
    return frozenset(child.pid for child in psutil.Process().children())


async def reap(pids: Collection[int]) -> None:
    """Wait for these children to end, and let go of each that has."""
    left = set(pids)
    while left:
        left = {pid for pid in left if not _is_reaped(pid)}
        await asyncio.sleep(_REAP_INTERVAL_S)


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True
