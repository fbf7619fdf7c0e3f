"""bpf(2), as far as the relay needs it without BCC: maps, pins, test runs, and what the kernel knows of its objects.

Workers and the inspecting commands use maps through this alone: BCC brings a compiler of 100 MB with it.
"""

import ctypes
import os
from typing import Any, NamedTuple

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = range(5)
_OBJ_PIN, _OBJ_GET = 6, 7
PROG_TEST_RUN = 10
_PROG_GET_FD_BY_ID = 13
_OBJ_GET_INFO_BY_FD = 15
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH, _MAP_DELETE_BATCH = 24, 26, 27
_ENABLE_STATS = 32
# Elsewhere no program is loaded (kernel_headers.py), and the call is never made.
_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, -1)
_libc = ctypes.CDLL(None, use_errno=True)


class _MapCreateAttr(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
    )


class _ElementAttr(ctypes.Structure):
    """``value`` is ``next_key`` for the walk over keys."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _BatchAttr(ctypes.Structure):
    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _ObjectAttr(ctypes.Structure):
    _fields_ = (("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


class _IdAttr(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


class _StatsAttr(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32),)


class TestRunAttr(ctypes.Structure):
    """``union bpf_attr``'s part for BPF_PROG_TEST_RUN."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
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
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("before_run_time", ctypes.c_uint8 * (192 - 80)),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("attach_btf_obj_id", ctypes.c_uint32),
    )


class _MapInfo(ctypes.Structure):
    """The beginning of ``struct bpf_map_info``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class ProgramInfo(NamedTuple):
    """What the kernel knows of a loaded program.

    ``instructions`` are the translated ones, 8 bytes each; ``verified`` is how many the verifier walked through (0 before
    Linux 5.16); runs are counted only while kernel.bpf_stats_enabled is on.
    """

    id: int
    name: str
    tag: str
    instructions: int
    verified: int
    loaded_by_uid: int
    run_count: int
    run_time_ns: int


class MapInfo(NamedTuple):
    """What the kernel knows of a map. Sizes in bytes."""

    id: int
    kind: int
    key_size: int
    value_size: int
    max_entries: int


def create_map(name: str, kind: int, key_size: int, value_size: int, max_entries: int) -> int:
    """The descriptor of a new map. Raises OSError."""
    return bpf(_MAP_CREATE, _MapCreateAttr(kind, key_size, value_size, max_entries, 0, 0, 0, name.encode()))


class MapElements:
    """Elements of one map, by way of two buffers that the caller fills and reads: ``key`` and ``value``.

    One system call each and nothing allocated, as a worker calls it for packets. Methods raise OSError.
    """

    def __init__(self, map_fd: int, key: Any, value: Any) -> None:
        self.key, self.value = key, value
        self._attr = _ElementAttr(map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        # The kernel refuses what a command has no use for.
        self._key_attr = _ElementAttr(map_fd, 0, ctypes.addressof(key), 0, 0)

    def lookup(self) -> bool:
        """Read the value of ``key`` into ``value``; False if there is none."""
        return _found(_MAP_LOOKUP, self._attr)

    def update(self) -> None:
        """Write ``value`` under ``key``."""
        bpf(_MAP_UPDATE, self._attr)

    def delete(self) -> bool:
        """Remove ``key``; False if there is none."""
        return _found(_MAP_DELETE, self._key_attr)


def next_key(map_fd: int, key: Any | None, following: Any) -> bool:
    """Write the key after ``key`` (None: the first) into ``following``; False at the end. Raises OSError."""
    before = 0 if key is None else ctypes.addressof(key)
    return _found(_MAP_NEXT_KEY, _ElementAttr(map_fd, 0, before, ctypes.addressof(following), 0))


def lookup_batch(
    map_fd: int, position: Any | None, following: Any, keys: Any, values: Any, room: int
) -> tuple[int, bool]:
    """Read up to ``room`` elements of a hash map from ``position`` on (None: the beginning).

    Returns how many came and whether there are more, from ``following`` on. Raises OSError, with ENOSPC where one hash
    bucket is larger than the room.
    """
    before = 0 if position is None else ctypes.addressof(position)
    attr = _BatchAttr(
        before,
        ctypes.addressof(following),
        ctypes.addressof(keys),
        ctypes.addressof(values),
        room,
        map_fd,
        0,
        0,
    )
    more = _found(_MAP_LOOKUP_BATCH, attr)
    return attr.count, more


def update_batch(map_fd: int, keys: Any, values: Any, count: int) -> None:
    """Write that many elements. Raises OSError."""
    attr = _BatchAttr(0, 0, ctypes.addressof(keys), ctypes.addressof(values), count, map_fd, 0, 0)
    bpf(_MAP_UPDATE_BATCH, attr)


def delete_batch(map_fd: int, keys: Any, count: int) -> int:
    """Remove that many elements up to the first that is not there; returns how many. Raises OSError."""
    attr = _BatchAttr(0, 0, ctypes.cast(keys, ctypes.c_void_p).value, 0, count, map_fd, 0, 0)
    _found(_MAP_DELETE_BATCH, attr)
    deleted: int = attr.count
    return deleted


def pin(fd: int, path: str) -> None:
    """Give a map or program a name in bpffs. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(_OBJ_PIN, _ObjectAttr(ctypes.addressof(name), fd, 0))


