"""Programs on network interfaces: put there, replaced in place, and never in place of somebody else's."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from host.errors import ConfigError
from relay.dataplane.bpf import links, syscall
from relay.dataplane.bpf.errors import BpfUnavailableError, ForeignProgramError
from relay.dataplane.bpf.links import Attachment, XdpMode, attach, attachments, check_interface, detach
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.syscall import open_program, program_info
from tests.bpf.conftest import Network
from tests.bpf.kernel_objects import eventually, make_xdp_program, program_exists

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.usefixtures("network")]

AUTO = (XdpMode.NATIVE, XdpMode.GENERIC)
NATIVE, GENERIC = (XdpMode.NATIVE,), (XdpMode.GENERIC,)


class Program:
    """An XDP program that we hold."""

    def __init__(self, name: str) -> None:
        self.fd = make_xdp_program(name)
        self.id = program_info(self.fd).id


@pytest.fixture
def ours() -> Iterator[Program]:
    program = Program("ours")
    yield program
    os.close(program.fd)


@pytest.fixture
def successor() -> Iterator[Program]:
    program = Program("successor")
    yield program
    os.close(program.fd)


@pytest.fixture
def foreign() -> Iterator[Program]:
    """Of somebody else: it is on eth0."""
    program = Program("foreign_filter")
    attach("eth0", program.fd, NATIVE, set())
    yield program
    os.close(program.fd)


def attached() -> dict[str, tuple[str, int]]:
    """Mode and program of each interface that has one, as the kernel says."""
    return {each.interface: (each.mode, each.program_id) for each in attachments()}


@pytest.mark.parametrize(
    ("interface", "modes", "mode", "why"),
    [
        pytest.param("eth0", AUTO, "native", "", id="native where the driver can"),
        pytest.param("eth0", NATIVE, "native", "", id="native as told"),
        pytest.param("eth0", GENERIC, "generic", "", id="generic as told"),
        pytest.param("lo", AUTO, "generic", "native XDP is refused (", id="generic where the driver cannot"),
        pytest.param("lo", GENERIC, "generic", "", id="loopback, generic as told"),
    ],
)
def test_attach_takes_the_first_mode_that_works(
    ours: Program, interface: str, modes: tuple[XdpMode, ...], mode: str, why: str
) -> None:
    check_interface(interface, set())
    made = attach(interface, ours.fd, modes, set())
    assert made[:3] == Attachment(interface, mode, ours.id)[:3]
    assert made.why.startswith(why)
    assert bool(made.why) is bool(why)
    assert attached() == {interface: (mode, ours.id)}


def test_interface_whose_driver_cannot_is_named(ours: Program) -> None:
    with pytest.raises(BpfUnavailableError, match=r"^lo: native XDP is refused \(.+\)$"):
        attach("lo", ours.fd, NATIVE, set())
    assert attached() == {}


def test_refusal_has_the_words_of_the_driver(ours: Program) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname="long0", kind="veth", peer="long1")
        for name in ("long0", "long1"):
            ip.link("set", index=ip.link_lookup(ifname=name)[0], mtu=9000)
    with pytest.raises(BpfUnavailableError, match=r"^long0: native XDP is refused \(.+: .*MTU.*\)$"):
        attach("long0", ours.fd, NATIVE, set())


def test_attaching_again_changes_nothing(ours: Program) -> None:
    attach("eth0", ours.fd, AUTO, set())
    assert attach("eth0", ours.fd, GENERIC, {ours.id}) == Attachment("eth0", "native", ours.id)
    assert attached() == {"eth0": ("native", ours.id)}


@pytest.mark.parametrize("modes", [NATIVE, GENERIC], ids=["native", "generic"])
def test_successor_replaces_ours_in_the_mode_that_it_had(
    ours: Program, successor: Program, modes: tuple[XdpMode, ...]
) -> None:
    attach("eth0", ours.fd, modes, set())
    made = attach("eth0", successor.fd, AUTO, {ours.id, successor.id})
    assert (made.mode, made.program_id) == (modes[0], successor.id)
    assert attached() == {"eth0": (modes[0], successor.id)}


def test_there_is_no_moment_without_a_program(network: Network, ours: Program, successor: Program) -> None:
    """Replaced, not removed and set: nobody ever sees the interface bare."""
    attach("eth0", ours.fd, AUTO, set())
    index = network.here.ip.link_lookup(ifname="eth0")[0]
    seen, ended = set(), threading.Event()

    def watch() -> None:
        with network.here, IPRoute() as ip:
            while not ended.is_set():
                xdp = ip.get_links(index)[0].get_attr("IFLA_XDP")
                seen.add(xdp.get_attr("IFLA_XDP_PROG_ID"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        known = {ours.id, successor.id}
        for program in (successor, ours) * 10:
            attach("eth0", program.fd, AUTO, known)
    finally:
        ended.set()
        watching.join()
    assert seen == known


def test_program_that_came_between_is_not_replaced(
    ours: Program, successor: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts theirs on the interface just after we looked."""
    attach("eth0", ours.fd, NATIVE, set())
    other = Program("other")

    def open_late(program_id: int) -> int:
        expected = open_program(program_id)
        monkeypatch.undo()
        detach({ours.id})
        attach("eth0", other.fd, NATIVE, set())
        return expected

    monkeypatch.setattr(links, "open_program", open_late)
    with pytest.raises(BpfUnavailableError, match="eth0: native XDP is refused"):
        attach("eth0", successor.fd, AUTO, {ours.id})
    assert attached() == {"eth0": ("native", other.id)}
    os.close(other.fd)


