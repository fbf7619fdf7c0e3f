"""What a worker is told at its start, as it crosses the channel from the supervisor."""

from dataclasses import dataclass, fields
from ipaddress import ip_network
from typing import Any

from relay.core.policy import RelayPolicy, Vip
from wire.address import Address
from wire.keys import KeyRing


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Policy, keys and the inherited file descriptors.

    slot: the worker's place. public_fds: in the order of the policy's VIPs. check_fds: likewise, for what is no media; empty on
    the kernel's data path. counters_page: of the file or map of counters. gather_us, busy_poll_us: see relay.config.
    kernel_maps: maps of the kernel's data path by name, empty without it. line_fd: to the agent of the fleet's cache, -1 without one.
    refresh_s: how often the cache is told of each living flow.
    """

    policy: RelayPolicy
    keys: KeyRing
    slot: int
    public_fds: tuple[int, ...]
    check_fds: tuple[int, ...]
    fleet_fds: tuple[int, ...]
    counters_fd: int
    counters_page: int
    kernel_maps: dict[str, int]
    gather_us: int
    busy_poll_us: int
    line_fd: int = -1
    refresh_s: float = 60.0

    def to_message(self) -> dict[str, Any]:
        """The JSON form; it holds secrets and goes over a private socket only."""
        return {
            "policy": _policy_to_message(self.policy),
            "keys": self.keys.to_json(),
            "slot": self.slot,
            "public_fds": self.public_fds,
            "check_fds": self.check_fds,
            "fleet_fds": self.fleet_fds,
            "counters_fd": self.counters_fd,
            "counters_page": self.counters_page,
            "kernel_maps": self.kernel_maps,
            "gather_us": self.gather_us,
            "busy_poll_us": self.busy_poll_us,
            "line_fd": self.line_fd,
            "refresh_s": self.refresh_s,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "WorkerSettings":
        """The inverse of ``to_message``."""
        return cls(
            policy=_policy_from_message(message["policy"]),
            keys=KeyRing.from_json(message["keys"]),
            slot=message["slot"],
            public_fds=tuple(message["public_fds"]),
            check_fds=tuple(message["check_fds"]),
            fleet_fds=tuple(message["fleet_fds"]),
            counters_fd=message["counters_fd"],
            counters_page=message["counters_page"],
            kernel_maps=message["kernel_maps"],
            gather_us=message["gather_us"],
            busy_poll_us=message["busy_poll_us"],
            line_fd=message["line_fd"],
            refresh_s=message["refresh_s"],
        )


def _policy_to_message(policy: RelayPolicy) -> dict[str, Any]:
    message = {field.name: getattr(policy, field.name) for field in fields(policy)}
    message["vips"] = [[str(vip.listen), str(vip.address)] for vip in policy.vips]
    message["transceiver_networks"] = [str(network) for network in policy.transceiver_networks]
    message["own_sockets"] = [str(address) for address in policy.own_sockets]
    return message


def _policy_from_message(message: dict[str, Any]) -> RelayPolicy:
    parsed = dict(message)
    parsed["vips"] = tuple(Vip(Address.parse(listen), Address.parse(vip)) for listen, vip in message["vips"])
    parsed["transceiver_networks"] = tuple(map(ip_network, message["transceiver_networks"]))
    parsed["own_sockets"] = frozenset(map(Address.parse, message["own_sockets"]))
    return RelayPolicy(**parsed)
