"""What stands in the way of XDP is named: the program and whose it is, the port and who holds it, both ABI versions."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from relay.dataplane.bpf import links
from relay.dataplane.bpf.abi import ABI_VERSION
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.links import XdpMode
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import RelayPrograms
from tests.e2e.conftest import Network
from tests.e2e.instance import RELAYCTL, running, wait_until
from tests.e2e.xdp import SIGNALING, VIP, attached, need_network, xdp_relay

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]


def port_of(pid: int) -> int | None:
    """The UDP port that a process has bound."""
    return next((c.laddr.port for c in psutil.Process(pid).net_connections("udp") if len(c.laddr)), None)


def start(network: Network, state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    command = [str(RELAYCTL), "start", "--state-dir", str(state_dir), "--listen", VIP]
    command += ["--http", SIGNALING, "--insecure", "--workers", "1", "--transceivers", "1", *arguments]
    with network.there:
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@contextlib.contextmanager
def foreign_program(network: Network) -> Iterator[RelayPrograms]:
    """An XDP program that no relayctl has pinned, on the relay's interface and held by this process."""
    programs = RelayPrograms.load(MapSizes())
    try:
        with network.there:
            links.attach("eth0", programs.xdp_fd, (XdpMode.NATIVE,), set())
        yield programs
    finally:
        with network.there:
            links.detach({programs.info()["xdp_ingress"].id})
        programs.close()


