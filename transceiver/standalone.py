"""What an application needs of relayctl's configuration, to be a transceiver of its own."""

import socket
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from host.config_table import ConfigTable, read_document
from host.errors import ConfigError
from host.keystore import load_keys
from host.sockets import bind_udp, bound_address, is_ipv6_available, take_without_checksum
from host.state_dir import StateDir, default_state_dir
from transceiver.config import TransceiverConfig
from wire.address import Address
from wire.keys import KeyRing

LOOPBACK_NETWORKS = ["127.0.0.0/8", "::1/128"]


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """A bound socket and what the fleet agrees on."""

    sock: socket.socket
    address: Address
    vips: tuple[Address, ...]
    cluster_id: int
    keys: KeyRing
    relay_networks: tuple[IPv4Network | IPv6Network, ...]


def loopback_vips() -> list[str]:
    """Where a relay listens that was told nothing."""
    return ["127.0.0.1:3478", *(["[::1]:3478"] if is_ipv6_available() else [])]


def one_a_family(vips: tuple[Address, ...]) -> tuple[Address, ...]:
    """The first VIP of each address family: more candidates would only be more pairs for the client to check."""
    return tuple({vip.family: vip for vip in reversed(vips)}.values())[::-1]


def open_standalone(
    config: str | Path | None, state_dir: str | Path | None, listen: str | None
) -> Standalone:
    """Read the configuration, load the keys, bind the socket. Raises ConfigError or AddressInUseError."""
    path = Path(config) if config is not None else None
    document = read_document(path)
    directory = path.parent if path else Path()
    fleet, relay, ours = (
        ConfigTable(name, document.get(name, {}), directory) for name in ("fleet", "relay", "transceiver")
    )
    vips = _take_vips(fleet, relay)
    address = ours.take_address("listen", "127.0.0.1:0")._replace(port=0)
    cluster_id = fleet.take_int("cluster_id", 1, low=0, high=65_535)
    relay_networks = ours.take_networks("relay_networks", LOOPBACK_NETWORKS)
    if listen is not None:
        address = _parse_listen(listen)
    keys_file = fleet.take_path("keys_file", None)
    if keys_file is None:
        keys_file = StateDir(Path(state_dir) if state_dir is not None else default_state_dir()).keys_file
    fleet.finish()
    # For relayctl's own processes; an application need not be able to read their TLS key.
    ours.leave(*(setting.name for setting in fields(TransceiverConfig)))
    ours.finish()
    keys = load_keys(keys_file)
    sock = bind_udp("transceiver.listen" if listen is None else "listen", address)
    take_without_checksum(sock)
    return Standalone(
        sock=sock,
        address=bound_address(sock),
        vips=one_a_family(vips),
        cluster_id=cluster_id,
        keys=keys,
        relay_networks=relay_networks,
    )


def _take_vips(fleet: ConfigTable, relay: ConfigTable) -> tuple[Address, ...]:
    vips, field = fleet.take_addresses("vip", []), fleet.field("vip")
    if not vips:
        vips, field = relay.take_addresses("listen", loopback_vips()), relay.field("listen")
    if not vips:
        raise ConfigError(field, "is empty, as is fleet.vip; clients need at least one address")
    for vip in vips:
        if not vip.port:
            raise ConfigError(field, f"{vip} needs a port: clients are told it")
    return vips


def _parse_listen(listen: str) -> Address:
    try:
        address = Address.parse(listen)
    except ValueError as error:
        raise ConfigError("listen", str(error)) from None
    if address.ip.is_unspecified:
        raise ConfigError("listen", f"{listen} is a wildcard; name the address, as relays send to it")
    return address
