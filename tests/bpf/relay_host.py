"""A supervisor's part of a relay on the host of the fixture ``network``, and what it leaves in the kernel."""

import select
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from host.sockets import bind_udp, bound_address
from relay.core.policy import RelayPolicy, Vip
from relay.dataplane.bpf import links
from relay.dataplane.bpf.flow_store import KernelFlowStore
from relay.dataplane.bpf.links import XdpMode
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.syscall import map_info, open_program
from relay.dataplane.kernel import KernelDataPath
from tests.bpf.kernel_objects import eventually, map_exists, program_exists
from tests.bpf.loading import SMALL, beat, bpf_expected
from wire.address import Address

AUTO = (XdpMode.NATIVE, XdpMode.GENERIC)
BOTH = ("eth0", "eth1")
VIPS = [Address.parse("198.51.100.1:3478"), Address.parse("203.0.113.1:3478")]
POLICY = RelayPolicy(
    cluster_id=7,
    vips=tuple(Vip(vip, vip) for vip in VIPS),
    transceiver_networks=(ip_network("10.1.0.0/16"),),
    heartbeat_timeout_s=3600.0,
)


class Relay:
    """What a supervisor has around its data path: a socket of each group for each slot."""

    def __init__(self, pins: PinDir, slots: int = 2, interfaces: tuple[str, ...] = BOTH) -> None:
        with bpf_expected():
            self.path = KernelDataPath(pins, interfaces, AUTO, SMALL)
        self._is_open = True
        base = Address.parse("198.51.100.1:0")
        fleet = self.path.fleet_address(base)
        first = [bind_udp("test", address, reuseport=True) for address in (*VIPS, fleet)]
        self.fleet = [bound_address(first[-1])]
        addresses = [*VIPS, *self.fleet]
        others = [
            [bind_udp("test", address, reuseport=True) for address in addresses] for _ in range(slots - 1)
        ]
        self.sockets = [first, *others]

    def begin(self, *, is_alive: bool = True) -> None:
        self.path.begin(POLICY, self.fleet, list(enumerate(self.sockets)))
        if is_alive:
            beat(self.path.programs, *range(len(self.sockets)))

    def slot_met(self, group: int) -> int:
        """The slot whose socket of a group got the one datagram that was sent."""
        sockets = [slot[group] for slot in self.sockets]
        ready, _, _ = select.select(sockets, (), (), 5)
        assert len(ready) == 1, "it met no slot, or there were several"
        ready[0].recv(4096)
        assert select.select(sockets, (), (), 0) == ([], [], [])
        return sockets.index(ready[0])

    def counted(self, label: str, count: int) -> bool:
        """Wait until XDP has judged that many packets so."""
        return eventually(lambda: self.path.counts()[label] == count)

    def close_sockets(self) -> None:
        for sock in (sock for sockets in self.sockets for sock in sockets):
            sock.close()

    def die(self, *, with_workers: bool = True) -> None:
        """As if killed: the kernel closes what it held. Workers that live on keep their sockets."""
        if with_workers:
            self.close_sockets()
        self.path.programs.close()
        self._is_open = False

    def close(self) -> None:
        """End the data path; again is no error."""
        if self._is_open:
            self.path.close()
            self._is_open = False


Send = Callable[[Address, bytes], Address]
Start = Callable[..., Relay]


def program_on(interfaces: tuple[str, ...]) -> set[int]:
    attached = {each.interface: each.program_id for each in links.attachments()}
    assert attached.keys() == set(interfaces)
    return set(attached.values())


def ids_of(relay: Relay) -> tuple[set[int], set[int]]:
    """Programs and maps."""
    programs = {info.id for info in relay.path.programs.info().values()}
    return programs, {map_info(bpf_map.fd).id for bpf_map in relay.path.programs.maps.values()}


def assert_gone(programs: set[int], maps: set[int]) -> None:
    assert eventually(lambda: not any(map(program_exists, programs)))
    assert eventually(lambda: not any(map(map_exists, maps)))
    for program_id in programs:
        with pytest.raises(FileNotFoundError):
            open_program(program_id)


def store_of(relay: Relay) -> KernelFlowStore:
    fds = relay.path.worker_map_fds
    assert set(fds) == {"flows", "provisional", "workers", "heartbeat"}
    return KernelFlowStore(fds["flows"], fds["provisional"], POLICY.vips)
