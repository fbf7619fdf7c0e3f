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


def test_heart_is_silent_for_a_slot_that_another_has_taken(programs: RelayPrograms) -> None:
    old = heart(programs)
    old.beat()
    young = heart(programs)
    young.beat()
    taken = bytes(value_of(programs.maps["workers"], SLOT))
    old.beat()
    assert bytes(value_of(programs.maps["workers"], SLOT)) == taken
    # but as long as it empties its sockets, a worker lives
    assert value_of(programs.maps["heartbeat"], 0).beat_ns > WorkerC.from_buffer_copy(taken).beat_ns
    young.beat()
    assert bytes(value_of(programs.maps["workers"], SLOT)) != taken
