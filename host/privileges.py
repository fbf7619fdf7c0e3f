"""What a process gives up before it reads from the network."""

import os
import pwd

import pyprctl

from host.errors import ConfigError, OperatorError


def check_user(user: str) -> None:
    """Raises ConfigError if processes cannot run as that user."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            "host.user", f"no user {user!r} here; `adduser --system {user}` makes one"
        ) from None
    if os.geteuid() != 0 and entry.pw_uid != os.geteuid():
        raise ConfigError(
            "host.user", f"only root can run processes as {user!r}; leave it out, or start as root"
        )


def drop_privileges(user: str | None) -> None:
    """Give up every capability for good, and become ``user`` where one is named. Descriptors stay open.

    Raises OperatorError if the process has other threads: each thread has its own capabilities.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise OperatorError(
            "capabilities cannot be given up: a library has started a thread (see its *_NUM_THREADS)"
        )
    if os.geteuid() == 0:
        if pyprctl.Cap.SETPCAP in pyprctl.CapState.get_current().effective:
            for capability in pyprctl.capbset_probe():
                pyprctl.capbset_drop(capability)
        if user is not None:
            entry = pwd.getpwnam(user)
            os.setgroups([])
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    pyprctl.cap_ambient_clear_all()
    pyprctl.CapState().set_current()
    pyprctl.set_no_new_privs()
