"""A process that sends packets of many flows: one job a line on standard input, one report a line on standard output.

Run by ``bench.rig``, as the program's compiler and the alarm that ends a run need a process of their own.
"""

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import netns

from bench.frames import FIRST_CLIENT, FIRST_PORT, PAYLOAD_AT, Framing, Leg, Template, make_template
from bench.live_frames import BATCH, compile_program, mac_bytes, run_live
from wire.address import Address

_SOURCE = Path(__file__).with_name("c") / "generator.c"
_TEMPLATES = 16
MAX_PORTS = 65_536


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to send.

    namespace, interface: where from. payloads: bytes of the client's payload; several take turns, and divide 16.
    rate: packets/s, 0 for full speed; max_packets: 0 for any number. batch: 1 lets each packet go before the next is made.
    gives_way: whoever wakes up on the core has it at once (SCHED_IDLE), not at the end of a slice of some ms.
    is_stamped: each packet carries its own time; otherwise that of some packet before it.
    """

    namespace: str
    interface: int
    leg: Leg
    to_mac: str
    from_mac: str
    payloads: tuple[int, ...]
    flows: int
    seconds: float
    rate: int = 0
    max_packets: int = 0
    in_random_order: bool = True
    is_stamped: bool = False
    batch: int = BATCH
    core: int = 0
    niceness: int = 0
    gives_way: bool = False

    def __post_init__(self) -> None:
        if not self.payloads or _TEMPLATES % len(self.payloads):
            raise ValueError(f"payloads: {len(self.payloads)} sizes do not divide {_TEMPLATES}")
        if self.leg.ports and self.flows > min(len(self.leg.ports), MAX_PORTS):
            raise ValueError(f"ports: {len(self.leg.ports)} for {self.flows} flows")

    def to_message(self) -> dict[str, Any]:
        """The JSON form."""
        message = asdict(self)
        leg = self.leg
        message["leg"] = {
            "source": leg.source and str(leg.source),
            "destination": leg.destination and str(leg.destination),
            "framing": int(leg.framing),
            "vip": leg.vip and str(leg.vip),
            "ports": leg.ports,
            "sources": leg.sources,
            "destinations": leg.destinations,
        }
        return message

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "Job":
        """The inverse of ``to_message``."""
        leg = message["leg"]
        addresses = {
            name: Address.parse(leg[name]) if leg[name] else None for name in ("source", "destination", "vip")
        }
        rest = {"framing": Framing(leg["framing"]), "ports": tuple(leg["ports"])}
        made = Leg(**{**leg, **addresses, **rest})
        return cls(**{**message, "leg": made, "payloads": tuple(message["payloads"])})

    def templates(self) -> list[Template]:
        """The frames, 16 of them."""
        to_mac, from_mac = mac_bytes(self.to_mac), mac_bytes(self.from_mac)
        made = {size: make_template(self.leg, size, to_mac, from_mac) for size in set(self.payloads)}
        return [made[self.payloads[i % len(self.payloads)]] for i in range(_TEMPLATES)]


class Report(NamedTuple):
    """What was sent: packets handed to the interface, and the time from the first to the last."""

    offered: int
    refused: int
    seconds: float


class Program:
    """The generator's program for one form of frames."""

    def __init__(self, leg: Leg, *, mixed: bool) -> None:
        marker_at = leg.framing.marker_at
        self._bpf = compile_program(
            _SOURCE,
            [
                f"-DHEADER_BYTES={marker_at + 24}",
                f"-DMARKER_AT={marker_at}",
                f"-DHOST_AT={leg.host_at}",
                f"-DPORT_AT={leg.port_at}",
                f"-DIP_HAS_HOST={int(0 < leg.host_at < PAYLOAD_AT)}",
                f"-DHAS_PORTS={int(bool(leg.ports))}",
                f"-DTURN_AT={leg.turn_at}",
                f"-DTURNS={leg.turns}U",
                f"-DMIXED={int(mixed)}",
                f"-DFIRST_CLIENT={FIRST_CLIENT}U",
                f"-DFIRST_PORT={FIRST_PORT}",
                f"-DMAX_PORTS={MAX_PORTS}",
                "-Wno-unused-variable",
            ],
        )
        self.fd = self._bpf.load_func(b"generate", self._bpf.XDP).fd
        self._ports: tuple[int, ...] = ()

    def prepare(self, job: Job, templates: list[Template]) -> None:
        """Write the job into the maps."""
        table = self._bpf[b"templates"]
        for index, template in enumerate(templates):
            leaf = table.Leaf(len(template.frame), _fold(template.ip_sum), _fold(template.udp_sum))
            ctypes.memmove(leaf.header, template.header, len(template.header))
            table[table.Key(index)] = leaf
        if job.leg.ports and job.leg.ports != self._ports:
            ports = self._bpf[b"ports"]
            for flow, port in enumerate(job.leg.ports):
                ports[ports.Key(flow)] = ports.Leaf(int.from_bytes(port.to_bytes(2, "big"), sys.byteorder))
            self._ports = job.leg.ports
        jobs = self._bpf[b"jobs"]
        jobs[jobs.Key(0)] = jobs.Leaf(
            packets_per_s=job.rate,
            duration_ns=int(job.seconds * 1e9),
            max_packets=job.max_packets or 2**63,
            interface=job.interface,
            flows=job.flows,
            random_order=job.in_random_order,
            stamped=job.is_stamped,
            seed=2_463_534_242,
        )

    def report(self) -> Report:
        """Of the run that is over."""
        jobs = self._bpf[b"jobs"]
        job = jobs[jobs.Key(0)]
        return Report(job.offered, job.refused, (job.last_ns - job.first_ns) / 1e9)


def _fold(total: int) -> int:
    """Words and carries in 16 bits, so that the program's sums cannot overflow."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _run(job: Job, programs: dict[Any, Program]) -> Report:
    form = (
        job.leg.framing,
        job.leg.host_at,
        job.leg.port_at,
        bool(job.leg.ports),
        job.leg.turn_at,
        job.leg.turns,
        len(set(job.payloads)) > 1,
    )
    if form not in programs:
        programs[form] = Program(job.leg, mixed=form[-1])
    program, templates = programs[form], job.templates()
    program.prepare(job, templates)
    os.sched_setscheduler(0, os.SCHED_IDLE if job.gives_way else os.SCHED_OTHER, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, 0, job.niceness)
    longest = max((template.frame for template in templates), key=len)
    _say({"running": True})
    os.sched_setaffinity(0, {job.core})
    netns.pushns(job.namespace)
    try:
        run_live(program.fd, longest, job.seconds, job.batch)
    finally:
        netns.popns()
    return program.report()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do one job after the other until standard input ends."""
    # Ctrl-C is for the harness, which then ends standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    programs: dict[Any, Program] = {}
    for line in sys.stdin:
        try:
            report = _run(Job.from_message(json.loads(line)), programs)
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            _say({"error": f"{type(error).__name__}: {error}"})
        else:
            _say(report._asdict())


if __name__ == "__main__":
    main()
