"""Which worker slot a client belongs to: a keyed hash, and a Maglev table that few clients leave when slots change.

The same hash runs in the kernel (``bpf/include/hash.h``); tests/abi compares the two.
"""

from collections.abc import Iterator, Sequence

from wire.address import Address

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_HASHED_BYTES = 24

HashKey = tuple[int, int]


def hash_address(address: Address, key: HashKey) -> int:
    """SipHash-1-3 of host (IPv4 mapped) and port, 64 bits; ``key`` is two 64-bit words."""
    host = address.mapped
    words = (
        int.from_bytes(host[:8], "little"),
        int.from_bytes(host[8:], "little"),
        # as it stands in the packet, in network order
        int.from_bytes(address.port.to_bytes(2, "big"), "little"),
        _HASHED_BYTES << 56,
    )
    v0, v1 = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D
    v2, v3 = key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573
    for word in words:
        v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def maglev_table(slots: Sequence[int], size: int) -> list[int]:
    """A slot for each of ``size`` places (a prime), in nearly equal shares.

    Each slot has its own fixed order of places, and the slots take turns at claiming their next free one; so a slot that
    comes or goes changes about its own share of the places, and few others (Maglev, NSDI 2016, section 3.4).
    """
    if not slots:
        raise ValueError("a steering table needs at least one slot")
    orders = [_places(slot, size) for slot in slots]
    table = [-1] * size
    filled = 0
    while True:
        for slot, order in zip(slots, orders, strict=True):
            place = next(place for place in order if table[place] < 0)
            table[place] = slot
            filled += 1
            if filled == size:
                return table


def _places(slot: int, size: int) -> Iterator[int]:
    """Every place once, in the order that belongs to the slot."""
    # Any two well-mixed numbers will do; the key is fixed, as every relay of a fleet should steer alike.
    name = Address(slot.to_bytes(4, "big"), 0)
    offset = hash_address(name, (0, 0)) % size
    step = hash_address(name, (0, 1)) % (size - 1) + 1
    for turn in range(size):
        yield (offset + turn * step) % size


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0, v2 = (v0 + v1) & _MASK, (v2 + v3) & _MASK
    v1, v3 = _rotate(v1, 13) ^ v0, _rotate(v3, 16) ^ v2
    v0 = _rotate(v0, 32)
    v2, v0 = (v2 + v1) & _MASK, (v0 + v3) & _MASK
    v1, v3 = _rotate(v1, 17) ^ v2, _rotate(v3, 21) ^ v0
    return v0, v1, _rotate(v2, 32), v3


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
