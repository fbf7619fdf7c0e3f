"""The generator against what its interface's peer counts. The peer is a veth with GRO on, and no XDP program."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import Ethtool

from bench.flood.generator import JUNK, Flood
from relay.dataplane.bpf.syscall import open_program
from tests.bench.commands import need_bcc
from tests.e2e.namespaces import Host, connect, hosts
from wire.address import Address

pytestmark = [pytest.mark.alone, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

SOURCE = Address.parse("203.0.113.66:4444")
DESTINATION = Address.parse("203.0.113.10:3478")
REPOSITORY = Path(__file__).parents[2]
ETH_P_IP = 0x0800
SO_MEMINFO = 55  # asm-generic/socket.h
SK_MEMINFO_DROPS = 8  # linux/sock_diag.h


@dataclass(frozen=True)
class Target:
    """Two hosts: the flood leaves ``attacker`` and comes to ``victim``."""

    attacker: Host
    victim: Host
    flood: Flood

    def start(self, flood: Flood) -> subprocess.Popen[str]:
        """The generator as a process of its own."""
        with self.attacker:
            return subprocess.Popen(
                flood.command(), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )

    def run(self, flood: Flood) -> dict[str, Any]:
        """Send it to its end: the report."""
        return finish(self.start(flood))

    def received(self) -> int:
        """Packets that the victim's interface has counted."""
        return int(link(self.victim).get_attr("IFLA_STATS64")["rx_packets"])


def link(host: Host) -> Any:
    """What the kernel says of a host's interface."""
    (found,) = host.ip.get_links(host.ip.link_lookup(ifname="eth0")[0])
    return found


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The report of a run that must end by itself."""
    with process:
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


def set_gro(host: Host, *, on: bool) -> None:
    """Without it, or an XDP program, a veth drops what is redirected to its peer."""
    with host, Ethtool() as ethtool:
        features = ethtool.get_features("eth0")
        features.features["rx-gro"].enable = on
        ethtool.set_features("eth0", features)


@pytest.fixture
def target() -> Iterator[Target]:
    """A victim that takes redirected frames."""
    if os.geteuid() != 0:
        assert os.environ.get("REQUIRE_NETNS") != "1", "network namespaces are expected here, and need root"
        pytest.skip("network namespaces need root")
    need_bcc()
    with hosts(2) as (attacker, victim):
        connect(attacker, "eth0", victim, "eth0", [("203.0.113.66", "203.0.113.10", 24)])
        set_gro(victim, on=True)
        flood = Flood(
            interface="eth0",
            source=SOURCE,
            destination=DESTINATION,
            source_mac=link(attacker).get_attr("IFLA_ADDRESS"),
            destination_mac=link(victim).get_attr("IFLA_ADDRESS"),
            rate=10_000,
            seconds=0.5,
        )
        yield Target(attacker, victim, flood)


@pytest.fixture
def sink(target: Target) -> Iterator[socket.socket]:
    """The socket that the flood is sent to: without one the victim would answer with ICMP."""
    with target.victim, socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind((str(DESTINATION.ip), DESTINATION.port))
        yield sock


def waiting(sock: socket.socket) -> list[tuple[bytes, Any]]:
    """Everything that a socket holds."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recvfrom(4096))
    return found


def dropped(sock: socket.socket) -> int:
    """Datagrams that came to the socket and found no room."""
    memory = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
    return int(struct.unpack("=9I", memory)[SK_MEMINFO_DROPS])


@pytest.mark.parametrize("rate", [10_000, 50_000, 200_000])
def test_what_is_offered_arrives(target: Target, sink: socket.socket, rate: int) -> None:
    before = target.received()
    # niceness: at the lowest priority, whatever else this machine does would take from the rate
    report = target.run(replace(target.flood, rate=rate, seconds=1, niceness=0))
    assert 0.5 * rate <= report["offered"] <= rate
    assert 0.5 * rate <= report["rate"] <= 1.02 * rate
    assert 0.9 <= report["seconds"] <= 1.0
    assert report["cpu_s"] < 1.3
    # the interfaces also see a few packets of the hosts' own (IPv6 neighbour discovery)
    assert report["offered"] <= report["transmitted"] <= report["offered"] + 20
    assert report["offered"] <= target.received() - before <= report["offered"] + 20
    assert len(waiting(sink)) + dropped(sink) == report["offered"]