def test_program_that_came_first_is_not_replaced(ours: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts theirs on the interface just after we found it bare."""
    other = Program("other")

    def look_early(*arguments: object) -> None:
        monkeypatch.undo()
        attach("eth0", other.fd, NATIVE, set())

    monkeypatch.setattr(links, "_check_foreign", look_early)
    with pytest.raises(BpfUnavailableError, match="eth0: "):
        attach("eth0", ours.fd, AUTO, set())
    assert attached() == {"eth0": ("native", other.id)}
    os.close(other.fd)


def test_interface_must_exist(ours: Program) -> None:
    for call in (
        lambda: check_interface("eth9", set()),
        lambda: attach("eth9", ours.fd, AUTO, set()),
    ):
        with pytest.raises(ConfigError, match="no interface 'eth9' here; `ip link`") as refusal:
            call()
        assert refusal.value.field == "relay.interfaces"
    assert detach({ours.id}, "eth9") == []


def refusal_of(interface: str, program: Program, ours: set[int]) -> str:
    """Checking and attaching refuse with the same words."""
    with pytest.raises(ForeignProgramError) as refusal:
        check_interface(interface, ours)
    with pytest.raises(ForeignProgramError) as again:
        attach(interface, program.fd, AUTO, ours)
    assert str(again.value) == str(refusal.value)
    return str(refusal.value)


def test_foreign_program_is_refused_and_named(ours: Program, foreign: Program) -> None:
    holder = subprocess.Popen(["sleep", "100"], pass_fds=[foreign.fd])
    try:
        assert eventually(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
        told = refusal_of("eth0", ours, {ours.id})
    finally:
        holder.kill()
        holder.wait()
    info = program_info(foreign.fd)
    for words in (
        "relay.interfaces: eth0 has an XDP program already",
        "'foreign_filter'",
        f"id {foreign.id},",
        f"tag {info.tag}",
        f"user id {os.geteuid()}",
        f"held by pid {holder.pid} (sleep)",
        "`ip link set dev eth0 xdpdrv off`",
    ):
        assert words in told
    assert attached() == {"eth0": ("native", foreign.id)}
    # the other interface is free
    check_interface("eth1", {ours.id})


def test_way_out_that_is_told_works(ours: Program) -> None:
    for interface, modes in (("eth0", NATIVE), ("eth1", GENERIC)):
        attach(interface, ours.fd, modes, set())
        told = refusal_of(interface, ours, set())
        command = told.split("`")[1]
        assert command.startswith("ip link set dev ")
        subprocess.run(command.split(), check=True)
        check_interface(interface, set())
    assert attached() == {}


def test_program_that_nobody_holds_was_left_attached(ours: Program) -> None:
    left = Program("left")
    attach("eth0", left.fd, NATIVE, set())
    os.close(left.fd)
    assert program_exists(left.id), "the interface holds it"
    assert "held by no process; it was left attached" in refusal_of("eth0", ours, {ours.id})
    detach({left.id})
    assert eventually(lambda: not program_exists(left.id))


def test_program_of_another_relayctl_is_named_by_its_pins(
    pins: PinDir, ours: Program, foreign: Program
) -> None:
    pins.path.mkdir(parents=True)
    syscall.pin(foreign.fd, str(pins.path / "xdp_ingress"))
    told = refusal_of("eth0", ours, {ours.id})
    assert f"that of another relayctl, pinned in {pins.path};" in told
    # its own relayctl knows it
    check_interface("eth0", pins.program_ids())


_WITHOUT_SYS_ADMIN = """
import os, sys
import pyprctl
from relay.dataplane.bpf.links import XdpMode, attach, attachments, detach
from relay.dataplane.bpf.syscall import pin, program_info
from tests.bpf.kernel_objects import make_xdp_program

rights = {pyprctl.Cap.BPF, pyprctl.Cap.NET_ADMIN, pyprctl.Cap.PERFMON}
pyprctl.CapState(effective=rights, permitted=rights, inheritable=set()).set_current()
fds = [make_xdp_program(name) for name in ("first", "second")]
first, second = (program_info(fd).id for fd in fds)
attach("eth0", fds[0], (XdpMode.NATIVE,), set())
if len(sys.argv) > 1:
    os.makedirs(sys.argv[1], mode=0o700)
    pin(fds[0], sys.argv[1] + "/xdp_ingress")
attach("eth0", fds[1], (XdpMode.NATIVE,), {first})
assert [each.program_id for each in attachments()] == [second]
assert detach({second}) == ["eth0"]
assert attachments() == []
"""


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "not pinned"])
def test_three_capabilities_are_enough(pins: PinDir, is_pinned: bool) -> None:
    """BPF, NET_ADMIN and PERFMON: to open a program by its id takes SYS_ADMIN."""
    command = [sys.executable, "-c", _WITHOUT_SYS_ADMIN, *([str(pins.path)] if is_pinned else [])]
    repository = Path(__file__).parents[2]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_detach_removes_ours_alone(ours: Program, foreign: Program) -> None:
    attach("eth1", ours.fd, NATIVE, set())
    attach("lo", ours.fd, GENERIC, set())
    assert attached() == {
        "eth0": ("native", foreign.id),
        "eth1": ("native", ours.id),
        "lo": ("generic", ours.id),
    }
    assert detach({ours.id}, "eth0") == []
    assert detach({ours.id}, "eth1") == ["eth1"]
    assert detach({ours.id}) == ["lo"]
    assert attached() == {"eth0": ("native", foreign.id)}
    assert detach({ours.id}) == []


def test_each_network_namespace_has_its_own(network: Network, ours: Program) -> None:
    attach("eth0", ours.fd, NATIVE, set())
    with network.there:
        assert attachments() == []
        assert detach({ours.id}) == []
    assert attached() == {"eth0": ("native", ours.id)}


async def test_works_where_an_event_loop_runs(ours: Program, successor: Program) -> None:
    check_interface("eth0", set())
    assert attach("eth0", ours.fd, AUTO, set()).mode == "native"
    assert attach("eth0", successor.fd, AUTO, {ours.id}).program_id == successor.id
    assert [each.program_id for each in attachments()] == [successor.id]
    with pytest.raises(ForeignProgramError):
        check_interface("eth0", {ours.id})
    assert detach({successor.id}) == ["eth0"]
    assert attachments() == []
