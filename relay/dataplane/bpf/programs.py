"""The relay's programs in the kernel with the maps that they share, and what a relay tells them."""

import ctypes
import os
import socket
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

from relay.core.policy import RelayPolicy
from relay.core.steering import HashKey, maglev_table
from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import (
    ABI_VERSION,
    MAPS,
    MAX_GROUPS,
    MAX_SLOTS,
    SIDE_FLEET,
    SIDE_PUBLIC,
    STEERING_SIZE,
    Endpoint,
    Listener,
    Network,
    Settings,
)
from relay.dataplane.bpf.compiler import Loaded, MapSizes, load_programs, source_digest
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.syscall import ProgramInfo, program_info, test_run
from wire.address import Address

_SO_ATTACH_REUSEPORT_EBPF = 52
_IPV4_OFFSET_BITS = 96  # of a mapped address
# What comes to a core at 500,000 packets/s while its worker has it for one slice of the scheduler (4 ms), so that what is
# too much is lost at the socket, as without cpumap, and counted there.
_QUEUE_PACKETS = 2048


class RelayPrograms:
    """Open descriptors of both programs and all maps. What is pinned or attached stays when they are closed."""

    def __init__(self, loaded: Loaded) -> None:
        self.xdp_fd = loaded.xdp_fd
        self.select_fd = loaded.select_fd
        self.maps = {name: BpfMap(fd, MAPS[name]) for name, fd in loaded.map_fds.items()}
        self.load_s = 0.0

    @classmethod
    def load(cls, sizes: MapSizes, pin_dir: Path | None = None, sockets_fd: int | None = None) -> Self:
        """Compile and load; see ``load_programs``. ``load_s`` tells how long it took. Raises BpfUnavailableError."""
        started = time.monotonic()
        programs = cls(load_programs(sizes, pin_dir, sockets_fd))
        programs.load_s = time.monotonic() - started
        return programs

    @property
    def program_fds(self) -> dict[str, int]:
        """Descriptors by the names of their pins."""
        return {"xdp_ingress": self.xdp_fd, "reuseport_select": self.select_fd}

    def close(self) -> None:
        """Close every descriptor."""
        for bpf_map in self.maps.values():
            bpf_map.close()
        for fd in self.program_fds.values():
            os.close(fd)

    def info(self) -> dict[str, ProgramInfo]:
        """What the kernel knows of each program."""
        return {name: program_info(fd) for name, fd in self.program_fds.items()}

    def settings(self) -> Settings:
        """What was configured last; zeros before."""
        settings = self.maps["settings"].get(0)
        assert isinstance(settings, Settings)  # an array always has its element
        return settings

    def listeners(self) -> dict[Address, tuple[int, int]]:
        """Side and group by address, as configured last."""
        entries = self.maps["listeners"].items()
        return {entry.listen.address(): (entry.side, key.value) for key, entry in entries if entry.side}

    def configure(
        self,
        policy: RelayPolicy,
        fleet_sockets: Sequence[Address],
        hash_key: HashKey,
        *,
        fastpath: bool = True,
        cpumap: bool = False,
    ) -> None:
        """Tell what is ours and whom to trust. Addresses are those that packets arrive at.

        fastpath: XDP forwards assured flows, unless that was switched off while an earlier supervisor ran.
        cpumap: packets go on at their worker's core, if ``use_cores`` has named it and their checksum is complete.
        """
        self._configure_listeners(policy, fleet_sockets)
        self._replace("networks", [(_trie_key(network), 1) for network in policy.transceiver_networks])
        fleet = {address.family: Endpoint.of(address) for address in fleet_sockets}
        before = self.settings()
        # Last: a program without settings judges nothing.
        settings = Settings(
            abi_version=ABI_VERSION,
            loopback_clients=any(vip.listen.ip.is_loopback for vip in policy.vips),
            build=source_digest(),
            hash_key=hash_key,
            ipv4_source_mask=_mask(_IPV4_OFFSET_BITS + policy.ipv4_source_bits),
            ipv6_source_mask=_mask(policy.ipv6_source_bits),
            unknown_per_s=policy.unknown_per_s,
            unknown_burst=policy.unknown_burst,
            heartbeat_timeout_ns=int(policy.heartbeat_timeout_s * 1e9),
            network_namespace=network_namespace(),
            fleet_ipv4=fleet.get(4, Endpoint()),
            fleet_ipv6=fleet.get(6, Endpoint()),
            cpumap=cpumap,
            # Who switched it off wants it off until he switches it on.
            fastpath=fastpath and (before.fastpath if before.build else True),
            mtu=before.mtu,
        )
        self.maps["settings"].put(0, settings)

    def note_namespace(self) -> None:
        """Note, before anything is attached, whose interfaces will have the program."""
        settings = self.settings()
        settings.abi_version, settings.network_namespace = ABI_VERSION, network_namespace()
        self.maps["settings"].put(0, settings)

    def _configure_listeners(self, policy: RelayPolicy, fleet_sockets: Sequence[Address]) -> None:
        told = {vip.listen: vip.address for vip in policy.vips}
        places = {
            group: Listener(Endpoint.of(address), Endpoint.of(told.get(address, address)), side, group)
            for address, (side, group) in listeners_of(policy, fleet_sockets).items()
        }
        for group in range(MAX_GROUPS):
            self.maps["listeners"].put(group, places.get(group, Listener()))

    def set_fastpath(self, is_on: bool) -> None:
        """Have XDP forward assured flows, or hand all their packets to the workers."""
        self._change_settings(fastpath=is_on)

    def has_living_worker(self) -> bool:
        """Whether a worker has beaten its heart within the time that the program gives it."""
        beat, settings = self.maps["heartbeat"].get(0), self.settings()
        assert beat is not None  # an array always has its element
        # Never is no time: a machine may be up for less than the timeout.
        return bool(beat.beat_ns and time.monotonic_ns() - beat.beat_ns < settings.heartbeat_timeout_ns)

    def set_mtu(self, mtu: int) -> None:
        """Say what the smallest MTU of the interfaces with the program is; 0: none is known."""
        self._change_settings(mtu=mtu)

    def _change_settings(self, **changes: int) -> None:
        settings = self.settings()
        for name, value in changes.items():
            setattr(settings, name, value)
        self.maps["settings"].put(0, settings)

    def steer(self, slots: Sequence[int]) -> None:
        """Divide the clients among these slots."""
        self.maps["steering"].put_all(maglev_table(slots, STEERING_SIZE))

    def use_cores(self, cores: Collection[int]) -> None:
        """Have a queue for each of these cores, and no other. One that is there stays: a new one would be empty."""
        queues = self.maps["cores"]
        used = {key.value for key, _ in queues.items()}
        for core in used - set(cores):
            queues.delete(core)
        for core in set(cores) - used:
            queues.put(core, _QUEUE_PACKETS)

    def fill_slot(self, group: int, slot: int, sock: socket.socket) -> None:
        """Give a slot of a group its socket, in place of any before; attaches the program to the group."""
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, self.select_fd)
        self.maps["sockets"].put(group * MAX_SLOTS + slot, sock.fileno())

    def empty_slot(self, group: int, slot: int) -> None:
        """Take the socket out of a slot; its clients go to the next living one."""
        self.maps["sockets"].delete(group * MAX_SLOTS + slot)

    def counts(self) -> dict[Verdict, int]:
        """Packets by verdict, all CPUs added up."""
        return {verdict: sum(self.maps["verdicts"].get(verdict) or ()) for verdict in Verdict}

    def run(self, frame: bytes) -> tuple[int, bytes]:
        """Run the XDP program once on an Ethernet frame: (XDP action, frame as it left the program)."""
        return test_run(self.xdp_fd, frame)

    def _replace(self, name: str, entries: Sequence[tuple[Any, Any]]) -> None:
        """Write these entries first, then remove all others: what stays is never away."""
        bpf_map = self.maps[name]
        kept = {bytes(key) for key, _ in entries}
        stale = [key for key, _ in bpf_map.items() if bytes(key) not in kept]
        if len(stale) + len(entries) > bpf_map.max_entries:  # no room for both
            stale = [key for key in stale if not bpf_map.delete(key)]
        for key, value in entries:
            bpf_map.put(key, value)
        for key in stale:
            bpf_map.delete(key)


def network_namespace() -> int:
    """The inode of the one that this process is in, as ``lsns`` shows it."""
    return os.stat("/proc/self/ns/net").st_ino


def listeners_of(policy: RelayPolicy, fleet_sockets: Sequence[Address]) -> dict[Address, tuple[int, int]]:
    """Side and group of each address that a relay listens on; the group is its row in the map of sockets."""
    public = [(vip.listen, SIDE_PUBLIC) for vip in policy.vips]
    fleet = [(address, SIDE_FLEET) for address in fleet_sockets]
    return {address: (side, group) for group, (address, side) in enumerate([*public, *fleet])}


def _trie_key(network: Any) -> Network:
    bits = network.prefixlen + (128 - network.max_prefixlen)
    return Network(bits, (ctypes.c_uint8 * 16)(*Address(network.network_address.packed, 0).mapped))


def _mask(bits: int) -> Any:
    """The first bits of 16 bytes, as two words that stand in memory as the bytes do."""
    mask = ((1 << bits) - 1 << (128 - bits)).to_bytes(16, "big")
    return (ctypes.c_uint64 * 2).from_buffer_copy(mask)
