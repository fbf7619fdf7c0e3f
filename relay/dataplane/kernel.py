"""The kernel's data path as the supervisor runs it: loaded or adopted, configured, fed with sockets, attached, removed."""

import logging
import secrets
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from host.errors import OperatorError
from relay.core.policy import RelayPolicy
from relay.core.steering import HashKey
from relay.dataplane.bpf import links
from relay.dataplane.bpf.abi import MAX_SLOTS, SIDE_FLEET, Direction
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.describe import MapReader
from relay.dataplane.bpf.links import Attachment, XdpMode
from relay.dataplane.bpf.next_hops import NextHops
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import listeners_of
from relay.dataplane.counters import label_cells
from relay.dataplane.sweep import Sweep
from wire.address import Address

logger = logging.getLogger(__name__)

_WORKERS_MAPS = ("flows", "provisional", "workers", "heartbeat")
_LISTED = (
    "client",
    "transceiver",
    "state",
    "age_s",
    "idle_s",
    "packets_up",
    "bytes_up",
    "packets_down",
    "bytes_down",
)


class KernelDataPath:
    """Of one relay. Until ``begin`` nothing of a data path that was left behind is touched."""

    def __init__(
        self,
        pins: PinDir,
        interfaces: Sequence[str],
        modes: tuple[XdpMode, ...],
        sizes: MapSizes,
        *,
        fastpath: bool = True,
        cpumap: bool = False,
    ) -> None:
        """fastpath: XDP forwards assured flows. cpumap: packets go on at their worker's core, where that is safe.

        Raises BpfUnavailableError, AbiMismatchError, ForeignProgramError, ConfigError or OperatorError.
        """
        self._pins = pins
        self._interfaces = interfaces
        self._modes = modes
        self._fastpath = fastpath
        self._cpumap = cpumap
        pins.check_namespace()
        self.was_adopted = pins.exists
        self.has_begun = False
        self._attachments: list[Attachment] = []
        self.next_hops: NextHops | None = None
        self.programs = pins.adopt() if self.was_adopted else pins.load(sizes)
        try:
            for interface in interfaces:
                links.check_interface(interface, self._our_programs())
            if self.was_adopted:
                logger.info("adopted the data path in %s", pins.path)
                self._compare_sizes(sizes)
            else:
                # Not configured it lets every packet pass; what an interface refuses is better known now.
                self._attach()
        except BaseException:
            self.close()
            raise

    @property
    def worker_map_fds(self) -> dict[str, int]:
        """Descriptors of the maps that a worker needs."""
        return {name: self.programs.maps[name].fd for name in _WORKERS_MAPS}

    @property
    def counters_fd(self) -> int:
        """Descriptor of the map with a page of counters for each worker."""
        return self.programs.maps["counters"].fd

    def fleet_address(self, base: Address) -> Address:
        """Where to listen for the fleet: where a relay that was left behind does, if any port will do."""
        for address, (side, _) in self.programs.listeners().items():
            if not base.port and side == SIDE_FLEET and address.host == base.host:
                return address
        return base

    def check_listeners(self, policy: RelayPolicy, fleet_sockets: Sequence[Address]) -> None:
        """Raises OperatorError if what was left behind serves other addresses than we are told to."""
        serving, wanted = self.programs.listeners(), listeners_of(policy, fleet_sockets)
        if serving and serving != wanted:
            raise OperatorError(
                f"the data path in {self._pins.path} serves {', '.join(map(str, serving))}, the configuration names "
                f"{', '.join(map(str, wanted))}; start with the addresses that it has, in their order, or end its calls with "
                "`relayctl stop` first"
            )

    def begin(
        self,
        policy: RelayPolicy,
        fleet_sockets: Sequence[Address],
        slots: Iterable[tuple[int, Sequence[socket.socket]]],
    ) -> NextHops:
        """Take every packet: configure, give each slot its sockets, steer to these slots alone.

        Returns what is to follow the ways to transceivers, which XDP forwards by.
        """
        # First what can fail: until it is done, whoever serves goes on.
        if self.was_adopted:
            self._attach()
        self.has_begun = True
        self.next_hops = NextHops(
            self.programs.maps["next_hops"],
            self._interfaces,
            {address.family: address.host for address in fleet_sockets},
            self.programs.set_mtu,
            self._our_programs().__contains__,
        )
        self.programs.configure(
            policy, fleet_sockets, self._hash_key(), fastpath=self._fastpath, cpumap=self._cpumap
        )
        filled = []
        for slot, sockets in slots:
            self.fill(slot, sockets)
            filled.append(slot)
        self.programs.steer(filled)
        for key, _ in list(self.programs.maps["sockets"].items()):
            group, slot = divmod(key.value, MAX_SLOTS)
            if slot not in filled:
                self.programs.empty_slot(group, slot)
        return self.next_hops

    def _attach(self) -> None:
        ours = self._our_programs()
        self.programs.note_namespace()
        try:
            for interface in self._interfaces:
                attached = links.attach(interface, self.programs.xdp_fd, self._modes, ours)
                self._attachments.append(attached)
                because = f"; {attached.why}" if attached.why else ""
                logger.info("%s XDP on %s%s", attached.mode, interface, because)
        finally:
            # Now that it is on an interface: whoever comes next must know it for ours.
            self._pins.pin_programs(self.programs)
        for attachment in links.attachments():
            if attachment.program_id in ours and attachment.interface not in self._interfaces:
                links.detach(ours, attachment.interface)

    def use_cores(self, cores: Iterable[int]) -> None:
        """Say which cores have workers, for the packets that cpumap leads there; those of other cores are let go."""
        self.programs.use_cores(set(cores) if self._cpumap else set())

    def fill(self, slot: int, sockets: Sequence[socket.socket]) -> None:
        """Give a slot its sockets, one a group."""
        for group, sock in enumerate(sockets):
            self.programs.fill_slot(group, slot, sock)

    def empty(self, slot: int, groups: int) -> None:
        """Lead the clients of a slot to the next living one."""
        for group in range(groups):
            self.programs.empty_slot(group, slot)

    def counts(self) -> dict[str, int]:
        """Packets that XDP judged, by verdict label."""
        return {verdict.label: count for verdict, count in self.programs.counts().items()}

    def counts_of_others(self, slots: set[int]) -> Counter[str]:
        """What the workers of other slots than these counted, by label: they were there once."""
        counts: Counter[str] = Counter()
        for key, page in self.programs.maps["counters"].items():
            if key.value not in slots:
                counts.update(label_cells(page.cells))
        return counts

    def forwarded_bytes(self) -> dict[str, int]:
        """Payload that XDP forwarded, ``bytes_up`` and ``bytes_down``."""
        by_cpu = self.programs.maps["forwarded_bytes"]
        return {
            "bytes_up": sum(by_cpu.get(Direction.DIRECTION_UP) or ()),
            "bytes_down": sum(by_cpu.get(Direction.DIRECTION_DOWN) or ()),
        }

    def sweep(self, policy: RelayPolicy, *, told_s: float = 0.0) -> Sweep:
        """A walk over the flows that ends those that fell silent; ``told_s`` is the sweep's."""
        return Sweep(policy, self.programs.maps, told_s=told_s)

    def list_flows(self, limit: int, client: str | None) -> list[dict[str, Any]]:
        """Flows as they are in the maps, at most ``limit``; ``client`` is ADDRESS or ADDRESS:PORT."""
        reader = MapReader(self.programs)
        rows = chain.from_iterable(reader.find_flows(name, client) for name in ("flows", "provisional"))
        listeners = [entry for _, entry in self.programs.maps["listeners"].items()]
        told = {str(entry.listen.address()): str(entry.told.address()) for entry in listeners if entry.side}
        return [
            {
                **{name: row[name] for name in _LISTED},
                "vip": told.get(row["listen"], row["listen"]),
                "worker": row["slot"],
            }
            for row in islice(rows, limit)
        ]

    def describe(self) -> dict[str, Any]:
        """For ``status``."""
        return {
            "pins": str(self._pins.path),
            "adopted": self.was_adopted,
            "load_s": round(self.programs.load_s, 3),
            "fastpath": bool(self.programs.settings().fastpath),
            "next_hops": self.next_hops.describe() if self.next_hops else [],
            "interfaces": self._describe_interfaces(),
        }

    def _describe_interfaces(self) -> list[dict[str, Any]]:
        """As they are now: somebody may have taken the program off."""
        ours, why = self._our_programs(), {a.interface: a.why for a in self._attachments}
        attached = {a.interface: a for a in links.attachments() if a.program_id in ours}
        return [
            attached[name]._replace(why=why.get(name, ""))._asdict()
            if name in attached
            else Attachment(name, "no", 0, "it was taken off; `relayctl restart` attaches it")._asdict()
            for name in self._interfaces
        ]

    def close(self) -> None:
        """Detach and remove everything; what another supervisor left is only let go of, if we did not begin."""
        if self.has_begun or not self.was_adopted:
            links.detach(self._our_programs())
            self._pins.remove()
        else:
            self._pins.forget_not_pinned()
        self.programs.close()

    def _compare_sizes(self, sizes: MapSizes) -> None:
        for name, wanted in (("flows", sizes.max_flows), ("provisional", sizes.max_provisional)):
            found = self.programs.maps[name].max_entries
            if found != wanted:
                logger.warning("map %s keeps room for %d, not %d, until `relayctl stop`", name, found, wanted)

    def _hash_key(self) -> HashKey:
        """A new secret, or the one that clients are steered by already."""
        first, second = self.programs.settings().hash_key
        return (first, second) if first or second else (secrets.randbits(64), secrets.randbits(64))

    def _our_programs(self) -> set[int]:
        return self._pins.program_ids() | {self.programs.info()["xdp_ingress"].id}
