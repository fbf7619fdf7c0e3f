"""Every kind of map that the data path uses, read and written as Python sees it."""

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from relay.dataplane.bpf import maps, syscall
from relay.dataplane.bpf.abi import (
    ARRAY,
    CPUMAP,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    MAPS,
    PERCPU_ARRAY,
    REUSEPORT_SOCKARRAY,
    Endpoint,
    MapKind,
    MapLayout,
    Network,
    Settings,
    WorkerC,
)
from relay.dataplane.bpf.maps import BpfMap, possible_cpus
from tests.bpf.kernel_objects import make_map
from tests.bpf.loading import value_of
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("bpf")]

BATCH = 1024
_NO_PREALLOC = 1
MapMaker = Callable[..., BpfMap]


@pytest.fixture
def make() -> Iterator[MapMaker]:
    """Makes maps that live as long as the test."""
    made: list[BpfMap] = []

    def make(kind: MapKind, key: Any, value: Any, max_entries: int) -> BpfMap:
        layout = MapLayout(kind, key, value, "")
        sizes = ctypes.sizeof(key), ctypes.sizeof(value), max_entries
        flags = _NO_PREALLOC if kind is LPM_TRIE else 0
        made.append(BpfMap(make_map("test", kind.number, *sizes, flags), layout))
        return made[-1]

    yield make
    for each in made:
        each.close()


def plain(element: Any) -> Any:
    """A key or value that can be compared."""
    return element.value if hasattr(element, "value") else bytes(element)


def contents(bpf_map: BpfMap) -> dict[Any, Any]:
    # a key that is a plain number, ctypes may give as Python's own
    elements = [(key if isinstance(key, int) else plain(key), plain(value)) for key, value in bpf_map.items()]
    assert len(dict(elements)) == len(elements), "a key came twice"
    return dict(elements)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The kernel answers with this error."""
    with pytest.raises(OSError) as refusal:  # noqa: PT011  # its number tells
        yield
    assert refusal.value.errno == number


KEYED = pytest.mark.parametrize("kind", [HASH, LRU_HASH], ids=lambda kind: kind.name)


@KEYED
def test_hash_of_numbers(make: MapMaker, kind: MapKind) -> None:
    numbers = make(kind, ctypes.c_uint32, ctypes.c_uint64, 64)
    assert numbers.get(7) is None
    assert contents(numbers) == {}
    assert not numbers.delete(7)
    numbers.put(7, 2**63)
    numbers.put(0, 1)
    numbers.put(7, 2**63 + 1)
    assert (value_of(numbers, 7).value, value_of(numbers, 0).value) == (2**63 + 1, 1)
    assert contents(numbers) == {7: 2**63 + 1, 0: 1}
    assert numbers.delete(7)
    assert not numbers.delete(7)
    assert numbers.get(7) is None
    assert contents(numbers) == {0: 1}
    assert (numbers.key_size, numbers.value_size, numbers.max_entries) == (4, 8, 64)


@KEYED
def test_hash_of_structures(make: MapMaker, kind: MapKind) -> None:
    workers = make(kind, Endpoint, WorkerC, 64)
    addresses = [
        Address.parse(text) for text in ("198.51.100.7:40000", "[2001:db8::7]:40000", "198.51.100.7:1")
    ]
    for number, address in enumerate(addresses):
        workers.put(Endpoint.of(address), WorkerC(number, number + 10, number + 20, 2**63 + number))
    assert {
        key.address(): (value.pid, value.core, value.started_ns, value.beat_ns)
        for key, value in workers.items()
    } == {
        address: (number, number + 10, number + 20, 2**63 + number)
        for number, address in enumerate(addresses)
    }
    assert workers.delete(Endpoint.of(addresses[1]))
    assert workers.get(Endpoint.of(addresses[1])) is None
    assert value_of(workers, Endpoint.of(addresses[2])).pid == 2


@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 17])
def test_hash_of_more_elements_than_one_batch(make: MapMaker, count: int) -> None:
    numbers = make(HASH, ctypes.c_uint32, ctypes.c_uint32, count)
    for number in range(count):
        numbers.put(number, number ^ 0xFFFF)
    assert contents(numbers) == {number: number ^ 0xFFFF for number in range(count)}


@KEYED
def test_batches_grow_until_the_fullest_bucket_fits(
    make: MapMaker, kind: MapKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand elements in a thousand buckets: some bucket has several, which a batch of one cannot hold."""
    refusals = []
    lookup_batch = syscall.lookup_batch

    def counted(*arguments: Any) -> Any:
        try:
            return lookup_batch(*arguments)
        except OSError as error:
            refusals.append(error.errno)
            raise

    monkeypatch.setattr(maps, "_BATCH", 1)
    monkeypatch.setattr(syscall, "lookup_batch", counted)
    numbers = make(kind, ctypes.c_uint32, ctypes.c_uint32, 4096)
    for number in range(1000):
        numbers.put(number, number + 1)
    assert contents(numbers) == {number: number + 1 for number in range(1000)}
    assert set(refusals) == {errno.ENOSPC}


