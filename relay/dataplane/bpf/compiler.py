"""Compile and load the programs with BCC; the only module that imports it."""

import ctypes
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.abi import MAPS, MAX_GROUPS, MAX_SLOTS, PERCPU_ARRAY, REUSEPORT_SOCKARRAY
from relay.dataplane.bpf.errors import BpfUnavailableError
from relay.dataplane.bpf.kernel_headers import make_kernel_tree
from relay.dataplane.bpf.maps import possible_cpus
from relay.dataplane.bpf.source import read_program

_PROG_TYPE_SK_REUSEPORT = 21
_COMPILER_FLAGS = ("-Wall", "-Werror", "-Wno-unused-function", "-Wno-unused-variable")
_PERMISSIONS = "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed"


@dataclass(frozen=True, kw_only=True)
class MapSizes:
    """How many entries the kernel's tables hold."""

    max_flows: int = 100_000
    max_provisional: int = 16_384
    max_buckets: int = 65_536


@dataclass(frozen=True)
class Loaded:
    """Descriptors of what is in the kernel now; whoever has this closes them."""

    xdp_fd: int
    select_fd: int
    map_fds: dict[str, int]


def source_digest() -> int:
    """64 bits that tell one version of the programs from another."""
    return int.from_bytes(hashlib.sha256(read_program("relay").encode()).digest()[:8], "little")


def load_programs(sizes: MapSizes, pin_dir: Path | None = None, sockets_fd: int | None = None) -> Loaded:
    """Compile ``bpf/relay.c`` and have the kernel accept it. Raises BpfUnavailableError.

    pin_dir: where maps are pinned; those that are there already are taken up, so the caller has checked them.
    sockets_fd: the map of sockets to use, as BCC cannot take it up by its pin.
    """
    bcc = _import_bcc()
    new_sockets_fd = _create_sockarray() if sockets_fd is None else os.dup(sockets_fd)
    try:
        bpf = _compile(bcc, _flags(sizes, new_sockets_fd, pin_dir))
        try:
            return _take_descriptors(bcc, bpf, new_sockets_fd)
        finally:
            bpf.cleanup()
    except BaseException:
        os.close(new_sockets_fd)
        raise


def _flags(sizes: MapSizes, sockets_fd: int, pin_dir: Path | None) -> list[str]:
    return [
        *_COMPILER_FLAGS,
        f"-DMAX_FLOWS={sizes.max_flows}",
        f"-DMAX_PROVISIONAL={sizes.max_provisional}",
        f"-DMAX_BUCKETS={sizes.max_buckets}",
        # The kernel refuses a cpumap of more cores than it was built for.
        f"-DMAX_CORES={possible_cpus()}",
        f"-DSOCKETS_FD={sockets_fd}",
        *([f'-DPIN_DIR="{pin_dir}"'] if pin_dir else []),
    ]


def _take_descriptors(bcc: Any, bpf: Any, sockets_fd: int) -> Loaded:
    try:
        xdp = bpf.load_func(b"xdp_ingress", bcc.BPF.XDP)
        select = bpf.load_func(b"reuseport_select", _PROG_TYPE_SK_REUSEPORT)
    except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
        raise BpfUnavailableError(f"this kernel refuses the BPF programs ({error})") from None
    tables = {name: bpf[layout.symbol.encode()] for name, layout in MAPS.items() if layout.symbol}
    for name, table in tables.items():
        layout = MAPS[name]
        _check_sizes(name, table, layout.key, layout.value, is_array=layout.kind is PERCPU_ARRAY)
    map_fds = {name: os.dup(table.map_fd) for name, table in tables.items()}
    return Loaded(os.dup(xdp.fd), os.dup(select.fd), {"sockets": sockets_fd, **map_fds})


def _check_sizes(name: str, table: Any, key: type[Any], value: type[Any], *, is_array: bool) -> None:
    """BCC made its own types from the same header; they are as large as ours, or one of the two was changed alone."""
    leaf = table.sLeaf if is_array else table.Leaf
    ours, theirs = (ctypes.sizeof(key), ctypes.sizeof(value)), (ctypes.sizeof(table.Key), ctypes.sizeof(leaf))
    if ours != theirs:
        raise BpfUnavailableError(
            f"map {name}: key and value of {theirs} bytes in the program, {ours} in Python: bpf/include/abi.h and "
            "relay/dataplane/bpf/abi.py are of different versions; install relayctl anew"
        )


def _create_sockarray() -> int:
    # BCC has no word for this kind of map; the program gets it by its descriptor.
    try:
        return syscall.create_map("sockets", REUSEPORT_SOCKARRAY.number, 4, 8, MAX_GROUPS * MAX_SLOTS)
    except OSError as error:
        raise BpfUnavailableError(f"BPF maps cannot be made ({error.strerror}); {_PERMISSIONS}") from None


def _import_bcc() -> ModuleType:
    try:
        # Imported late: Debian's module, which only hosts with a BPF data path have.
        import bcc
    except ImportError:
        raise BpfUnavailableError("BCC is missing (apt-get install python3-bpfcc)") from None
    return bcc  # type: ignore[no-any-return]


def _compile(bcc: Any, flags: list[str]) -> Any:
    with tempfile.TemporaryDirectory(prefix="relayctl-kernel-") as tree:
        make_kernel_tree(Path(tree))
        # Read by libbcc at compile time; there is no argument for it.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            return bcc.BPF(text=read_program("relay").encode(), cflags=flags)
        except Exception as error:  # noqa: BLE001  # BCC raises a bare Exception
            raise BpfUnavailableError(f"bpf/relay.c cannot be compiled or its maps made ({error})") from None
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]
