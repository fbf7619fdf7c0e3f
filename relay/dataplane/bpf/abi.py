"""The mirror of ``bpf/include/abi.h`` in ctypes; tests/abi compares every field's place and size."""

import ctypes
from typing import Self

from wire.address import Address

ABI_VERSION = 1
SIDE_PUBLIC, SIDE_FLEET = 1, 2
MAX_SLOTS = 64
MAX_GROUPS = 16
STEERING_SIZE = 16_381


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
    """``struct flow_key``; ``vip`` is the address that the client's packets arrive at."""

    _fields_ = (("client", Endpoint), ("vip", Endpoint))


class FlowC(ctypes.Structure):
    """``struct flow``; times are CLOCK_MONOTONIC nanoseconds."""

    _fields_ = (
        ("transceiver", Endpoint),
        ("is_assured", ctypes.c_uint32),
        ("ufrag_hash", ctypes.c_uint64),
        ("created_ns", ctypes.c_uint64),
        ("last_seen_ns", ctypes.c_uint64),
        ("ufrag_seen_ns", ctypes.c_uint64),
        ("packets_up", ctypes.c_uint64),
        ("bytes_up", ctypes.c_uint64),
        ("packets_down", ctypes.c_uint64),
        ("bytes_down", ctypes.c_uint64),
    )


class Listener(ctypes.Structure):
    """``struct listener``: what one of our sockets is for."""

    _fields_ = (("side", ctypes.c_uint32), ("group", ctypes.c_uint32))


class Settings(ctypes.Structure):
    """``struct settings``."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("loopback_clients", ctypes.c_uint32),
        ("hash_key", ctypes.c_uint64 * 2),
        ("unknown_per_s", ctypes.c_uint64),
        ("unknown_burst", ctypes.c_uint64),
        ("heartbeat_timeout_ns", ctypes.c_uint64),
    )


class Heartbeat(ctypes.Structure):
    """``struct heartbeat``: CLOCK_MONOTONIC nanoseconds."""

    _fields_ = (("beat_ns", ctypes.c_uint64),)


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
    "flow": FlowC,
    "listener": Listener,
    "settings": Settings,
    "heartbeat": Heartbeat,
    "bucket": Bucket,
    "source_prefix": SourcePrefix,
    "network": Network,
}
