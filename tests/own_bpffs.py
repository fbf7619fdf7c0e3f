"""A bpffs for this test process alone.

A relay of root's and one of nobody's share ``/sys/fs/bpf/relayctl``: who comes second is told so. Tests side by side must not
meet there, and what a killed test has pinned goes with its process.
"""

import ctypes
import os

# linux/sched.h, linux/mount.h
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def mount_own_bpffs() -> None:
    """In a mount namespace of this thread, and of what it starts; nothing where we may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS):
        return
    for source, target, kind, flags in (
        (b"none", b"/", None, _MS_REC | _MS_PRIVATE),
        (b"bpf", b"/sys/fs/bpf", b"bpf", 0),
    ):
        if libc.mount(source, target, kind, ctypes.c_ulong(flags), None):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), target)
