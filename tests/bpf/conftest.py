"""Tests that load programs: where BPF is expected (REQUIRE_BPF=1), a kernel that refuses is a failure."""

import os
import time
from collections.abc import Iterator

import pytest

from host.errors import OperatorError
from relay.dataplane.bpf.program import BpfLimits, RelayPrograms
from tests.relay.network import FLEET_SOCKET_V4, FLEET_SOCKET_V6, POLICY


def load(limits: BpfLimits) -> RelayPrograms:
    """The program with the test fleet's settings and a living worker."""
    try:
        program = RelayPrograms(limits)
    except OperatorError as error:
        if os.environ.get("REQUIRE_BPF") == "1":
            raise
        pytest.skip(str(error))
    program.configure(POLICY, [FLEET_SOCKET_V4, FLEET_SOCKET_V6], (1, 2))
    program.beat(time.monotonic_ns())
    return program


@pytest.fixture(scope="module")
def xdp() -> Iterator[RelayPrograms]:
    """Without a rate limit that the table of packets could reach, and a heart that beats for the whole module."""
    program = load(BpfLimits(unknown_burst=1_000_000, heartbeat_timeout_s=3600))
    yield program
    program.close()
