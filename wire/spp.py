"""Simple Proxy Protocol for UDP (SPP): how the real client's address crosses the fleet.

The format is Cloudflare's (https://developers.cloudflare.com/spectrum/reference/simple-proxy-protocol-header/).
Both directions carry it, so a relay needs no state to bring a transceiver's packet back to its client.
"""

from struct import Struct
from typing import NamedTuple

from wire.address import Address
from wire.errors import WireError, WireFault

# magic 2 | client address 16 | proxy address 16 | client port 2 | proxy port 2; IPv4 is mapped into 16 bytes
_HEADER = Struct("!H16s16sHH")
MAGIC = 0x56EC
HEADER_BYTES = _HEADER.size
_MAGIC_BYTES = 2
FLOW_NAME_BYTES = HEADER_BYTES - _MAGIC_BYTES


class SppHeader(NamedTuple):
    """``client`` is the real client; ``proxy`` is the VIP that the client sent to."""

    client: Address
    proxy: Address


def encode_header(client: Address, proxy: Address) -> bytes:
    """The 38 bytes that go in front of the client's datagram."""
    return _HEADER.pack(MAGIC, client.mapped, proxy.mapped, client.port, proxy.port)


def flow_name(client: Address, proxy: Address) -> bytes:
    """The header behind its magic, 36 bytes: what a flow is looked up by."""
    return encode_header(client, proxy)[_MAGIC_BYTES:]


def parse_flow_name(name: bytes) -> SppHeader:
    """The inverse of ``flow_name``. Raises WireError on another length."""
    return decode_header_untrusted(MAGIC.to_bytes(_MAGIC_BYTES, "big") + name)


def decode_header_untrusted(datagram: bytes) -> SppHeader:
    """Read the header of a fleet datagram; the payload is ``datagram[HEADER_BYTES:]``. Raises WireError."""
    if len(datagram) < HEADER_BYTES:
        raise WireError(WireFault.SPP_MALFORMED, f"{len(datagram)} bytes are too few for an SPP header")
    magic, client, proxy, client_port, proxy_port = _HEADER.unpack_from(datagram)
    if magic != MAGIC:
        raise WireError(WireFault.SPP_MALFORMED, f"SPP magic is {magic:#06x}, not {MAGIC:#06x}")
    return SppHeader(Address.from_mapped(client, client_port), Address.from_mapped(proxy, proxy_port))
