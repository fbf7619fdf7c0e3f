"""Internet checksums, computed the slow way."""

import struct

from wire.address import Address


def sum_of_words(data: bytes) -> int:
    """The ones' complement sum (RFC 1071 section 1), 0 for its two zeros."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF


def pseudo_header(source: Address, destination: Address, udp_length: int) -> bytes:
    """RFC 768, and RFC 8200 section 8.1: the sum is the same where the length has 16 or 32 bits."""
    return source.host + destination.host + struct.pack("!HH", 17, udp_length)


def full_checksum(source: Address, destination: Address, payload: bytes) -> int:
    """Of a UDP datagram; never 0, which would say that there is none."""
    header = struct.pack("!HHH", source.port, destination.port, 8 + len(payload))
    return 0xFFFF - sum_of_words(pseudo_header(source, destination, 8 + len(payload)) + header + payload)


def partial_checksum(source: Address, destination: Address, payload: bytes) -> int:
    """What Linux leaves for the NIC to complete (CHECKSUM_PARTIAL)."""
    return sum_of_words(pseudo_header(source, destination, 8 + len(payload)))


def ipv4_checksum(header: bytes) -> int:
    """Of an IPv4 header with 0 in its place (RFC 791 section 3.1)."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
