"""The mirror of ``bpf/include/abi.h`` in ctypes; tests/abi compares every field's place and size."""

import ctypes
from enum import IntEnum, IntFlag
from typing import NamedTuple, Self

from wire.address import Address

ABI_VERSION = 5
SIDE_PUBLIC, SIDE_FLEET = 1, 2
MAX_SLOTS = 64
MAX_GROUPS = 16
STEERING_SIZE = 16_381
MAX_NEXT_HOPS = 4096
UFRAG_TAG_OFFSET, UFRAG_TAG_BYTES = 2, 8
COUNTER_CELLS = 512


class FlowFlag(IntFlag):
    """``enum flow_flag``."""

    FLOW_IS_ASSURED = 1
    FLOW_MEDIA_UP = 2
    FLOW_MEDIA_DOWN = 4
    FLOW_IS_RELEASED = 8


class Endpoint(ctypes.Structure):
    """``struct endpoint``: host with IPv4 mapped, port in network order."""

    _fields_ = (
        ("host", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16.__ctype_be__),
        ("pad", ctypes.c_uint8 * 2),
    )

    @classmethod
    def of(cls, address: Address) -> Self:
        """From an address of ours."""
        return cls((ctypes.c_uint8 * 16)(*address.mapped), address.port)

    def address(self) -> Address:
        """As an address of ours."""
        return Address.from_mapped(bytes(self.host), self.port)


class FlowKeyC(ctypes.Structure):
    """``struct flow_key``; ``group`` is that of the listener that the client's packets arrive at."""

    _fields_ = (
        ("client_host", ctypes.c_uint8 * 16),
        ("client_port", ctypes.c_uint16.__ctype_be__),
        ("group", ctypes.c_uint16),
    )

    @classmethod
    def of(cls, client: Address, group: int) -> Self:
        """Of a client of ours."""
        return cls((ctypes.c_uint8 * 16)(*client.mapped), client.port, group)

    def client(self) -> Address:
        """As an address of ours."""
        return Address.from_mapped(bytes(self.client_host), self.client_port)


class LinkPath(ctypes.Structure):
    """``struct link_path``: ``ifindex`` 0 where none is known; VLAN tags are in network order, the outer one first."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("to_mac", ctypes.c_uint8 * 6),
        ("from_mac", ctypes.c_uint8 * 6),
        ("tag_proto", ctypes.c_uint16.__ctype_be__ * 2),
        ("tag_tci", ctypes.c_uint16.__ctype_be__ * 2),
    )


class FlowC(ctypes.Structure):
    """``struct flow``; times are CLOCK_MONOTONIC nanoseconds."""

    _fields_ = (
        ("transceiver", Endpoint),
        ("flags", ctypes.c_uint32),
        ("client_path", LinkPath),
        ("last_seen_ns", ctypes.c_uint64),
        ("packets_up", ctypes.c_uint64),
        ("bytes_up", ctypes.c_uint64),
        ("packets_down", ctypes.c_uint64),
        ("bytes_down", ctypes.c_uint64),
        ("down_seen_ns", ctypes.c_uint64),
        ("ufrag_seen_ns", ctypes.c_uint64),
        ("created_ns", ctypes.c_uint64),
        ("ufrag_tag", ctypes.c_char * UFRAG_TAG_BYTES),
    )


class Host(ctypes.Structure):
    """``struct host``: a key of ``next_hops``, IPv4 mapped."""

    _fields_ = (("address", ctypes.c_uint8 * 16),)


class NextHop(ctypes.Structure):
    """``struct next_hop``: the way to a transceiver's host; ``mtu`` in bytes of the IP packet."""

    _fields_ = (("path", LinkPath), ("mtu", ctypes.c_uint32), ("pad", ctypes.c_uint32))


