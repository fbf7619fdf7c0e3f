"""The receiving ends: one XDP program on all of them, as only one path is measured at a time."""

import ctypes
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroute2 import IPRoute

from bench.frames import (
    DESTINATION_PORT_AT,
    FIRST_CLIENT,
    FIRST_PORT,
    MAGIC,
    PAYLOAD_AT,
    SOURCE_PORT_AT,
    Framing,
    Leg,
)
from bench.histogram import BUCKETS, SUB_BUCKETS_LOG2
from bench.live_frames import compile_program
from bench.topology import Host
from relay.dataplane.bpf.abi import ARRAY, PERCPU_ARRAY, MapLayout
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.syscall import lookup_batch
from wire.spp import MAGIC as SPP_MAGIC

MAX_LEARNED = 65_536
_SOURCE = Path(__file__).with_name("c") / "sink.c"
_DRV_MODE = 4  # linux/if_link.h, XDP_FLAGS_DRV_MODE


class Mode(IntEnum):
    """What is noted of a packet beyond its number."""

    COUNT = 0
    LATENCY = 1
    LEARN_PORTS = 2
    ARRIVALS = 3


class _Expectation(ctypes.Structure):
    """``struct expectation``."""

    _fields_ = (
        ("mode", ctypes.c_uint32),
        ("marker_at", ctypes.c_uint32),
        ("host_at", ctypes.c_uint32),
        ("port_at", ctypes.c_uint32),
        ("fixed_at", ctypes.c_uint32),
        ("fixed", ctypes.c_uint32),
        ("turn_at", ctypes.c_uint32),
        ("turns", ctypes.c_uint32),
        ("first_of_turns", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Count:
    """Packets that arrived as they should, and ours that did not."""

    delivered: int
    wrong: int


class Sink:
    """The program and its maps; ``attach`` it where packets are to arrive."""

    def __init__(self) -> None:
        magic = int.from_bytes(MAGIC, sys.byteorder)
        self._bpf = compile_program(
            _SOURCE,
            [
                f"-DFIRST_CLIENT={FIRST_CLIENT}U",
                f"-DFIRST_PORT={FIRST_PORT}",
                f"-DMAGIC={magic}U",
                f"-DBUCKETS={BUCKETS}",
                f"-DSUB_BUCKETS_LOG2={SUB_BUCKETS_LOG2}",
                f"-DMAX_LEARNED={MAX_LEARNED}",
            ],
        )
        self.program_fd = self._bpf.load_func(b"sink", self._bpf.XDP).fd
        numbers = MapLayout(PERCPU_ARRAY, ctypes.c_uint32, ctypes.c_uint64, "")
        self._counts = BpfMap(self._bpf[b"counts"].map_fd, numbers)
        self._histogram = BpfMap(self._bpf[b"histogram"].map_fd, numbers)
        self._expected = BpfMap(
            self._bpf[b"expectations"].map_fd, MapLayout(ARRAY, ctypes.c_uint32, _Expectation, "")
        )

    def attach(self, host: Host, interface: str) -> None:
        """Natively; it goes with the interface."""
        attach_xdp(host, interface, self.program_fd)

    def expect(self, leg: Leg, mode: Mode = Mode.COUNT) -> None:
        """Count the packets of this leg from now on."""
        if leg.framing is Framing.SPP:
            fixed_at, fixed = PAYLOAD_AT, SPP_MAGIC
        elif leg.destination is not None:
            fixed_at, fixed = DESTINATION_PORT_AT, leg.destination.port
        else:
            assert leg.source is not None
            fixed_at, fixed = SOURCE_PORT_AT, leg.source.port
        in_frame = int.from_bytes(fixed.to_bytes(2, "big"), sys.byteorder)
        first = int.from_bytes(leg.first_of_turns.host, "big") if leg.first_of_turns else 0
        at = (leg.framing.marker_at, leg.host_at, leg.port_at, fixed_at)
        self._expected.put(0, _Expectation(mode, *at, in_frame, leg.turn_at, leg.turns, first))

    def count(self) -> Count:
        """Since the beginning, on all CPUs."""
        delivered, wrong = (sum(self._counts.get(index) or ()) for index in range(2))
        return Count(int(delivered), int(wrong))

    def histogram(self) -> npt.NDArray[np.int64]:
        """Packets by bucket since the beginning, on all CPUs."""
        return np.array([sum(self._histogram.get(bucket) or ()) for bucket in range(BUCKETS)], dtype=np.int64)

    def learned_ports(self, flows: int) -> tuple[int, ...]:
        """The source port that each flow's packets came from; 0 where none came."""
        ports = _read_array(self._bpf[b"learned"].map_fd, flows, np.dtype(">u2"))
        return tuple(int(port) for port in ports)

    def arrivals(self, flows: int) -> npt.NDArray[np.uint64]:
        """The time when each flow's first packet came, CLOCK_MONOTONIC; 0 where none came."""
        return _read_array(self._bpf[b"arrivals"].map_fd, flows, np.dtype("u8"))

    def forget_arrivals(self) -> None:
        """And what was learned."""
        self._bpf[b"arrivals"].clear()
        self._bpf[b"learned"].clear()

    def close(self) -> None:
        """Let go of the program."""
        self._bpf.cleanup()


def attach_xdp(host: Host, interface: str, program_fd: int) -> None:
    """Natively, in place of any other. Raises NetlinkError."""
    with host, IPRoute() as ip:
        attributes = [("IFLA_XDP_FD", program_fd), ("IFLA_XDP_FLAGS", _DRV_MODE)]
        ip.link("set", index=ip.link_lookup(ifname=interface)[0], xdp={"attrs": attributes})


def _read_array(map_fd: int, count: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """The first elements of an array map."""
    keys = np.zeros(count, dtype=np.uint32)
    values = np.zeros(count * max(8, kind.itemsize) // kind.itemsize, dtype=kind)
    position = np.zeros(2, dtype=np.uint32)
    got, _ = lookup_batch(
        map_fd,
        None,
        ctypes.c_uint64.from_buffer(position.data),
        (ctypes.c_uint32 * count).from_buffer(keys.data),
        (ctypes.c_uint8 * values.nbytes).from_buffer(values.data),
        count,
    )
    # values of arrays are 8 bytes apart only inside the kernel; here they are as large as they are
    return values[:got]