def test_foreign_program_is_named_and_left_alone(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with foreign_program(network) as programs:
        info = programs.info()["xdp_ingress"]
        for dataplane in ("auto", "xdp"):
            refused = start(network, tmp_path / "s", "--interface", "eth0", "--dataplane", dataplane)
            assert refused.returncode == 1
            for named in (
                "eth0",
                f"'{info.name}'",
                f"id {info.id}",
                "user id 0",
                f"pid {psutil.Process().pid}",
            ):
                assert named in refused.stderr
            assert "ip link set dev eth0 xdpdrv off" in refused.stderr
        assert [a.program_id for a in attached(network)] == [info.id]
    assert not PinDir(tmp_path / "s").exists


def test_program_of_another_relayctl_is_named_by_its_pins(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "1") as instance:
        refused = start(network, tmp_path / "other", "--interface", "eth0")
        assert refused.returncode == 1
        assert str(PinDir(instance.state_dir.path).path) in refused.stderr
        taken = start(network, tmp_path / "other")
        assert taken.returncode == 4
        assert f"{VIP} is taken by relayctl, pid {instance.process.pid}" in taken.stderr


def test_taken_port_is_named_with_its_holder(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    host, port = VIP.split(":")
    script = f"import socket,time; s=socket.socket(2,2); s.setsockopt(1,15,1); s.bind(({host!r},{port})); time.sleep(60)"
    with network.there:
        holder = subprocess.Popen([sys.executable, "-c", script])
    try:
        with network.there:
            wait_until(lambda: port_of(holder.pid) == int(port), 20, "the holder's bind")
        # It has SO_REUSEPORT, so a bind of ours would succeed and share its packets.
        refused = start(network, tmp_path / "s", "--interface", "eth0")
    finally:
        holder.kill()
        holder.wait()
    assert refused.returncode == 4
    assert f"{VIP} is taken by pid {holder.pid}" in refused.stderr
    assert attached(network) == []
    assert not PinDir(tmp_path / "s").exists


def test_mismatched_abi_is_refused_with_both_versions_and_calls_go_on(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "1") as instance:
        worker = psutil.Process(instance.status()["relay"]["workers"][0]["pid"])
        instance.kill_supervisor()
        programs = PinDir(instance.state_dir.path).open()
        settings = programs.settings()
        settings.abi_version = ABI_VERSION + 1
        programs.maps["settings"].put(0, settings)
        programs.close()
        refused = start(network, tmp_path / "s", "--interface", "eth0")
        assert refused.returncode == 1
        assert f"ABI version {ABI_VERSION + 1}, this relayctl has {ABI_VERSION}" in refused.stderr
        assert "relayctl bpf unload --force" in refused.stderr
        # nothing was touched
        assert worker.is_running()
        assert len(attached(network)) == 1
        shown = instance.run("maps", "show", "flows")
        assert shown.returncode == 1
        assert f"ABI version {ABI_VERSION + 1}" in shown.stderr
        with network.there:
            unloaded = instance.run("bpf", "unload", "--force")
        assert unloaded.returncode == 0, unloaded.stderr
        assert attached(network) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("--interface", "nope0"), 2, "relay.interfaces: no interface 'nope0' here"),
        (("--dataplane", "xdp"), 2, "relay.interfaces: is empty; XDP needs --interface"),
        (("--dataplane", "userspace", "--interface", "eth0"), 2, "relay.interfaces: are for XDP"),
        (("--interface", "eth0", "--interface", "eth0"), 2, "relay.interfaces: names an interface twice"),
        (
            ("--interface", "lo", "--xdp-mode", "native", "--dataplane", "xdp"),
            1,
            "lo: native XDP is refused",
        ),
    ],
)
def test_wrong_interfaces_are_refused(
    own_network: Network | None, tmp_path: Path, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    network = need_network(own_network)
    refused = start(network, tmp_path / "s", *arguments)
    assert refused.returncode == exit_code, refused.stderr
    assert said in refused.stderr
    assert not PinDir(tmp_path / "s").exists
    assert attached(network) == []


def test_generic_mode_is_taken_where_the_driver_has_none_and_said(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--interface", "lo", "--workers", "1") as instance:
        assert {a.interface: a.mode for a in attached(network)} == {"eth0": "native", "lo": "generic"}
        log = (tmp_path / "s" / "test.log").read_text()
        assert "generic XDP on lo; native XDP is refused (Operation not supported" in log
        with network.there:
            shown = instance.run("bpf", "status").stdout
        assert "generic" in shown


def test_auto_takes_userspace_where_programs_cannot_be_loaded_and_says_why(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    # root without the capabilities that BPF needs, as in a container
    drop = "import os,sys,pyprctl as p; s=p.CapState.get_current(); keep={p.Cap.DAC_OVERRIDE, p.Cap.KILL};"
    drop += "[p.capbset_drop(c) for c in p.capbset_probe()-keep]; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", drop, str(RELAYCTL), "start", "--state-dir", str(tmp_path / "s")]
    command += ["--listen", VIP, "--http", SIGNALING, "--insecure", "--interface", "eth0"]
    command += ["--workers", "1", "--transceivers", "1"]
    for dataplane in ("xdp", "auto"):
        with network.there:
            process = subprocess.Popen(
                [*command, "--dataplane", dataplane],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert process.stdout is not None
        try:
            if dataplane == "xdp":
                assert process.wait(30) == 1
                assert "Operation not permitted" in process.stdout.read()
                continue
            said = ""
            while "Ctrl-C stops" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            assert "data path    userspace:" in said
            assert "Operation not permitted" in said
        finally:
            process.terminate()
            process.wait(15)
            process.stdout.close()
    assert attached(network) == []


def test_other_addresses_than_those_that_are_served_are_refused(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "1") as instance:
        instance.kill_supervisor()
        elsewhere = start(network, tmp_path / "s", "--interface", "eth0", "--listen", "203.0.113.10:3479")
        assert elsewhere.returncode == 1
        assert "203.0.113.10:3479" in elsewhere.stderr
        assert "relayctl stop" in elsewhere.stderr
        userspace = start(network, tmp_path / "s", "--dataplane", "userspace")
        assert userspace.returncode == 1
        assert "--interface" in userspace.stderr
        assert len(attached(network)) == 1


def test_program_that_nobody_serves_is_removed_by_a_start_in_userspace(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "1", "--transceivers", "1") as instance:
        for pid in instance.pids():
            psutil.Process(pid).kill()
        instance.process.wait()
        assert len(attached(network)) == 1
        listen = ("--listen", VIP, "--insecure", "--dataplane", "userspace")
        with network.there, running(tmp_path / "s", *listen, http=SIGNALING) as second:
            assert attached(network) == []
            assert not PinDir(second.state_dir.path).exists
            assert "nobody served any more" in (tmp_path / "s" / "test.log").read_text()
