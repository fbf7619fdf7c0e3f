"""A supervisor becomes its successor: the same process, by execve, with another version's code.

What it leaves behind is what a supervisor that died leaves behind, but for its children: they are the successor's, which
has not started them, and has to reap them.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping

import psutil

# What ends a supervisor.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REAP_INTERVAL_S = 0.5
_STANDARD_FDS = 3


def become(
    command: list[str],
    kept_fds: Collection[int],
    environment: Mapping[str, str],
    *,
    unless: Callable[[], bool] = lambda: False,
) -> None:
    """Run ``command`` in place of this process; of its descriptors stay the standard ones and ``kept_fds``.

    ENDING_SIGNALS that come meanwhile are kept for it: it finds them blocked, and has to unblock them. Not begun if one has come
    already, or ``unless`` says so, which is asked when handlers of all that came before have run. Returns, or raises OSError,
    if this process goes on.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _STANDARD_FDS:
            with contextlib.suppress(OSError):  # the one that listdir had open itself
                os.set_inheritable(fd, fd in kept_fds)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        if not unless() and signal.sigpending().isdisjoint(ENDING_SIGNALS):
            os.execve(command[0], command, environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def watch_children_without_threads() -> None:
    """Have the event loop that is made next wait for children by pidfds, as it does from Python 3.12 on.

    A thread could hear a signal that is to be kept for a successor.
    """
    if sys.version_info < (3, 12):
        with contextlib.suppress(OSError):  # a sandbox without them
            os.close(os.pidfd_open(os.getpid()))
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


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
