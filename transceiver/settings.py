"""What a transceiver process is told at its start, as it crosses the channel from the supervisor."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from transceiver.config import EchoMode
from transceiver.media.settings import MediaPath
from wire.address import Address
from wire.keys import KeyRing


@dataclass(frozen=True, kw_only=True)
class TransceiverSettings:
    """The inherited sockets and what the process serves. ``tls_cert`` and ``tls_key`` are file names, or empty.

    ``index`` is the place of this process on the board behind ``load_fd``.
    """

    keys: KeyRing
    cluster_id: int
    address: Address
    vips: tuple[Address, ...]
    relay_networks: tuple[IPv4Network | IPv6Network, ...]
    max_sessions: int
    max_memory_bytes: int
    max_cpu: float
    media: MediaPath
    echo: EchoMode
    opus_complexity: int
    opus_adaptive: bool
    internal_http: Address
    bearer_token: str
    origins: tuple[str, ...]
    requests_per_s: float
    request_burst: int
    tls_cert: str
    tls_key: str
    index: int
    load_fd: int
    udp_fd: int
    http_fd: int
    internal_http_fd: int

    def to_message(self) -> dict[str, Any]:
        """The JSON form; it holds secrets and goes over a private socket only."""
        return {
            **vars(self),
            "keys": self.keys.to_json(),
            "address": str(self.address),
            "internal_http": str(self.internal_http),
            "vips": [str(vip) for vip in self.vips],
            "relay_networks": [str(network) for network in self.relay_networks],
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "TransceiverSettings":
        """The inverse of ``to_message``."""
        return cls(
            **{
                **message,
                "keys": KeyRing.from_json(message["keys"]),
                "address": Address.parse(message["address"]),
                "internal_http": Address.parse(message["internal_http"]),
                "vips": tuple(map(Address.parse, message["vips"])),
                "relay_networks": tuple(map(ip_network, message["relay_networks"])),
                "origins": tuple(message["origins"]),
                "media": MediaPath(message["media"]),
                "echo": EchoMode(message["echo"]),
            }
        )