def test_other_errors_of_a_batch_are_told(make: MapMaker) -> None:
    numbers = make(HASH, ctypes.c_uint32, ctypes.c_uint32, 8)
    broken = BpfMap(os.open("/dev/null", os.O_RDONLY), numbers.layout)
    with closing(broken), refused(errno.EINVAL):
        list(broken.items())


def test_full_hash_refuses_and_full_lru_evicts(make: MapMaker) -> None:
    numbers = make(HASH, ctypes.c_uint32, ctypes.c_uint32, 4)
    for number in range(4):
        numbers.put(number, number)
    with refused(errno.E2BIG):
        numbers.put(4, 4)
    numbers.put(3, 33)  # what is there may change
    assert contents(numbers) == {0: 0, 1: 1, 2: 2, 3: 33}
    lru = make(LRU_HASH, ctypes.c_uint32, ctypes.c_uint32, 64)
    for number in range(10_000):
        lru.put(number, number)
    assert 0 < len(contents(lru)) <= 64
    assert value_of(lru, 9_999).value == 9_999


def test_array(make: MapMaker) -> None:
    workers = make(ARRAY, ctypes.c_uint32, WorkerC, 3)
    assert contents(workers) == {index: bytes(24) for index in range(3)}
    workers.put(2, WorkerC(pid=5, beat_ns=2**64 - 1))
    assert (value_of(workers, 2).pid, value_of(workers, 2).beat_ns, value_of(workers, 1).pid) == (
        5,
        2**64 - 1,
        0,
    )
    assert [(key.value, value.pid) for key, value in workers.items()] == [(0, 0), (1, 0), (2, 5)]
    assert workers.get(3) is None
    with refused(errno.E2BIG):
        workers.put(3, WorkerC())
    with refused(errno.EINVAL):
        workers.delete(0)


def test_array_of_numbers_is_written_at_once(make: MapMaker) -> None:
    numbers = make(ARRAY, ctypes.c_uint32, ctypes.c_uint32, 16_381)
    values = [number * 7 % 64 for number in range(16_381)]
    numbers.put_all(values)
    assert [value.value for _, value in numbers.items()] == values
    numbers.put_all([9, 8])
    assert [value_of(numbers, index).value for index in range(4)] == [9, 8, *values[2:4]]
    with refused(errno.E2BIG):
        numbers.put_all([0] * 16_382)


def test_value_of_each_cpu(make: MapMaker) -> None:
    numbers = make(PERCPU_ARRAY, ctypes.c_uint32, ctypes.c_uint64, 2)
    assert possible_cpus() >= (os.cpu_count() or 1)
    values = [2**40 + cpu for cpu in range(possible_cpus())]
    numbers.put(1, (ctypes.c_uint64 * possible_cpus())(*values))
    assert list(value_of(numbers, 1)) == values
    assert [(key.value, list(value)) for key, value in numbers.items()] == [
        (0, [0] * possible_cpus()),
        (1, values),
    ]
    assert numbers.value_size == 8


def test_longest_prefix_wins(make: MapMaker) -> None:
    networks = make(LPM_TRIE, Network, ctypes.c_uint32, 8)

    def key(bits: int, host: str) -> Network:
        return Network(bits, (ctypes.c_uint8 * 16)(*Address.from_host(host, 0).mapped))

    networks.put(key(96 + 8, "10.0.0.0"), 8)
    networks.put(key(96 + 16, "10.1.0.0"), 16)
    networks.put(key(32, "fd00:1::"), 32)
    expected = {"10.1.2.3": 16, "10.2.0.1": 8, "11.0.0.1": None, "fd00:1:ffff::": 32, "fd00:2::": None}
    found = {host: networks.get(key(128, host)) for host in expected}
    assert {host: value and value.value for host, value in found.items()} == expected
    assert {(k.prefix_length, v.value) for k, v in networks.items()} == {(104, 8), (112, 16), (32, 32)}
    assert networks.delete(key(112, "10.1.0.0"))
    assert not networks.delete(key(112, "10.1.0.0"))
    assert value_of(networks, key(128, "10.1.2.3")).value == 8
    assert len(list(networks.items())) == 2


