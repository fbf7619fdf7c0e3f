"""Compile, load and configure the XDP program. Attaching and pinning are not here."""

import ctypes
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from host.errors import OperatorError
from relay.core.policy import RelayPolicy
from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import (
    ABI_VERSION,
    SIDE_FLEET,
    SIDE_PUBLIC,
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

_COMPILER_FLAGS = ("-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable")


@dataclass(frozen=True, kw_only=True)
class XdpLimits:
    """Sizes and rates of the kernel's tables.

    unknown_per_s, unknown_burst: packets of no known flow that one source prefix may send: a few calls being set up.
    heartbeat_timeout_s: without a heartbeat for this long nothing is handed up.
    """

    max_flows: int = 100_000
    max_buckets: int = 65_536
    unknown_per_s: int = 200
    unknown_burst: int = 400
    heartbeat_timeout_s: float = 1.0


class XdpProgram:
    """The loaded ``bpf/xdp_ingress.c`` with its maps; the kernel drops both with the last reference to this."""

    def __init__(self, limits: XdpLimits) -> None:
        self._limits = limits
        started = time.monotonic()
        self._bcc, self._bpf = _compile(
            "xdp_ingress", [f"-DMAX_FLOWS={limits.max_flows}", f"-DMAX_BUCKETS={limits.max_buckets}"]
        )
        self._function = self._bpf.load_func(b"xdp_ingress", self._bcc.BPF.XDP)
        self.load_s = time.monotonic() - started

    def close(self) -> None:
        """Let program and maps go."""
        self._bpf.cleanup()

    @property
    def info(self) -> ProgramInfo:
        """What the kernel knows of the program."""
        return program_info(self._function.fd)

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
        """Run the program once on an Ethernet frame: (XDP action, frame as it left the program)."""
        return test_run(self._function.fd, frame)

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


def _compile(name: str, flags: list[str]) -> tuple[ModuleType, Any]:
    with tempfile.TemporaryDirectory(prefix="relayctl-kernel-") as tree:
        make_kernel_tree(Path(tree))
        # Read by libbcc at compile time; there is no argument for it.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            # Imported late: Debian's module, which only hosts with a BPF data path have.
            import bcc

            return bcc, bcc.BPF(
                text=read_program(name).encode(),
                cflags=[*_COMPILER_FLAGS, *flags],
            )
        except ImportError:
            raise OperatorError("the BPF data path needs BCC (apt-get install python3-bpfcc)") from None
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            raise OperatorError(f"bpf/{name}.c cannot be loaded ({error}); CAP_BPF, CAP_NET_ADMIN?") from None
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]
