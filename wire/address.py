"""A UDP or TCP endpoint as it stands in packets: packed host bytes and a port."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Self

_V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"


class Address(NamedTuple):
    """An IP endpoint.

    ``host`` is 4 or 16 bytes in network order (an IPv4-mapped IPv6 address is never kept: see ``from_mapped``),
    ``port`` is 0 to 65535.
    """

    host: bytes
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``203.0.113.10:3478`` or ``[2001:db8::1]:3478``. Raises ValueError with the way out."""
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not separator or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise ValueError(f"{text!r} is not ADDRESS:PORT (as 203.0.113.10:3478 or [2001:db8::1]:3478)")
        try:
            ip = IPv6Address(host[1:-1]) if bracketed else IPv4Address(host)
        except ValueError:
            raise ValueError(
                f"{text!r} needs a literal IPv4 address or an IPv6 address in brackets before the port"
            ) from None
        if isinstance(ip, IPv6Address) and ip.scope_id is not None:
            raise ValueError(f"{text!r}: a scoped (link-local) address cannot be routed to; use a global one")
        return cls.from_mapped(ip.packed, int(port))

    @classmethod
    def from_host(cls, host: str, port: int) -> Self:
        """Build from the text form that sockets return; a scope id is dropped. Raises ValueError on a name."""
        return cls.from_mapped(ip_address(host).packed, port)

    @classmethod
    def from_mapped(cls, host16: bytes, port: int) -> Self:
        """Build from 16 bytes in which IPv4 is mapped (RFC 4291 section 2.5.5.2)."""
        return cls(host16[12:] if host16.startswith(_V4_MAPPED_PREFIX) else host16, port)

    @property
    def mapped(self) -> bytes:
        """The host as 16 bytes, IPv4 mapped (RFC 4291 section 2.5.5.2)."""
        return self.host if len(self.host) == 16 else _V4_MAPPED_PREFIX + self.host

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The host as an ``ipaddress`` object."""
        return ip_address(self.host)

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.host) == 4 else 6

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}" if self.family == 4 else f"[{self.ip}]:{self.port}"
