"""A flood of UDP from one source or many, at a steady rate, out of an interface of this network namespace.

``bench/live_frames.py`` runs ``c/flood.c`` over and over and sends what it redirects. **The core is busy all the time**,
at the lowest priority, with what the interface's peer does with a packet (its XDP program, its network stack up to the
socket) too.

The peer of a veth takes redirected frames only while it has an XDP program or GRO on; else all are lost without an
error, so a run that its interface did not count fails.

A run is bounded three times: the program stops at ``rate * seconds`` packets and at ``seconds``, the alarm ends the
call, and the call ends by itself after 2**32 - 1 runs (more than 100 s).
"""

import argparse
import ctypes
import json
import os
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyroute2 import IPRoute

from bench.frames import sum_words
from bench.live_frames import checksum, compile_program, mac_bytes, run_live, transmitted
from relay.dataplane.bpf.syscall import update_batch
from wire.address import Address

MAX_SECONDS = 60
MAX_PAYLOAD_BYTES = 1472  # one frame of 1500 bytes
MAX_PAYLOADS = 16_384
_SOURCE = Path(__file__).parents[1] / "c" / "flood.c"
# What the program writes anew for each frame: source address and port.
_NOBODY = Address(bytes(4), 0)
# 0x7f is nothing in RFC 7983: neither STUN, DTLS, RTP nor a TURN channel.
JUNK = b"\x7f" + bytes(range(1, 100))