def test_full_speed_is_more_than_the_flood_that_a_relay_is_to_stand(
    target: Target, sink: socket.socket
) -> None:
    report = target.run(replace(target.flood, rate=100_000_000, niceness=0))
    assert report["rate"] >= 300_000
    assert len(waiting(sink)) + dropped(sink) == report["offered"]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(JUNK, id="junk"),
        pytest.param(b"", id="empty"),
        pytest.param(bytes.fromhex("80 6f 00 01 00 00 00 a0 de ad be ef") + bytes(81), id="RTP, odd length"),
        pytest.param(bytes(1472), id="full frame"),
    ],
)
def test_frames_are_well_formed(target: Target, sink: socket.socket, payload: bytes) -> None:
    # 40: what a socket's buffer holds of pages
    flood = replace(target.flood, payload=payload, rate=400, seconds=0.1, niceness=0)
    with target.victim, socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK) as wire:
        # made without a protocol, it hears nothing of other interfaces before it is bound
        wire.bind(("eth0", ETH_P_IP))
        offered = target.run(flood)["offered"]
        frames = [frame for frame, _ in waiting(wire)]
    assert 20 <= offered <= 40
    # The kernel checked the checksums on the way to the socket.
    assert waiting(sink) == [(payload, (str(SOURCE.ip), SOURCE.port))] * offered
    assert frames == [flood.frame()] * offered
    (frame,) = set(frames)
    assert len(frame) == 42 + len(payload)
    assert sum_of_words(frame[14:34]) == 0xFFFF
    pseudo_header = frame[26:34] + struct.pack("!HH", 17, 8 + len(payload))
    assert sum_of_words(pseudo_header + frame[34:]) == 0xFFFF


def sum_of_words(data: bytes) -> int:
    """The ones' complement sum, which over a right checksum is 0xffff (RFC 1071 section 1)."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF or 0xFFFF


def test_many_sources_send_payloads_in_turn(target: Target, sink: socket.socket, tmp_path: Path) -> None:
    payloads = [bytes((0x7F, number)) * 50 for number in range(3)]
    (tmp_path / "payloads").write_text("\n".join(payload.hex() for payload in payloads))
    flood = replace(
        target.flood, payloads_file=tmp_path / "payloads", sources=50, ports=10, rate=400, seconds=0.1
    )
    offered = target.run(replace(flood, niceness=0))["offered"]
    # The kernel checked the checksums on the way to the socket.
    found = waiting(sink)
    assert [payload for payload, _ in found] == [payloads[i % 3] for i in range(offered)]
    assert len({source for _, source in found}) > offered / 2
    for _, (host, port) in found:
        assert 0 <= int(host.removeprefix("203.0.113.")) - 66 < 50
        assert 0 <= port - SOURCE.port < 10


@pytest.mark.parametrize(
    ("text", "sources", "said"),
    [("7f\n7f00", 1, "of one length"), ("", 1, "of one length"), ("7f", 2**31, "sources")],
)
def test_payloads_and_sources_that_cannot_be_sent_are_refused(
    target: Target, tmp_path: Path, text: str, sources: int, said: str
) -> None:
    (tmp_path / "payloads").write_text(text)
    with pytest.raises(ValueError, match=said):
        replace(target.flood, payloads_file=tmp_path / "payloads", sources=sources).payloads()


def loaded_program(process: subprocess.Popen[str]) -> int:
    """The kernel's number of the program that a generator holds, once it has loaded it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for info in Path(f"/proc/{process.pid}/fdinfo").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                for line in info.read_text().splitlines():
                    if line.startswith("prog_id:"):
                        return int(line.split()[1])
        time.sleep(0.01)
    raise AssertionError("the generator has loaded no program")


def is_loaded(program: int) -> bool:
    """Whether the kernel still has it."""
    try:
        os.close(open_program(program))
    except FileNotFoundError:
        return False
    return True


def is_gone(program: int) -> bool:
    """Whether the kernel has let it go, which it does a moment after the last reference."""
    deadline = time.monotonic() + 5
    while is_loaded(program):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("is_cut_short", [False, True], ids=["to its end", "terminated"])
def test_nothing_is_left(target: Target, sink: socket.socket, *, is_cut_short: bool) -> None:
    core = max(os.sched_getaffinity(0))
    process = target.start(replace(target.flood, seconds=20 if is_cut_short else 1, core=core))
    program = loaded_program(process)
    assert is_loaded(program)
    assert os.sched_getaffinity(process.pid) == {core}
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    if is_cut_short:
        with process:
            process.terminate()
            process.wait(2)
        assert process.returncode != 0
    else:
        finish(process)
    assert is_gone(program)
    sent = target.received()
    time.sleep(0.1)
    assert target.received() - sent < 20


def test_flood_that_does_not_arrive_is_an_error(target: Target) -> None:
    set_gro(target.victim, on=False)
    with target.start(target.flood) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "GRO" in err