class Listener(ctypes.Structure):
    """``struct listener``: what one group of our sockets is for; ``told`` is the VIP of a public one."""

    _fields_ = (
        ("listen", Endpoint),
        ("told", Endpoint),
        ("side", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
    )


class Settings(ctypes.Structure):
    """``struct settings``."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("loopback_clients", ctypes.c_uint32),
        ("build", ctypes.c_uint64),
        ("hash_key", ctypes.c_uint64 * 2),
        ("ipv4_source_mask", ctypes.c_uint64 * 2),
        ("ipv6_source_mask", ctypes.c_uint64 * 2),
        ("unknown_per_s", ctypes.c_uint64),
        ("unknown_burst", ctypes.c_uint64),
        ("heartbeat_timeout_ns", ctypes.c_uint64),
        ("network_namespace", ctypes.c_uint64),
        ("fleet_ipv4", Endpoint),
        ("fleet_ipv6", Endpoint),
        ("cpumap", ctypes.c_uint32),
        ("fastpath", ctypes.c_uint32),
        ("mtu", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class CoreChoice(IntEnum):
    """``enum core_choice``."""

    CORE_REDIRECTED = 0
    CORE_LOCAL = 1
    CORE_UNKNOWN = 2
    CORE_TOO_LONG = 3
    CORE_CHECKSUM_INCOMPLETE = 4

    @property
    def label(self) -> str:
        """Its name for people and metrics."""
        return self.name.removeprefix("CORE_").lower()


class Direction(IntEnum):
    """``enum direction``: the index of ``forwarded_bytes``."""

    DIRECTION_UP = 0
    DIRECTION_DOWN = 1


class Heartbeat(ctypes.Structure):
    """``struct heartbeat``: CLOCK_MONOTONIC nanoseconds."""

    _fields_ = (("beat_ns", ctypes.c_uint64),)


class WorkerC(ctypes.Structure):
    """``struct worker``; ``started_ns`` and ``beat_ns`` are CLOCK_MONOTONIC."""

    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("core", ctypes.c_uint32),
        ("started_ns", ctypes.c_uint64),
        ("beat_ns", ctypes.c_uint64),
    )


class WorkerCountersC(ctypes.Structure):
    """``struct worker_counters``: see relay/dataplane/counters.py."""

    _fields_ = (("cells", ctypes.c_uint64 * COUNTER_CELLS),)


class Bucket(ctypes.Structure):
    """``struct bucket``."""

    _fields_ = (("nano_tokens", ctypes.c_uint64), ("filled_ns", ctypes.c_uint64))


class SourcePrefix(ctypes.Structure):
    """``struct source_prefix``."""

    _fields_ = (("host", ctypes.c_uint8 * 16),)


class Network(ctypes.Structure):
    """``struct network``: a key of the trie; ``prefix_length`` counts from the mapped address's first bit."""

    _fields_ = (("prefix_length", ctypes.c_uint32), ("host", ctypes.c_uint8 * 16))


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "endpoint": Endpoint,
    "flow_key": FlowKeyC,
    "link_path": LinkPath,
    "flow": FlowC,
    "host": Host,
    "next_hop": NextHop,
    "listener": Listener,
    "settings": Settings,
    "heartbeat": Heartbeat,
    "worker": WorkerC,
    "worker_counters": WorkerCountersC,
    "bucket": Bucket,
    "source_prefix": SourcePrefix,
    "network": Network,
}


class MapKind(NamedTuple):
    """A kind of map: its number and name in linux/bpf.h."""

    number: int
    name: str


HASH, ARRAY, PERCPU_ARRAY = MapKind(1, "hash"), MapKind(2, "array"), MapKind(6, "percpu_array")
LRU_HASH, LPM_TRIE = MapKind(9, "lru_hash"), MapKind(11, "lpm_trie")
CPUMAP, REUSEPORT_SOCKARRAY = MapKind(16, "cpumap"), MapKind(20, "reuseport_sockarray")


class MapLayout(NamedTuple):
    """What a map holds. ``symbol`` is its variable in maps.h, empty for the one that BCC cannot make."""

    kind: MapKind
    key: type[ctypes.Structure] | type[ctypes.c_uint32]
    value: type[ctypes.Structure] | type[ctypes.c_uint32] | type[ctypes.c_uint64]
    symbol: str


MAPS: dict[str, MapLayout] = {
    "settings": MapLayout(ARRAY, ctypes.c_uint32, Settings, "relay_settings"),
    "listeners": MapLayout(ARRAY, ctypes.c_uint32, Listener, "listeners"),
    "networks": MapLayout(LPM_TRIE, Network, ctypes.c_uint32, "networks"),
    "steering": MapLayout(ARRAY, ctypes.c_uint32, ctypes.c_uint32, "steering"),
    "sockets": MapLayout(REUSEPORT_SOCKARRAY, ctypes.c_uint32, ctypes.c_uint64, ""),
    "cores": MapLayout(CPUMAP, ctypes.c_uint32, ctypes.c_uint32, "cores"),
    "heartbeat": MapLayout(ARRAY, ctypes.c_uint32, Heartbeat, "heartbeat"),
    "workers": MapLayout(ARRAY, ctypes.c_uint32, WorkerC, "workers"),
    "counters": MapLayout(ARRAY, ctypes.c_uint32, WorkerCountersC, "counters"),
    "flows": MapLayout(HASH, FlowKeyC, FlowC, "flows"),
    "next_hops": MapLayout(HASH, Host, NextHop, "next_hops"),
    "provisional": MapLayout(LRU_HASH, FlowKeyC, FlowC, "provisional"),
    "buckets": MapLayout(LRU_HASH, SourcePrefix, Bucket, "buckets"),
    "verdicts": MapLayout(PERCPU_ARRAY, ctypes.c_uint32, ctypes.c_uint64, "verdicts"),
    "forwarded_bytes": MapLayout(PERCPU_ARRAY, ctypes.c_uint32, ctypes.c_uint64, "forwarded_bytes"),
    "core_choices": MapLayout(PERCPU_ARRAY, ctypes.c_uint32, ctypes.c_uint64, "core_choices"),
}
"""Every map by the name of its pin."""
