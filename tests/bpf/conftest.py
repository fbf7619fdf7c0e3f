"""Machines for tests of the kernel's data path; each leaves the kernel as it was."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from host.sockets import bound_address, sockaddr
from relay.dataplane.bpf.pins import BPFFS, PinDir
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.assured import OPEN
from tests.bpf.assured import Relay as AssuredRelay
from tests.bpf.kernel_objects import make_map
from tests.bpf.loading import PATIENT, load
from tests.bpf.relay_host import BOTH, VIPS, Relay, Send, Start
from tests.e2e.namespaces import Host, connect, hosts
from wire.address import Address


@dataclass(frozen=True)
class Network:
    """Where a test lives, and its neighbour; both have eth0 and eth1, which join them."""

    here: Host
    there: Host


@pytest.fixture(scope="session")
def bpf() -> None:
    """A machine where maps can be made; where BPF is expected, no other is good."""
    try:
        os.close(make_map("probe", 1, 4, 4, 1))
    except OSError as error:
        if os.environ.get("REQUIRE_BPF") == "1":
            raise
        pytest.skip(f"BPF maps cannot be made: {error}")


@pytest.fixture(scope="module")
def xdp() -> Iterator[RelayPrograms]:
    """Without a rate limit that the table of packets could reach, and a heart that beats for the whole module."""
    program = load(replace(PATIENT, unknown_burst=1_000_000))
    yield program
    program.close()


@pytest.fixture
def programs() -> Iterator[RelayPrograms]:
    """Programs over small maps of their own."""
    programs = load()
    yield programs
    programs.close()


@pytest.fixture(scope="module")
def assured_programs() -> Iterator[RelayPrograms]:
    """For ``assured``, which has them for a whole module."""
    programs = load(OPEN)
    yield programs
    programs.close()


@pytest.fixture
def assured(assured_programs: RelayPrograms) -> AssuredRelay:
    """A relay that can be told of assured flows."""
    relay = AssuredRelay(assured_programs)
    relay.begin()
    return relay


@pytest.fixture
def pins(bpf: None, tmp_path: Path) -> Iterator[PinDir]:
    """The place of a state directory's pins, empty before and after."""
    pin_dir = PinDir(tmp_path)
    yield pin_dir
    pin_dir.remove()
    left = list(BPFFS.glob(f"relayctl/{pin_dir.path.name}*"))
    for path in left:
        shutil.rmtree(path)
    assert not left


@pytest.fixture
def network(bpf: None) -> Iterator[Network]:
    """This thread lives on a host with a neighbour: 198.51.100.1 here, 198.51.100.2 there, on eth0."""
    if os.geteuid() != 0:
        assert os.environ.get("REQUIRE_NETNS") != "1", "network namespaces are expected here, and need root"
        pytest.skip("network namespaces need root")
    with hosts(2) as (here, there):
        connect(here, "eth0", there, "eth0", [("198.51.100.1", "198.51.100.2", 24)])
        connect(here, "eth1", there, "eth1", [("203.0.113.1", "203.0.113.2", 24)])
        with here:
            yield Network(here, there)


@pytest.fixture
def start(network: Network, pins: PinDir) -> Iterator[Start]:
    """Starts relays over the same pins."""
    with ExitStack() as stack:

        def start(slots: int = 2, interfaces: tuple[str, ...] = BOTH) -> Relay:
            relay = Relay(pins, slots, interfaces)
            stack.callback(relay.close_sockets)
            stack.callback(relay.close)
            return relay

        yield start


@pytest.fixture
def client(network: Network) -> Iterator[Send]:
    """Sends from the neighbour; returns the client's address."""
    with ExitStack() as stack:
        sockets = {}
        with network.there:
            for vip, host in zip(VIPS, ("198.51.100.2", "203.0.113.2"), strict=True):
                sockets[vip] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sockets[vip].bind((host, 0))

        def send(vip: Address, datagram: bytes) -> Address:
            sockets[vip].sendto(datagram, sockaddr(vip))
            return bound_address(sockets[vip])

        yield send
