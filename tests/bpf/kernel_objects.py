"""Maps and programs of somebody else, made by bpf(2) alone, and the question whether one is still in the kernel."""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable

_MAP_CREATE, _PROG_LOAD, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID = 0, 5, 13, 14
_PROG_TYPE_XDP = 6
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_GONE_AFTER_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)
# r0 = XDP_PASS; exit
_PASS = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def _bpf(command: int, attr: bytes) -> int:
    result: int = _libc.syscall(_SYS_BPF, command, attr, len(attr))
    if result < 0:
        raise OSError(ctypes.get_errno(), errno.errorcode[ctypes.get_errno()])
    return result


def make_map(name: str, kind: int, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> int:
    """The descriptor of a new map."""
    sizes = (kind, key_size, value_size, max_entries, flags, 0, 0)
    return _bpf(_MAP_CREATE, struct.pack("=7I16s", *sizes, name.encode()))


def make_xdp_program(name: str) -> int:
    """The descriptor of an XDP program that lets everything pass."""
    code, licence = ctypes.create_string_buffer(_PASS, len(_PASS)), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_XDP,
        len(_PASS) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        name.encode(),
    )
    return _bpf(_PROG_LOAD, attr)


def _exists(command: int, object_id: int) -> bool:
    try:
        os.close(_bpf(command, struct.pack("=III", object_id, 0, 0)))
    except FileNotFoundError:
        return False
    return True


def map_exists(map_id: int) -> bool:
    """Whether the kernel has a map of that id."""
    return _exists(_MAP_GET_FD_BY_ID, map_id)


def program_exists(program_id: int) -> bool:
    """Whether the kernel has a program of that id."""
    return _exists(_PROG_GET_FD_BY_ID, program_id)


def eventually(question: Callable[[], bool]) -> bool:
    """Ask until the answer is yes: the kernel frees what nobody holds some time later."""
    deadline = time.monotonic() + _GONE_AFTER_S
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
