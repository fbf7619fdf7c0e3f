"""From sampled stacks to parts of a worker's time, and to a picture."""

import pytest

from bench.breakdown import breakdown_row, is_softirq, part_of
from bench.plots import flame_boxes
from bench.results import PARTS, BreakdownRow
from bench.rig import Sample
from bench.sampler import UNKNOWN, USER_SPACE, without_entry

SEND = ("__x64_sys_sendmmsg", "__sys_sendmmsg", "udp_sendmsg")
SOFTIRQ = (*SEND, "__local_bh_enable_ip", "do_softirq.part.0", "net_rx_action")
SAMPLE = Sample(delivered=1_000_000, seconds=2, offered=0, lost=0, wrong=0, core_share=1, relay_cpu_s=1.0)


@pytest.mark.parametrize(
    ("description", "stack", "rest"),
    [
        ("a system call", ("entry_SYSCALL_64_after_hwframe", "do_syscall_64", *SEND), SEND),
        (
            "on ARM",
            ("el0t_64_sync", "el0_svc", "invoke_syscall", "__arm64_sys_recvmmsg"),
            ("__arm64_sys_recvmmsg",),
        ),
        ("no more than the way in", ("entry_SYSCALL_64_after_hwframe",), ("entry_SYSCALL_64_after_hwframe",)),
        ("nothing at all", (), (UNKNOWN,)),
    ],
)
def test_a_stack_begins_with_its_system_call(
    description: str, stack: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    assert without_entry(stack) == rest


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        (("__x64_sys_recvmmsg", "do_recvmmsg"), "receive"),
        (("__x64_sys_recvfrom",), "receive"),
        (("__arm64_sys_sendmsg",), "send"),
        (SEND, "send"),
        (SOFTIRQ, "send"),
        (("__x64_sys_epoll_wait",), "wait"),
        (("__x64_sys_futex",), "other"),
        (("asm_sysvec_apic_timer_interrupt",), "other"),
        ((USER_SPACE,), "Python"),
    ],
)
def test_part(stack: tuple[str, ...], part: str) -> None:
    assert part_of(stack) == part
    assert part in PARTS


def test_row_has_shares_and_times() -> None:
    stacks: dict[tuple[str, ...], int] = {
        SEND: 30,
        SOFTIRQ: 20,
        ("__x64_sys_recvmmsg",): 10,
        (USER_SPACE,): 40,
    }
    row = breakdown_row("up", SAMPLE, stacks)
    assert row.parts == {"receive": 0.1, "Python": 0.4, "send": 0.5, "wait": 0, "other": 0}
    assert (row.softirq, row.samples, row.pps, row.cpu_share) == (0.2, 100, 500_000, 0.5)
    assert (row.ns_per_packet, row.ns_of("send")) == (1000, 500)
    assert is_softirq(SOFTIRQ)
    assert not is_softirq(SEND)


def test_what_is_too_small_to_see_counts_for_its_caller() -> None:
    rare: dict[tuple[str, ...], int] = {(*SEND, f"leaf_{number}"): 1 for number in range(9)}
    row = breakdown_row("up", SAMPLE, {(USER_SPACE,): 10_000, SEND: 100, **rare})
    assert row.stacks == [(USER_SPACE, 10_000), (";".join(SEND), 109)]


def test_no_sample_is_no_row() -> None:
    assert breakdown_row("up", SAMPLE, {}).why_not


def test_boxes_of_a_flame_graph_stand_on_their_callers() -> None:
    row = BreakdownRow(name="userspace", direction="up", stacks=[("a;b", 1), ("a;c", 2), ("a", 1), ("d", 4)])
    assert sorted(flame_boxes(row)) == [
        (0.0, 0, 0.5, "a"),
        (0.0, 1, 0.125, "b"),
        (0.125, 1, 0.25, "c"),
        (0.5, 0, 0.5, "d"),
    ]
