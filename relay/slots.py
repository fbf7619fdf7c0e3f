"""What outlives a worker process: its sockets, counters and place, made and kept by the supervisor."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from host.errors import ConfigError
from host.sockets import bind_udp, bound_address, check_free_udp
from relay.config import RelayConfig
from relay.core.policy import RelayPolicy
from relay.dataplane.counters import WorkerCounters, create_counters_fd
from relay.dataplane.kernel import KernelDataPath
from relay.flow_memory import FlowMemory
from wire.address import Address

_MAX_PORT = 65_535


@dataclass(eq=False)
class WorkerSlot:
    """One worker's.

    public: one a VIP. checks: beside each of them one for what is no media (relay/dataplane/split.py); none where the kernel
    steers. flows: what its successor goes on with, where the kernel does not keep them. line_fd: to the agent of the fleet's cache,
    which keeps it; -1 without one.
    """

    index: int
    core: int
    public: list[socket.socket]
    checks: list[socket.socket]
    fleet: list[socket.socket]
    flows: FlowMemory
    counters_fd: int
    counters_page: int
    kernel_maps: dict[str, int] = field(default_factory=dict)
    line_fd: int = -1

    def __post_init__(self) -> None:
        self.counters = WorkerCounters(self.counters_fd, self.counters_page)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The public ones in the order of the VIPs, those for checks likewise, the fleet's; with XDP so one a group."""
        return (*self.public, *self.checks, *self.fleet)

    @property
    def fds(self) -> tuple[int, ...]:
        """What the worker inherits."""
        line = (self.line_fd,) if self.line_fd >= 0 else ()
        return (
            *(sock.fileno() for sock in self.sockets),
            self.counters_fd,
            *self.kernel_maps.values(),
            *line,
        )

    def close_sockets(self) -> None:
        """Leave the sockets to the worker alone: they are gone with it."""
        for sock in self.sockets:
            sock.close()

    def close(self) -> None:
        """Close sockets and counters; the map of counters is the data path's."""
        self.close_sockets()
        self.counters.close()
        if not self.kernel_maps:
            os.close(self.counters_fd)


class SlotMaker:
    """Makes slots of one relay: with a fleet port each, or, where the kernel steers, one that all share.

    line_fd: of the line that belongs to a slot.
    """

    def __init__(
        self,
        config: RelayConfig,
        kernel: KernelDataPath | None,
        line_fd: Callable[[int], int] = lambda index: -1,
    ) -> None:
        self._config = config
        self._kernel = kernel
        self._line_fd = line_fd
        self._cores = sorted(os.sched_getaffinity(0))
        # The port that the first slot was given, for the others.
        self._shared_fleet: list[Address] = (
            [kernel.fleet_address(base) for base in config.fleet_listen] if kernel else []
        )

    def check_free(self, our_pids: set[int]) -> None:
        """Raises AddressInUseError if others than these processes hold an address that is to be shared."""
        for vip in self._config.vips:
            check_free_udp("relay.listen", vip.listen, our_pids)
        for address in self._shared_fleet:
            check_free_udp("relay.fleet_listen", address, our_pids)

    def make(self, index: int) -> WorkerSlot:
        """Raises AddressInUseError or ConfigError."""
        public: list[socket.socket] = []
        checks: list[socket.socket] = []
        fleet: list[socket.socket] = []
        try:
            for vip in self._config.vips:
                # In this order: it is the sockets' in their group (relay/dataplane/split.py).
                public.append(bind_udp("relay.listen", vip.listen, reuseport=True))
                if self._kernel is None:
                    checks.append(bind_udp("relay.listen", vip.listen, reuseport=True))
            for address in self._fleet_addresses(index):
                fleet.append(bind_udp("relay.fleet_listen", address, reuseport=self._kernel is not None))
            if self._kernel is not None:
                self._shared_fleet = [bound_address(sock) for sock in fleet]
            return WorkerSlot(
                index=index,
                core=self._cores[index % len(self._cores)],
                public=public,
                checks=checks,
                fleet=fleet,
                flows=FlowMemory(self._config.max_assured_flows),
                counters_fd=self._kernel.counters_fd if self._kernel else create_counters_fd(),
                counters_page=index if self._kernel else 0,
                kernel_maps=self._kernel.worker_map_fds if self._kernel else {},
                line_fd=self._line_fd(index),
            )
        except BaseException:
            for sock in (*public, *checks, *fleet):
                sock.close()
            raise

    def policy(self, cluster_id: int, slots: list[WorkerSlot]) -> RelayPolicy:
        """The settings of every worker's decisions, with the sockets of these slots as our own."""
        config = self._config
        fleet_sockets = {bound_address(sock) for slot in slots for sock in slot.fleet}
        return RelayPolicy(
            cluster_id=cluster_id,
            vips=config.vips,
            transceiver_networks=config.transceiver_networks,
            own_sockets=frozenset(fleet_sockets.union(*((v.listen, v.address) for v in config.vips))),
            max_session_s=config.max_session_s,
            max_assured_flows=config.max_assured_flows,
            max_provisional_flows=config.max_provisional_flows,
            unknown_per_s=config.unknown_per_s,
            unknown_burst=config.unknown_burst,
            ipv4_source_bits=config.ipv4_source_bits,
            ipv6_source_bits=config.ipv6_source_bits,
        )

    def _fleet_addresses(self, index: int) -> Iterator[Address]:
        if self._kernel is not None:
            yield from self._shared_fleet
            return
        for base in self._config.fleet_listen:
            if base.port + index > _MAX_PORT:
                raise ConfigError("relay.fleet_listen", f"{base} leaves no port for worker {index}")
            yield Address(base.host, base.port + index) if base.port else base
