"""The calls of bpf(2) that BCC has no name for: test runs, and what the kernel knows of a program."""

import ctypes
import errno
import os
from typing import NamedTuple

_BPF_PROG_TEST_RUN = 10
_BPF_OBJ_GET_INFO_BY_FD = 15
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


class _TestRunAttr(ctypes.Structure):
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
    )


class _InfoAttr(ctypes.Structure):
    _fields_ = (("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64))


class _ProgInfo(ctypes.Structure):
    """``struct bpf_prog_info`` as far as ``verified_insns`` (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("before_run_time", ctypes.c_uint8 * (192 - 24)),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("attach_btf_obj_id", ctypes.c_uint32),
    )


class ProgramInfo(NamedTuple):
    """What the kernel knows of a loaded program. ``instructions`` are the translated ones, 8 bytes each;
    ``verified`` is how many the verifier walked through (0 before Linux 5.16)."""

    id: int
    tag: str
    instructions: int
    verified: int


def test_run(program_fd: int, frame: bytes) -> tuple[int, bytes]:
    """Run an XDP program on a frame: (its return value, the frame as it left it). Raises OSError."""
    data_in = ctypes.create_string_buffer(frame, len(frame))
    data_out = ctypes.create_string_buffer(len(frame) + 256)
    attr = _TestRunAttr(
        program_fd, 0, len(frame), len(data_out), ctypes.addressof(data_in), ctypes.addressof(data_out), 1, 0
    )
    _bpf(_BPF_PROG_TEST_RUN, attr)
    return attr.retval, data_out.raw[: attr.data_size_out]


def program_info(program_fd: int) -> ProgramInfo:
    """Raises OSError."""
    info = _ProgInfo()
    _bpf(_BPF_OBJ_GET_INFO_BY_FD, _InfoAttr(program_fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return ProgramInfo(info.id, bytes(info.tag).hex(), info.xlated_prog_len // 8, info.verified_insns)


def _bpf(command: int, attr: ctypes.Structure) -> None:
    if _libc.syscall(_SYS_BPF[os.uname().machine], command, ctypes.byref(attr), ctypes.sizeof(attr)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf(2) command {command}: {errno.errorcode.get(number, number)}")
