"""What a running task does, from outside: its kernel stack whenever another bit of its CPU time is over.

A software clock (``PERF_COUNT_SW_CPU_CLOCK``) of that task alone runs ``c/sampler.c``, so it needs no hardware counters
and no change of what it looks at. It stands still while the task sleeps.
"""

import contextlib
import errno
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.errors import BenchError
from bench.live_frames import compile_program

_SOURCE = Path(__file__).with_name("c") / "sampler.c"
_SOFTWARE, _CPU_CLOCK = 1, 0  # linux/perf_event.h
# No multiple of what the kernel and the load do regularly.
_FREQUENCY_HZ = 3989
# What the kernel's own headers have where BCC looks for it.
_FLAGS = ("-Droundup_pow_of_two(x)=(x)", "-DBPF_MAX_STACK_DEPTH=127")

USER_SPACE, UNKNOWN = "user space", "unknown"
# The first frames of every system call, which say nothing.
_ENTRY = ("entry_SYSCALL", "do_syscall_64", "x64_sys_call", "el0", "invoke_syscall", "do_el0")

# A stack, outermost frame first, by how often it was met.
Stacks = Mapping[tuple[str, ...], int]


@contextlib.contextmanager
def sampling(pid: int) -> Iterator[Counter[tuple[str, ...]]]:
    """Sample a process of one thread; the counter is filled when the block ends. Raises BenchError."""
    found: Counter[tuple[str, ...]] = Counter()
    with contextlib.ExitStack() as stack:
        try:
            bpf = compile_program(_SOURCE, _FLAGS)
            stack.callback(bpf.cleanup)
            bpf.attach_perf_event(
                ev_type=_SOFTWARE, ev_config=_CPU_CLOCK, fn_name=b"sample", sample_freq=_FREQUENCY_HZ, pid=pid
            )
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            raise BenchError(f"no sampling of {pid}: {error}") from None
        yield found
        bpf.detach_perf_event(_SOFTWARE, _CPU_CLOCK)
        stacks = bpf[b"stacks"]
        for key, count in bpf[b"samples"].items():
            if key.value >= 0:
                frames = [bpf.ksym(address).decode() for address in stacks.walk(key.value)]
                found[without_entry(tuple(reversed(frames)))] += count.value
            else:
                found[(USER_SPACE if key.value == -errno.EFAULT else UNKNOWN,)] += count.value


def without_entry(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Begin with the system call; the way into the kernel is one of its own where there is no more."""
    for index, frame in enumerate(stack):
        if not frame.startswith(_ENTRY):
            return stack[index:]
    return stack[:1] or (UNKNOWN,)