@dataclass(frozen=True, kw_only=True)
class Flood:
    """What to send, and for how long.

    interface: of the current network namespace.
    source, destination: IPv4. sources, ports: packets come from so many addresses and ports from ``source`` on, at random.
    source_mac, destination_mac: as ``02:00:00:00:00:01``.
    rate: packets/s; one out of reach (100 million) is full speed.
    seconds: at most 60.
    payloads_file: payloads of one length that take turns in place of ``payload``, in hex, one a line.
    core: pinned to it; None leaves that to the scheduler.
    niceness: 19 gives way to everybody (a core that another process wants whole leaves 5 % of 200,000 packets/s).
    """

    interface: str
    source: Address
    destination: Address
    source_mac: str
    destination_mac: str
    rate: int
    seconds: float
    payload: bytes = JUNK
    payloads_file: Path | None = None
    sources: int = 1
    ports: int = 1
    core: int | None = None
    niceness: int = 19

    def __post_init__(self) -> None:
        if self.source.family != 4 or self.destination.family != 4:
            raise ValueError("only IPv4 is sent")
        if self.rate < 1:
            raise ValueError(f"rate: {self.rate} packets/s")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ValueError(f"seconds: {self.seconds} is not within 0 to {MAX_SECONDS}")
        if not 1 <= self.sources <= 2**32 - int.from_bytes(self.source.host, "big"):
            raise ValueError(f"sources: {self.sources} addresses from {self.source.ip} on")
        if not 1 <= self.ports <= 2**16 - self.source.port:
            raise ValueError(f"ports: {self.ports} from {self.source.port} on")
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload: {len(self.payload)} bytes, at most {MAX_PAYLOAD_BYTES}")

    def command(self) -> list[str]:
        """The command that sends this flood in a process of its own; run it in the repository and the namespace."""
        options = {
            "interface": self.interface,
            "source": self.source,
            "destination": self.destination,
            "source-mac": self.source_mac,
            "destination-mac": self.destination_mac,
            "rate": self.rate,
            "seconds": self.seconds,
            "payload-hex": self.payload.hex(),
            "sources": self.sources,
            "ports": self.ports,
            "niceness": self.niceness,
        }
        if self.payloads_file is not None:
            options["payloads-file"] = self.payloads_file
        if self.core is not None:
            options["core"] = self.core
        return [
            sys.executable,
            "-m",
            "bench.flood.generator",
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def payloads(self) -> list[bytes]:
        """What takes turns. Raises ValueError or OSError if a file does not hold payloads of one length."""
        if self.payloads_file is None:
            return [self.payload]
        found = [bytes.fromhex(line) for line in self.payloads_file.read_text().split()]
        if not 1 <= len(found) <= MAX_PAYLOADS or len(set(map(len, found))) != 1:
            raise ValueError(f"{self.payloads_file}: not 1 to {MAX_PAYLOADS} payloads of one length")
        return found

    def frame(self, payload: bytes | None = None) -> bytes:
        """The Ethernet frame from ``source``, with full checksums."""
        ip, udp, pseudo = self._headers(self.source, self.payload if payload is None else payload)
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
        return self._ethernet() + ip + udp

    def template(self, payload: bytes) -> bytes:
        """``struct frame``, but for the bytes at its end."""
        ip, udp, pseudo = self._headers(_NOBODY, payload)
        frame = self._ethernet() + ip + udp
        return struct.pack("=II", _fold(sum_words(ip)), _fold(sum_words(pseudo + udp))) + frame

    def _ethernet(self) -> bytes:
        return mac_bytes(self.destination_mac) + mac_bytes(self.source_mac) + b"\x08\x00"

    def _headers(self, source: Address, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """IP and UDP with zeros for checksums, and RFC 768's pseudo header: addresses, protocol and length."""
        udp_length = 8 + len(payload)
        addresses = source.host + self.destination.host
        # version and header length, -, total length, identification, do not fragment, TTL, protocol, checksum
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + udp_length, 0, 0x4000, 64, 17, 0) + addresses
        udp = struct.pack("!HHHH", source.port, self.destination.port, udp_length, 0) + payload
        return ip, udp, addresses + struct.pack("!HH", 17, udp_length)


def _fold(total: int) -> int:
    """Words and carries in 16 bits, so that the program's sums cannot overflow."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Report(NamedTuple):
    """What was sent.

    offered: packets that the program handed to the interface; transmitted: those that the interface counted, and others'.
    started_s: of the first packet, on the monotonic clock; seconds: from there to the last packet.
    cpu_s: of this process during the run, what the peer does with a packet included.
    longest_lag_s: the longest time that a packet was sent behind schedule.
    """

    offered: int
    transmitted: int
    started_s: float
    seconds: float
    rate: float
    cpu_s: float
    longest_lag_s: float


class GeneratorError(Exception):
    """The flood did not take place."""


def send(flood: Flood) -> Report:
    """Send it, and return when it is over. Takes this process's SIGALRM. Raises GeneratorError, OSError."""
    payloads = flood.payloads()
    frame = flood.frame(payloads[0])
    bpf = compile_program(_SOURCE, [f"-DFRAME_BYTES={len(frame)}", f"-DFRAMES={len(payloads)}"])
    try:
        function = bpf.load_func(b"send_flood", bpf.XDP)
        with IPRoute() as ip:
            found = ip.link_lookup(ifname=flood.interface)
            if not found:
                raise GeneratorError(f"no interface {flood.interface} in this network namespace")
            index = found[0]
            floods = bpf[b"floods"]
            _fill(bpf[b"frames"], [flood.template(payload) for payload in payloads])
            floods[floods.Key(0)] = floods.Leaf(
                packets_per_s=flood.rate,
                duration_ns=int(flood.seconds * 1e9),
                max_packets=max(1, int(flood.rate * flood.seconds)),
                interface=index,
                first_host=int.from_bytes(flood.source.host, "big"),
                sources=flood.sources,
                first_port=flood.source.port,
                ports=flood.ports,
                seed=2_463_534_242,
            )
            sent, cpu_s = transmitted(ip, index), time.process_time()
            run_live(function.fd, frame, flood.seconds)
            sent, cpu_s = transmitted(ip, index) - sent, time.process_time() - cpu_s
        return _report(floods[floods.Key(0)], sent, cpu_s)
    finally:
        bpf.cleanup()


def _fill(table: Any, templates: list[bytes]) -> None:
    """Write the array of frames at once."""
    count, value_bytes = len(templates), ctypes.sizeof(table.Leaf)
    keys = np.arange(count, dtype=np.uint32)
    values = np.zeros((count, value_bytes), dtype=np.uint8)
    for row, template in zip(values, templates, strict=True):
        row[: len(template)] = np.frombuffer(template, dtype=np.uint8)
    update_batch(
        table.map_fd,
        (ctypes.c_uint32 * count).from_buffer(keys.data),
        (ctypes.c_uint8 * values.nbytes).from_buffer(values.data),
        count,
    )


def _report(result: Any, transmitted: int, cpu_s: float) -> Report:
    if not result.offered:
        raise GeneratorError(f"nothing was sent; {result.refused} frames could not be written")
    if transmitted < result.offered / 2:
        raise GeneratorError(
            f"the interface counted {transmitted} of {result.offered} packets: has its peer an XDP program or GRO on?"
        )
    seconds = (result.last_ns - result.first_ns) / 1e9
    return Report(
        offered=result.offered,
        transmitted=transmitted,
        started_s=result.first_ns / 1e9,
        seconds=round(seconds, 6),
        rate=round((result.offered - 1) / seconds, 1) if seconds else 0.0,
        cpu_s=round(cpu_s, 6),
        longest_lag_s=result.longest_lag_ns / 1e9,
    )


def _arguments() -> Flood:
    parser = argparse.ArgumentParser(
        prog="python -m bench.flood.generator", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--interface", required=True)
    parser.add_argument("--source", type=Address.parse, required=True, help="IPv4 ADDRESS:PORT")
    parser.add_argument("--destination", type=Address.parse, required=True, help="IPv4 ADDRESS:PORT")
    parser.add_argument("--source-mac", required=True)
    parser.add_argument("--destination-mac", required=True)
    parser.add_argument("--rate", type=int, required=True, help="packets/s; 100000000 is full speed")
    parser.add_argument("--seconds", type=float, required=True, help=f"at most {MAX_SECONDS}")
    parser.add_argument("--payload-hex", type=bytes.fromhex, default=JUNK, dest="payload")
    parser.add_argument("--payloads-file", type=Path, help="payloads of one length, in hex, one a line")
    parser.add_argument("--sources", type=int, default=1, help="addresses from SOURCE on")
    parser.add_argument("--ports", type=int, default=1, help="ports from SOURCE's on")
    parser.add_argument("--core", type=int)
    parser.add_argument("--niceness", type=int, default=19)
    return Flood(**vars(parser.parse_args()))


def main() -> None:
    """Send the flood of the command line and print the report as one line of JSON."""
    try:
        flood = _arguments()
        os.setpriority(os.PRIO_PROCESS, 0, flood.niceness)
        if flood.core is not None:
            os.sched_setaffinity(0, {flood.core})
        report = send(flood)
    except (GeneratorError, ValueError, OSError) as error:
        sys.exit(f"generator: {error}")
    sys.stdout.write(json.dumps(report._asdict()) + "\n")


if __name__ == "__main__":
    main()
