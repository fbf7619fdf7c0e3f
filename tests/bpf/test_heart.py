"""A worker's heartbeat in the kernel's maps."""

import os
import time

import pytest

from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import Heartbeat, WorkerC
from relay.dataplane.bpf.heart import Heart
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.frames import judge, udp_frame
from tests.bpf.loading import value_of
from tests.relay.network import CLIENT_V4, LISTEN_V4, RTP

pytestmark = pytest.mark.bpf

SLOT = 5


def heart(programs: RelayPrograms) -> Heart:
    return Heart(programs.maps["workers"].fd, programs.maps["heartbeat"].fd, SLOT)


def test_beat_tells_who_beats_and_when(programs: RelayPrograms) -> None:
    before = time.monotonic_ns()
    beating = heart(programs)
    beating.beat()
    after = time.monotonic_ns()
    worker = value_of(programs.maps["workers"], SLOT)
    assert worker.pid == os.getpid()
    assert worker.core in os.sched_getaffinity(0)
    assert before <= worker.started_ns <= worker.beat_ns <= after
    assert value_of(programs.maps["heartbeat"], 0).beat_ns == worker.beat_ns
    others = [value.pid for key, value in programs.maps["workers"].items() if key.value not in (0, SLOT)]
    assert not any(others)


def test_packets_are_handed_up_as_long_as_it_beats(programs: RelayPrograms) -> None:
    frame = udp_frame(CLIENT_V4, LISTEN_V4, RTP)
    programs.maps["heartbeat"].put(0, Heartbeat(0))
    settings = programs.settings()
    settings.heartbeat_timeout_ns = time.monotonic_ns() // 2  # so that a beat at 0 is too old on any machine
    programs.maps["settings"].put(0, settings)
    assert judge(programs, frame) is Verdict.DROP_NO_WORKER
    heart(programs).beat()
    assert judge(programs, frame) is Verdict.HAND_UP


@pytest.mark.parametrize(
    ("age_ns", "is_taken"),
    [
        pytest.param(0, False, id="beats now"),
        pytest.param(300_000_000, False, id="missed one beat"),
        pytest.param(600_000_000, True, id="missed two"),
        pytest.param(-(2**40), False, id="is ahead of us"),
    ],
)
def test_slot_is_taken_from_one_that_beats_no_more(
    programs: RelayPrograms, age_ns: int, is_taken: bool
) -> None:
    """So a start that fails leaves the slots of those that serve to them, and a worker that ended loses its own."""
    now = time.monotonic_ns()
    other = WorkerC(pid=os.getpid() + 1, core=0, started_ns=2**63, beat_ns=now - age_ns)
    programs.maps["workers"].put(SLOT, other)
    heart(programs).beat()
    found = value_of(programs.maps["workers"], SLOT)
    assert found.pid == (os.getpid() if is_taken else other.pid)
    # in any case a worker lives
    assert value_of(programs.maps["heartbeat"], 0).beat_ns >= now
