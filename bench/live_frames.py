"""``BPF_PROG_TEST_RUN`` with live frames: the kernel runs an XDP program over and over and sends what it redirects.

Frames are pages of the kernel's that come back as their last receiver left them: the program writes anew what it relies
on. One call is the whole run, as its set-up costs about 24 ms; the program waits by dropping, so **the core is busy all
the time**. What a packet's receivers do in softirq is done on this core too, and counted as this process's CPU time.
"""

import contextlib
import ctypes
import os
import signal
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from relay.dataplane.bpf.kernel_headers import make_kernel_tree
from relay.dataplane.bpf.syscall import PROG_TEST_RUN, TestRunAttr, bpf

# What NAPI takes in at once; the kernel's own default for live frames.
BATCH = 64
_BPF_F_TEST_XDP_LIVE_FRAMES = 2
_MAX_RUNS = 2**32 - 1
_ALARM_SLACK_S = 0.05  # the call's own set-up, before the program's clock starts


def compile_program(path: Path, flags: Sequence[str]) -> Any:
    """A ``bcc.BPF`` of this C file. Raises what BCC raises, a bare Exception."""
    # Imported late: Debian's module, which only hosts with a BPF data path have.
    import bcc

    with tempfile.TemporaryDirectory(prefix="relayctl-kernel-") as tree:
        make_kernel_tree(Path(tree))
        # Read by libbcc at compile time; there is no argument for it.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            return bcc.BPF(text=path.read_bytes(), cflags=["-Wall", "-Werror", *flags])
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


def run_live(program_fd: int, frame: bytes, seconds: float, batch: int = BATCH) -> None:
    """Run the program on pages that begin as ``frame`` until an alarm ends it. Takes this process's SIGALRM.

    Without the alarm it ends after 2**32 - 1 runs (more than 100 s). Raises OSError.
    """
    data = ctypes.create_string_buffer(frame, len(frame))
    attr = TestRunAttr(
        prog_fd=program_fd,
        data_size_in=len(frame),
        data_in=ctypes.addressof(data),
        repeat=_MAX_RUNS,
        flags=_BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size=batch,
    )
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    # Again and again: the first alarm may come before the call.
    signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_SLACK_S, _ALARM_SLACK_S)
    try:
        # EINTR: what the alarm is for.
        with contextlib.suppress(InterruptedError):
            bpf(PROG_TEST_RUN, attr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def transmitted(ip: IPRoute, index: int) -> int:
    """Packets that an interface counted as sent, by whomever."""
    (link,) = ip.get_links(index)
    return int(link.get_attr("IFLA_STATS64")["tx_packets"])


def checksum(data: bytes) -> int:
    """RFC 1071 section 1."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def mac_bytes(text: str) -> bytes:
    """The six bytes of ``02:00:00:00:00:01``. Raises ValueError."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"{text!r} is not a MAC address (as 02:00:00:00:00:01)")
    return mac
