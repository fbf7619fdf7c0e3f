"""Gives back what ended calls leave behind: cycles to the allocator, free pages to the kernel."""

import ctypes
import gc

# Below it, what comes back is not worth a pause.
WORTH_IT = 20


def return_memory() -> None:
    """Collect, and have glibc return free pages from the middle of its heap, too; some 20 ms after 1,000 calls."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; musl returns pages by itself
    if trim is not None:
        trim(0)
