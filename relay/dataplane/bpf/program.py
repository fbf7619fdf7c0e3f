"""Compile, load and configure the relay's BPF programs. Attaching to interfaces and pinning are not here."""

import ctypes
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from host.errors import OperatorError
from relay.core.policy import RelayPolicy
from relay.core.steering import maglev_table
from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import (
    ABI_VERSION,
    MAX_GROUPS,
    MAX_SLOTS,
    SIDE_FLEET,
    SIDE_PUBLIC,
    STEERING_SIZE,
    Endpoint,
    Heartbeat,
    Listener,
    Network,
    Settings,
)
from relay.dataplane.bpf.kernel_headers import make_kernel_tree
from relay.dataplane.bpf.source import read_program
from relay.dataplane.bpf.syscall import ProgramInfo, program_info, test_run
from wire.address import Address

_PROG_TYPE_SK_REUSEPORT = 21
_MAP_TYPE_REUSEPORT_SOCKARRAY = 20
_SO_ATTACH_REUSEPORT_EBPF = 52
_COMPILER_FLAGS = ("-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable")


@dataclass(frozen=True, kw_only=True)
class BpfLimits:
    """Sizes and rates of the kernel's tables.

    unknown_per_s, unknown_burst: packets of no known flow that one source prefix may send: a few calls being set up.
    heartbeat_timeout_s: without a heartbeat for this long nothing is handed up.
    """

    max_flows: int = 100_000
    max_buckets: int = 65_536
    unknown_per_s: int = 200
    unknown_burst: int = 400
    heartbeat_timeout_s: float = 1.0