def test_sockets_have_cookies_and_empty_places_are_no_elements(make: MapMaker) -> None:
    sockets = make(REUSEPORT_SOCKARRAY, ctypes.c_uint32, ctypes.c_uint64, 1024)
    assert contents(sockets) == {}
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        with refused(errno.EINVAL):
            sockets.put(1000, sock.fileno())  # not in a group
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        sockets.put(1000, sock.fileno())
        so_cookie = 57
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, so_cookie, 8), "little")
        assert contents(sockets) == {1000: cookie}
        assert sockets.delete(1000)
        assert not sockets.delete(1000)
        assert contents(sockets) == {}
        sockets.put(3, sock.fileno())
    assert contents(sockets) == {}, "a closed socket leaves its place"


def test_walk_ends_although_others_remove_what_it_stands_on(make: MapMaker) -> None:
    """It begins anew each time, and there is always one more."""
    networks = make(LPM_TRIE, Network, ctypes.c_uint32, 8)
    networks.put(Network(8, (ctypes.c_uint8 * 16)(0)), 0)
    seen = 0
    for key, _ in networks.items():
        seen += 1
        assert seen <= 16
        networks.delete(key)
        networks.put(Network(8, (ctypes.c_uint8 * 16)(seen)), seen)
    assert seen >= 8


@KEYED
@pytest.mark.parametrize(
    ("asked", "deleted"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([3], 1, id="one"),
        pytest.param([100], 0, id="one that is not there"),
        pytest.param([0, 1, 2, 3], 4, id="several"),
        pytest.param([100, 0, 1], 2, id="the first is not there"),
        pytest.param([0, 100, 1], 2, id="the middle one is not there"),
        pytest.param([0, 1, 100], 2, id="the last is not there"),
        pytest.param([100, 101, 0, 102, 103, 1, 104], 2, id="most are not there"),
        pytest.param([100, 101, 102], 0, id="none is there"),
        pytest.param([5, 5, 6], 2, id="one of them twice"),
        pytest.param(list(range(10)), 10, id="all"),
    ],
)
def test_many_are_removed_at_once(make: MapMaker, kind: MapKind, asked: list[int], deleted: int) -> None:
    numbers = make(kind, ctypes.c_uint32, ctypes.c_uint32, 64)
    for number in range(10):
        numbers.put(number, number)
    keys = b"".join(number.to_bytes(4, "little") for number in asked)
    assert numbers.delete_all(keys, len(asked)) == deleted
    assert contents(numbers) == {number: number for number in range(10) if number not in asked}


def test_structures_are_removed_at_once(make: MapMaker) -> None:
    endpoints = make(HASH, Endpoint, ctypes.c_uint32, 5000)
    keys = [Endpoint.of(Address.from_host("198.51.100.7", 1 + number)) for number in range(5000)]
    for key in keys:
        endpoints.put(key, 1)
    asked = [bytes(key) for at, key in enumerate(keys) if at % 2]
    assert endpoints.delete_all(b"".join(asked), len(asked)) == 2500
    assert {bytes(key) for key, _ in endpoints.items()} == {bytes(key) for key in keys} - set(asked)


def test_other_errors_of_a_removal_are_told(make: MapMaker) -> None:
    numbers = make(HASH, ctypes.c_uint32, ctypes.c_uint32, 8)
    broken = BpfMap(os.open("/dev/null", os.O_RDONLY), numbers.layout)
    with closing(broken), refused(errno.EINVAL):
        broken.delete_all(bytes(8), 2)


@KEYED
def test_batches_are_arrays_of_the_layout(
    make: MapMaker, kind: MapKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many keys as values, each at its place, none for what was not read."""
    monkeypatch.setattr(maps, "_BATCH", 32)
    workers = make(kind, Endpoint, WorkerC, 4096)
    assert [(len(keys), len(values)) for keys, values in workers.batches()] in ([], [(0, 0)])
    for number in range(500):
        workers.put(Endpoint.of(Address.from_host("198.51.100.7", 1 + number)), WorkerC(pid=1 + number))
    batches = list(workers.batches())
    assert len(batches) > 1
    assert [len(keys) for keys, _ in batches] == [len(values) for _, values in batches]
    found = [(keys[at].port, values[at].pid) for keys, values in batches for at in range(len(keys))]
    assert sorted(found) == [(1 + number, 1 + number) for number in range(500)]


def test_closed_map_is_no_map(make: MapMaker) -> None:
    numbers = make(HASH, ctypes.c_uint32, ctypes.c_uint32, 8)
    copy = BpfMap(os.dup(numbers.fd), numbers.layout)
    copy.close()
    with refused(errno.EBADF):
        copy.get(1)


def test_every_kind_of_the_data_path_is_tested_here() -> None:
    # cpumap: tests/bpf/test_cpumap.py
    kinds = {HASH, LRU_HASH, ARRAY, PERCPU_ARRAY, LPM_TRIE, REUSEPORT_SOCKARRAY, CPUMAP}
    assert {layout.kind for layout in MAPS.values()} == kinds
    assert MAPS["settings"].value is Settings
