"""A relay's configuration: the ``[relay]`` table, checked once."""

import os
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Self

from host.config_table import ConfigTable
from host.errors import ConfigError
from relay.core.policy import RelayPolicy, Vip
from wire.address import Address

# Slots of the kernel's table of sockets (bpf/include/abi.h, MAX_SLOTS).
MAX_WORKERS = 64
# Its groups of sockets (MAX_GROUPS), and its trie of networks (maps.h).
MAX_LISTENERS = 16
MAX_NETWORKS = 256


class DataPlane(StrEnum):
    """How packets reach the workers. ``auto``: by XDP where interfaces are named and this machine can, else userspace."""

    AUTO = "auto"
    XDP = "xdp"
    USERSPACE = "userspace"


class XdpChoice(StrEnum):
    """Where XDP runs. ``auto``: in the driver, or generic where the driver cannot."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


@dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """Settings of one relay host.

    vips: where the relay binds and what clients are told, in the order of ``relay.listen`` and ``fleet.vip``.
    fleet_listen: one base address a family; worker N takes port + N, or any free port where the port is 0.
    workers: processes; each is pinned to a core.
    transceiver_networks: where hints may point to and fleet packets may come from.
    max_session_s: oldest ufrag still admitted; a call keeps its ufrag, so this bounds the length of a call.
    max_assured_flows, max_provisional_flows: sizes of each worker's flow table, and of the kernel's for all workers.
    dataplane: how packets reach the workers. interfaces: where XDP is attached; xdp_mode: where it runs.
    unknown_per_s, unknown_burst: packets of no known flow that XDP hands up from one source.
    ipv4_source_bits, ipv6_source_bits: what one source is.
    fastpath: whether XDP forwards assured flows; else workers do. `relayctl bpf fastpath` changes it while the relay runs.
    cpumap: whether XDP leads packets to their worker's core. Off, as it relieves the
        core that the NIC interrupts at the cost of the worker's.
    gather_us: how long a worker under load lets packets gather, at most; it adds to their way. 0 takes each as it comes.
    busy_poll_us: how long a worker asks for the next packet without sleeping.
    """

    vips: tuple[Vip, ...]
    fleet_listen: tuple[Address, ...]
    workers: int
    transceiver_networks: tuple[IPv4Network | IPv6Network, ...]
    max_session_s: int
    max_assured_flows: int
    max_provisional_flows: int
    dataplane: DataPlane
    interfaces: tuple[str, ...]
    xdp_mode: XdpChoice
    unknown_per_s: int
    unknown_burst: int
    ipv4_source_bits: int
    ipv6_source_bits: int
    fastpath: bool = True
    cpumap: bool = False
    gather_us: int = 500
    busy_poll_us: int = 0

    @classmethod
    def from_table(cls, table: ConfigTable, vips: tuple[Vip, ...]) -> Self:
        """Take the ``[relay]`` table apart. Raises ConfigError."""
        policy = RelayPolicy(cluster_id=0, vips=(), transceiver_networks=())
        config = cls(
            vips=vips,
            fleet_listen=table.take_addresses("fleet_listen", ["127.0.0.1:0"]),
            workers=table.take_int(
                "workers", min(len(os.sched_getaffinity(0)), MAX_WORKERS), low=1, high=MAX_WORKERS
            ),
            transceiver_networks=table.take_networks("transceiver_networks", ["127.0.0.0/8", "::1/128"]),
            max_session_s=table.take_int("max_session_s", policy.max_session_s, low=60, high=30 * 86400),
            max_assured_flows=table.take_int(
                "max_assured_flows", policy.max_assured_flows, low=1, high=10_000_000
            ),
            max_provisional_flows=table.take_int(
                "max_provisional_flows", policy.max_provisional_flows, low=1, high=1_000_000
            ),
            dataplane=DataPlane(table.take_choice("dataplane", DataPlane.AUTO, list(DataPlane))),
            interfaces=table.take_strings("interfaces"),
            xdp_mode=XdpChoice(table.take_choice("xdp_mode", XdpChoice.AUTO, list(XdpChoice))),
            unknown_per_s=table.take_int("unknown_per_s", policy.unknown_per_s, low=1, high=1_000_000),
            unknown_burst=table.take_int("unknown_burst", policy.unknown_burst, low=1, high=1_000_000),
            ipv4_source_bits=table.take_int("ipv4_source_bits", policy.ipv4_source_bits, low=8, high=32),
            ipv6_source_bits=table.take_int("ipv6_source_bits", policy.ipv6_source_bits, low=16, high=128),
            fastpath=table.take("fastpath", bool, True),
            cpumap=table.take("cpumap", bool, False),
            gather_us=table.take_int("gather_us", 500, low=0, high=10_000),
            busy_poll_us=table.take_int("busy_poll_us", 0, low=0, high=10_000),
        )
        table.finish()
        config._check(table)
        return config

    def _check(self, table: ConfigTable) -> None:
        families = [address.family for address in self.fleet_listen]
        if not families or len(set(families)) != len(families):
            raise ConfigError(
                table.field("fleet_listen"), "needs one address for each address family of the fleet"
            )
        for address in self.fleet_listen:
            if address.port and address.port + self.workers - 1 > 65535:
                raise ConfigError(
                    table.field("fleet_listen"),
                    f"{address} leaves no port for each of {self.workers} workers",
                )
        if len(set(self.interfaces)) != len(self.interfaces):
            raise ConfigError(table.field("interfaces"), "names an interface twice")
        if self.dataplane is DataPlane.XDP and not self.interfaces:
            raise ConfigError(
                table.field("interfaces"), "is empty; XDP needs --interface, `ip link` lists what there is"
            )
        if self.dataplane is DataPlane.USERSPACE and self.interfaces:
            raise ConfigError(
                table.field("interfaces"), "are for XDP; leave them out, or choose dataplane xdp or auto"
            )
        if self.cpumap and not self.interfaces:
            raise ConfigError(
                table.field("cpumap"), "is for XDP; leave it out, or name the network's --interface"
            )
        if len(self.vips) + len(self.fleet_listen) > MAX_LISTENERS:
            raise ConfigError(
                "relay.listen", f"and fleet_listen name more than {MAX_LISTENERS} addresses together"
            )
        if len(self.transceiver_networks) > MAX_NETWORKS:
            raise ConfigError(
                table.field("transceiver_networks"), f"names more than {MAX_NETWORKS}; join some"
            )
        if not self.transceiver_networks:
            raise ConfigError(table.field("transceiver_networks"), "is empty, so no call could be routed")


def pair_vips(listen: tuple[Address, ...], vip: tuple[Address, ...]) -> tuple[Vip, ...]:
    """``relay.listen`` and ``fleet.vip`` side by side; no vip means that clients are told the listen addresses.

    Raises ConfigError if they do not pair up.
    """
    if not listen:
        raise ConfigError("relay.listen", "is empty; a relay needs at least one public address")
    for address in listen:
        if not address.port:
            raise ConfigError("relay.listen", f"{address} needs a port: every worker binds the same one")
    if not vip:
        vip = listen
    if len(vip) != len(listen):
        raise ConfigError(
            "fleet.vip", f"has {len(vip)} addresses but relay.listen has {len(listen)}; pair them in order"
        )
    for name, addresses in (("relay.listen", listen), ("fleet.vip", vip)):
        if len(set(addresses)) != len(addresses):
            raise ConfigError(name, "names an address twice")
    for ours, told in zip(listen, vip, strict=True):
        if ours.family != told.family:
            raise ConfigError("fleet.vip", f"{told} is paired with {ours} of the other address family")
        if not told.port:
            raise ConfigError("fleet.vip", f"{told} needs a port: clients are told it")
    return tuple(Vip(ours, told) for ours, told in zip(listen, vip, strict=True))
