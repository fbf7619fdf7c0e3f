"""A BPF map as Python sees it: keys and values are the structures of ``abi.py``."""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.abi import ARRAY, HASH, LRU_HASH, PERCPU_ARRAY, MapLayout

# Elements that one system call reads.
_BATCH = 1024


@cache
def possible_cpus() -> int:
    """How many CPUs the kernel could have: that many values each element of a per-CPU map has."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class BpfMap:
    """One open map. Keys and values may be given as ``int`` where the layout has a plain number.

    A value of a per-CPU map is an array with one number a CPU. Methods raise OSError.
    """

    def __init__(self, fd: int, layout: MapLayout) -> None:
        self.fd = fd
        self.layout = layout
        self._value_type: Any = (
            layout.value * possible_cpus() if layout.kind is PERCPU_ARRAY else layout.value
        )

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return ctypes.sizeof(self.layout.key)

    @property
    def value_size(self) -> int:
        """Bytes of a value, on one CPU."""
        return ctypes.sizeof(self.layout.value)

    @property
    def max_entries(self) -> int:
        """How many elements it can hold."""
        return syscall.map_info(self.fd).max_entries

    def get(self, key: Any) -> Any | None:
        """The value of a key, or None."""
        elements = self._elements(key, None)
        return elements.value if elements.lookup() else None

    def put(self, key: Any, value: Any) -> None:
        """Write one element."""
        self._elements(key, value).update()

    def put_all(self, values: Sequence[int]) -> None:
        """Write every element of an array of numbers."""
        keys = (ctypes.c_uint32 * len(values))(*range(len(values)))
        numbers: Any = self.layout.value * len(values)
        syscall.update_batch(self.fd, keys, numbers(*values), len(values))

    def delete(self, key: Any) -> bool:
        """Remove a key; False if there was none."""
        return self._elements(key, None).delete()

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Every element, while others go on writing: one that moves meanwhile may come twice or not."""
        match self.layout.kind:
            case kind if kind in (HASH, LRU_HASH):
                yield from self._elements_of_batches()
            case kind if kind in (ARRAY, PERCPU_ARRAY):
                for index in range(self.max_entries):
                    yield self.layout.key(index), self.get(index)
            case _:
                yield from self._walk()

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """The same of a hash map, as arrays of keys and of values of equal length."""
        position, room, more = None, _BATCH, True
        while more:
            # The kernel writes its place in the map, which is no key.
            following = (ctypes.c_uint8 * max(8, self.key_size))()
            keys, values = (self.layout.key * room)(), (self._value_type * room)()
            try:
                count, more = syscall.lookup_batch(self.fd, position, following, keys, values, room)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room *= 2
                continue
            yield (self.layout.key * count).from_buffer(keys), (self._value_type * count).from_buffer(values)
            position = following

    def delete_all(self, keys: bytes, count: int) -> int:
        """Remove these keys of a hash map, one behind the other; returns how many there were."""
        buffer = ctypes.create_string_buffer(keys, len(keys))
        deleted, at = 0, 0
        while at < count:
            done = syscall.delete_batch(self.fd, ctypes.byref(buffer, at * self.key_size), count - at)
            deleted, at = deleted + done, at + done + 1  # it stops at a key that is not there
        return deleted

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def _elements(self, key: Any, value: Any | None) -> syscall.MapElements:
        if isinstance(key, int):
            key = self.layout.key(key)
        if value is None:
            value = self._value_type()
        elif isinstance(value, int):
            value = self._value_type(value)
        return syscall.MapElements(self.fd, key, value)

    def _elements_of_batches(self) -> Iterator[tuple[Any, Any]]:
        for keys, values in self.batches():
            for key, value in zip(keys, values, strict=True):
                # ctypes makes plain numbers of simple types
                yield key, self._value_type(value) if isinstance(value, int) else value

    def _walk(self) -> Iterator[tuple[Any, Any]]:
        key = None
        # A key that is removed under the walk begins it anew: bounded, as others may never stop.
        for _ in range(2 * self.max_entries):
            following = self.layout.key()
            if not syscall.next_key(self.fd, key, following):
                return
            value = self.get(following)
            if value is not None:
                yield following, value
            key = following
