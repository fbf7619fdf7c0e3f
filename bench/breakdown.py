"""Where the time of a userspace worker goes at full load: receiving, Python, sending, waiting.

The worker has a core of its own, so that it is what limits the rate.
"""

from collections import Counter

from bench.errors import BenchError
from bench.progress import Progress
from bench.results import DOWN, FLOWS, PARTS, PAYLOAD, UP, USERSPACE, BreakdownRow
from bench.rig import Rig, Sample
from bench.sampler import USER_SPACE, Stacks, sampling
from bench.stage import OWN_CORE, Stage, stage

# A frame of the flame graph below this part is not to be seen.
_VISIBLE = 0.002
# How the functions of system calls begin, behind the prefix of the architecture.
_CALLS = {
    "receive": ("recv", "read"),
    "send": ("send", "write"),
    "wait": ("epoll", "poll", "ppoll", "select", "pselect"),
}
_PREFIXES = ("__x64_sys_", "__arm64_sys_", "__se_sys_", "__sys_")
_SOFTIRQ = ("do_softirq", "__do_softirq", "handle_softirqs")


def measure_breakdown(rig: Rig, *, seconds: float, progress: Progress) -> list[BreakdownRow]:
    """Up and down, 100 bytes, so long each."""
    with stage(rig, [USERSPACE], FLOWS, progress) as made:
        progress.expect(2)
        return [_measure(made, direction, seconds, progress) for direction in (UP, DOWN)]


def _measure(made: Stage, direction: str, seconds: float, progress: Progress) -> BreakdownRow:
    player = made.players.get(USERSPACE)
    if player is None:
        return BreakdownRow(name=USERSPACE, direction=direction, why_not=made.why_not[USERSPACE])
    progress.advance(f"{USERSPACE} {direction}")
    try:
        # Once before, to find the rate of which it delivers most.
        made.play(player, direction, (PAYLOAD,), OWN_CORE, seconds / 10)
        with sampling(player.relay.workers[0]) as stacks:
            sample = made.play(player, direction, (PAYLOAD,), OWN_CORE, seconds)
    except BenchError as error:
        return BreakdownRow(name=USERSPACE, direction=direction, why_not=str(error))
    return breakdown_row(direction, sample, stacks)


def breakdown_row(direction: str, sample: Sample, stacks: Stacks) -> BreakdownRow:
    """The row of a turn with what was sampled in it."""
    total = sum(stacks.values())
    if not total or not sample.delivered:
        return BreakdownRow(name=USERSPACE, direction=direction, why_not="no packet, or no sample")
    parts: Counter[str] = Counter()
    softirq = 0
    for stack, count in stacks.items():
        parts[part_of(stack)] += count
        softirq += count if is_softirq(stack) else 0
    return BreakdownRow(
        name=USERSPACE,
        direction=direction,
        pps=float(round(sample.pps)),
        cpu_share=round(sample.relay_cpu_s / sample.seconds, 3),
        ns_per_packet=round(sample.cpu_us_per_packet * 1000, 1),
        samples=total,
        parts={part: round(parts[part] / total, 4) for part in PARTS},
        softirq=round(softirq / total, 4),
        stacks=[(";".join(stack), count) for stack, count in _visible(stacks).most_common()],
    )


def part_of(stack: tuple[str, ...]) -> str:
    """By the system call that a stack is in; user space is Python and what it calls."""
    if stack[0] == USER_SPACE:
        return "Python"
    for prefix in _PREFIXES:
        if stack[0].startswith(prefix):
            call = stack[0].removeprefix(prefix)
            return next((part for part, names in _CALLS.items() if call.startswith(names)), "other")
    return "other"


def is_softirq(stack: tuple[str, ...]) -> bool:
    """Whether it is the network's work on this task's back: the way of its packets beyond the interface, or others'."""
    return any(frame.startswith(_SOFTIRQ) for frame in stack)


def _visible(stacks: Stacks) -> Counter[tuple[str, ...]]:
    """Stacks cut where they branch into parts that no picture shows."""
    total = sum(stacks.values())
    below: Counter[tuple[str, ...]] = Counter()
    for stack, count in stacks.items():
        for depth in range(1, len(stack) + 1):
            below[stack[:depth]] += count
    cut: Counter[tuple[str, ...]] = Counter()
    for stack, count in stacks.items():
        depth = len(stack)
        while depth > 1 and below[stack[:depth]] < total * _VISIBLE:
            depth -= 1
        cut[stack[:depth]] += count
    return cut
