"""Programs loaded with the test fleet's settings."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from relay.core.policy import RelayPolicy
from relay.dataplane.bpf.abi import Heartbeat, WorkerC
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.errors import BpfUnavailableError
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.programs import RelayPrograms
from tests.relay.network import FLEET_SOCKET_V4, FLEET_SOCKET_V6, POLICY

FLEET_SOCKETS = [FLEET_SOCKET_V4, FLEET_SOCKET_V6]
HASH_KEY = (1, 2)
SMALL = MapSizes(max_flows=64, max_provisional=64, max_buckets=64)
# A heart that beats once beats for the whole test.
PATIENT = replace(POLICY, heartbeat_timeout_s=3600.0)


@contextlib.contextmanager
def bpf_expected() -> Iterator[None]:
    """What the kernel or the machine refuses in this block is a skip, and a failure where BPF is expected."""
    try:
        yield
    except BpfUnavailableError as error:
        if os.environ.get("REQUIRE_BPF") == "1":
            raise
        pytest.skip(str(error))


def beat(programs: RelayPrograms, *slots: int, ago_s: float = 0.0) -> None:
    """The workers of these slots have last beaten so long ago."""
    for slot in slots:
        worker = WorkerC(pid=os.getpid(), beat_ns=time.monotonic_ns() - int(ago_s * 1e9))
        programs.maps["workers"].put(slot, worker)
        programs.maps["heartbeat"].put(0, Heartbeat(worker.beat_ns))


def load(policy: RelayPolicy = PATIENT, sizes: MapSizes = SMALL) -> RelayPrograms:
    """The programs with the test fleet's addresses and a living worker."""
    with bpf_expected():
        programs = RelayPrograms.load(sizes)
    programs.configure(policy, FLEET_SOCKETS, HASH_KEY)
    beat(programs, 0)
    return programs


def value_of(bpf_map: BpfMap, key: Any) -> Any:
    """The value of a key that is there."""
    value = bpf_map.get(key)
    assert value is not None
    return value