def open_pin(path: str) -> int:
    """The descriptor of what is pinned there. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(_OBJ_GET, _ObjectAttr(ctypes.addressof(name), 0, 0))


def open_program(program_id: int) -> int:
    """The descriptor of a loaded program. Raises OSError."""
    return bpf(_PROG_GET_FD_BY_ID, _IdAttr(program_id, 0, 0))


def enable_stats() -> int:
    """A descriptor; while it is open, the kernel counts runs and time of every program. Raises OSError."""
    return bpf(_ENABLE_STATS, _StatsAttr(0))


def test_run(program_fd: int, frame: bytes) -> tuple[int, bytes]:
    """Run an XDP program on a frame: (its return value, the frame as it left it). Raises OSError."""
    data_in = ctypes.create_string_buffer(frame, len(frame))
    data_out = ctypes.create_string_buffer(len(frame) + 256)
    attr = TestRunAttr(
        prog_fd=program_fd,
        data_size_in=len(frame),
        data_size_out=len(data_out),
        data_in=ctypes.addressof(data_in),
        data_out=ctypes.addressof(data_out),
        repeat=1,
    )
    bpf(PROG_TEST_RUN, attr)
    return attr.retval, data_out.raw[: attr.data_size_out]


def program_info(program_fd: int) -> ProgramInfo:
    """Raises OSError."""
    info = _ProgInfo()
    bpf(_OBJ_GET_INFO_BY_FD, _InfoAttr(program_fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return ProgramInfo(
        id=info.id,
        name=info.name.decode(errors="replace"),
        tag=bytes(info.tag).hex(),
        instructions=info.xlated_prog_len // 8,
        verified=info.verified_insns,
        loaded_by_uid=info.created_by_uid,
        run_count=info.run_cnt,
        run_time_ns=info.run_time_ns,
    )


def map_info(map_fd: int) -> MapInfo:
    """Raises OSError."""
    info = _MapInfo()
    bpf(_OBJ_GET_INFO_BY_FD, _InfoAttr(map_fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return MapInfo(info.id, info.type, info.key_size, info.value_size, info.max_entries)


def _found(command: int, attr: ctypes.Structure) -> bool:
    try:
        bpf(command, attr)
    except FileNotFoundError:
        return False
    return True


def bpf(command: int, attr: ctypes.Structure) -> int:
    """The call itself: its result, a descriptor for some commands. Raises OSError."""
    result: int = _libc.syscall(_SYS_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"bpf(2) command {command}")
    return result