class RelayPrograms:
    """``bpf/relay.c`` in the kernel: the XDP and the reuseport program with the maps that they share.

    The kernel drops them with the last reference to this and to the sockets that they are attached to.
    """

    def __init__(self, limits: BpfLimits) -> None:
        self._limits = limits
        started = time.monotonic()
        self._bcc = _import_bcc()
        self._sockets_fd = self._create_sockarray()
        flags = [
            f"-DMAX_FLOWS={limits.max_flows}",
            f"-DMAX_BUCKETS={limits.max_buckets}",
            f"-DSOCKETS_FD={self._sockets_fd}",
        ]
        self._bpf = _compile(self._bcc, "relay", flags)
        try:
            self._xdp = self._bpf.load_func(b"xdp_ingress", self._bcc.BPF.XDP)
            self._select = self._bpf.load_func(b"reuseport_select", _PROG_TYPE_SK_REUSEPORT)
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            raise OperatorError(f"this kernel refuses the BPF programs ({error})") from None
        self.load_s = time.monotonic() - started

    def close(self) -> None:
        """Let programs and maps go."""
        self._bpf.cleanup()
        os.close(self._sockets_fd)

    def info(self) -> dict[str, ProgramInfo]:
        """What the kernel knows of each program."""
        return {"xdp_ingress": program_info(self._xdp.fd), "reuseport_select": program_info(self._select.fd)}

    def steer(self, slots: Sequence[int]) -> None:
        """Divide the clients among these slots."""
        table = self._bpf[b"steering"]
        for place, slot in enumerate(maglev_table(slots, STEERING_SIZE)):
            table[table.Key(place)] = table.Leaf(slot)

    def fill_slot(self, group: int, slot: int, sock: socket.socket) -> None:
        """Give a slot of a group its socket; the first one of a group attaches the program to all of it."""
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, self._select.fd)
        index = ctypes.c_uint32(group * MAX_SLOTS + slot)
        descriptor = ctypes.c_uint64(sock.fileno())
        library = self._bcc.libbcc.lib
        if library.bpf_update_elem(self._sockets_fd, ctypes.byref(index), ctypes.byref(descriptor), 0) < 0:
            raise OSError(ctypes.get_errno(), f"slot {slot} of group {group} does not take the socket")

    def empty_slot(self, group: int, slot: int) -> None:
        """Take the socket out of a slot; its clients go to the next living one."""
        index = ctypes.c_uint32(group * MAX_SLOTS + slot)
        self._bcc.libbcc.lib.bpf_delete_elem(self._sockets_fd, ctypes.byref(index))

    def _create_sockarray(self) -> int:
        # BCC has no word for this kind of map; the program gets it by its descriptor.
        fd = self._bcc.libbcc.lib.bcc_create_map(
            _MAP_TYPE_REUSEPORT_SOCKARRAY, b"sockets", 4, 8, MAX_GROUPS * MAX_SLOTS, 0
        )
        if fd < 0:
            raise OperatorError("BPF maps cannot be made; CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed")
        return int(fd)

    def configure(
        self, policy: RelayPolicy, fleet_sockets: Iterable[Address], hash_key: tuple[int, int]
    ) -> None:
        """Tell what is ours and whom to trust. Addresses are those that packets arrive at."""
        settings = Settings(
            abi_version=ABI_VERSION,
            loopback_clients=any(vip.listen.ip.is_loopback for vip in policy.vips),
            hash_key=hash_key,
            unknown_per_s=self._limits.unknown_per_s,
            unknown_burst=self._limits.unknown_burst,
            heartbeat_timeout_ns=int(self._limits.heartbeat_timeout_s * 1e9),
        )
        self._put("settings_of_relay", 0, settings)
        for group, vip in enumerate(policy.vips):
            self._put("listeners", Endpoint.of(vip.listen), Listener(SIDE_PUBLIC, group))
            self._put("vips", Endpoint.of(vip.address), group)
        for group, address in enumerate(fleet_sockets, len(policy.vips)):
            self._put("listeners", Endpoint.of(address), Listener(SIDE_FLEET, group))
        for network in policy.transceiver_networks:
            mapped = Address(network.network_address.packed, 0).mapped
            bits = network.prefixlen + (128 - network.max_prefixlen)
            self._put("transceiver_networks", Network(bits, (type(Network().host))(*mapped)), 1)

    def beat(self, now_ns: int) -> None:
        """Say that a worker lives."""
        self._put("heartbeat", 0, Heartbeat(now_ns))

    def counts(self) -> dict[Verdict, int]:
        """Packets by verdict, all CPUs added up."""
        table = self._bpf[b"verdicts"]
        return {verdict: sum(table[table.Key(verdict)]) for verdict in Verdict}

    def run(self, frame: bytes) -> tuple[int, bytes]:
        """Run the XDP program once on an Ethernet frame: (XDP action, frame as it left the program)."""
        return test_run(self._xdp.fd, frame)

    def _put(self, table_name: str, key: Any, value: Any) -> None:
        table = self._bpf[table_name.encode()]
        table[_as(table.Key, key)] = _as(table.Leaf, value)


def _as(kind: Any, value: Any) -> Any:
    """Our structure's bytes as BCC's own type, which it made from the same header. Raises OperatorError if they differ."""
    if isinstance(value, int):
        return kind(value)
    if ctypes.sizeof(kind) != ctypes.sizeof(value):
        raise OperatorError(
            f"struct of {ctypes.sizeof(kind)} bytes in the loaded program, {ctypes.sizeof(value)} in {type(value).__name__}: "
            "bpf/include/abi.h and relay/dataplane/bpf/abi.py are of different versions"
        )
    return kind.from_buffer_copy(bytes(value))


def _import_bcc() -> ModuleType:
    try:
        # Imported late: Debian's module, which only hosts with a BPF data path have.
        import bcc
    except ImportError:
        raise OperatorError("the BPF data path needs BCC (apt-get install python3-bpfcc)") from None
    return bcc  # type: ignore[no-any-return]


def _compile(bcc: Any, name: str, flags: list[str]) -> Any:
    with tempfile.TemporaryDirectory(prefix="relayctl-kernel-") as tree:
        make_kernel_tree(Path(tree))
        # Read by libbcc at compile time; there is no argument for it.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            return bcc.BPF(text=read_program(name).encode(), cflags=[*_COMPILER_FLAGS, *flags])
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            raise OperatorError(
                f"bpf/{name}.c cannot be compiled ({error}); are CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON there?"
            ) from None
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]
