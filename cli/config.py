"""One configuration from one TOML file (or none) and the flags that override it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fleet.config import RedisConfig
from host.config_table import TABLES, ConfigTable, read_document
from host.privileges import check_user
from host.sockets import is_ipv6_available
from host.state_dir import StateDir
from relay.config import RelayConfig, pair_vips
from relay.core.policy import Vip
from transceiver.config import TransceiverConfig


class Role(StrEnum):
    """What runs on a host."""

    ALL = "all"
    RELAY = "relay"
    TRANSCEIVERS = "transceivers"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that one host needs.

    role: which services run here.
    cluster_id: goes into every hint; a relay refuses other clusters' hints.
    keys_file: the fleet's keys.
    drain_s: how long calls may go on when the supervisor is told to end.
    user: whom workers and transceivers run as; None for the supervisor's own user.
    """

    role: Role
    cluster_id: int
    keys_file: Path
    drain_s: float
    user: str | None
    relay: RelayConfig
    transceiver: TransceiverConfig
    redis: RedisConfig

    @property
    def vips(self) -> tuple[Vip, ...]:
        """The public addresses."""
        return self.relay.vips


def load_config(
    path: Path | None,
    overrides: Mapping[str, Mapping[str, Any]],
    state_dir: StateDir,
) -> Config:
    """Read, override and check. Raises ConfigError.

    ``overrides`` is by table and key, as the file.
    """
    document = read_document(path)
    tables: dict[str, ConfigTable] = {}
    for name in TABLES:
        values = document.get(name, {})
        if isinstance(values, dict):
            values = {**values, **overrides.get(name, {})}
        tables[name] = ConfigTable(name, values, path.parent if path else Path())
    fleet, relay, host = tables["fleet"], tables["relay"], tables["host"]
    loopback = ["127.0.0.1:3478", *(["[::1]:3478"] if is_ipv6_available() else [])]
    listen, vip = relay.take_addresses("listen", loopback), fleet.take_addresses("vip", [])
    role = Role(host.take_choice("role", Role.ALL, list(Role)))
    # Where no relay listens, the VIPs are another host's and need no listening address beside them.
    vips = pair_vips(vip if vip and role is Role.TRANSCEIVERS else listen, vip)
    keys_file = fleet.take_path("keys_file", None) or state_dir.keys_file
    config = Config(
        role=role,
        cluster_id=fleet.take_int("cluster_id", 1, low=0, high=65535),
        keys_file=keys_file,
        drain_s=host.take_seconds("drain_s", 5.0),
        user=host.take("user", str, "") or None,
        relay=RelayConfig.from_table(relay, vips),
        transceiver=TransceiverConfig.from_table(tables["transceiver"], state_dir.bearer_token_file),
        redis=RedisConfig.from_table(tables["redis"]),
    )
    fleet.finish()
    host.finish()
    if config.user is not None:
        check_user(config.user)
    return config


TEMPLATE = """\
# relayctl configuration. Every line that is commented out shows its default.
# `relayctl start --config THIS` reads it; flags of `relayctl start` override it. File names are relative to this file.

[fleet]
# What a relay and its transceivers must agree on.
# cluster_id = 1            # goes into every ufrag; 0 to 65535
# vip = []                  # public addresses that clients are told, in the order of relay.listen; empty: the same
#                           # (behind a cloud's 1:1 NAT: the public address here, the private one in relay.listen)
# keys_file = ""            # JSON, 0600, the same on every host; empty: keys.json in the state directory, made at first start

[relay]
# listen = ["127.0.0.1:3478", "[::1]:3478"]   # where clients' packets arrive; real addresses, no wildcard
# fleet_listen = ["127.0.0.1:0"]              # where transceivers' packets arrive, one a family (0: any); without XDP worker N takes port + N
# workers = 2                                 # processes, each pinned to a core; default: one a core
# transceiver_networks = ["127.0.0.0/8", "::1/128"]   # the only addresses that calls are forwarded to and from
# max_session_s = 86400                       # oldest ufrag that is admitted: the longest call
# max_assured_flows = 100000                  # flow table of each worker, and of the kernel for all
# max_provisional_flows = 16384               # addresses that have not yet carried media, likewise
# dataplane = "auto"                          # xdp, userspace, or auto: xdp where interfaces are named and this machine can
# interfaces = []                             # network interfaces that XDP is attached to, as ["eth0", "eth1"]
# xdp_mode = "auto"                           # native (in the driver), generic, or auto: native where the driver can
# unknown_per_s = 200                         # packets of no known flow that are looked at, from one source
# unknown_burst = 400
# gather_us = 500                             # a busy worker lets packets gather for so long, at most; 0: takes each as it comes
# busy_poll_us = 0                            # how long a worker asks for the next packet without sleeping, at the cost of its core
# ipv4_source_bits = 32                       # what one source is: an IPv4 address,
# ipv6_source_bits = 64                       # an IPv6 /64
# fastpath = true                             # XDP forwards assured flows; false: workers do (`relayctl bpf fastpath off|on` at run time)
# cpumap = false                              # XDP leads packets whose checksum is complete to their worker's core

[transceiver]
# processes = 2                               # each has one UDP socket for all its calls
# listen = "127.0.0.1:0"                      # process N takes port + N (0: any)
# relay_networks = ["127.0.0.0/8", "::1/128"] # the only addresses that packets are taken from
# http = "127.0.0.1:8080"                     # signaling and the demo page
# tls_cert = ""                               # PEM; needed beyond loopback, or insecure = true behind a TLS proxy
# tls_key = ""
# insecure = false
# bearer_token_file = ""                      # empty: none on loopback, else bearer_token in the state directory
# origins = []                                # web origins whose pages may call, as "https://app.example.org"
# requests_per_s = 20.0                       # signaling requests of one address
# request_burst = 100
# max_sessions = 200                          # of each process; more are answered 503
# max_memory_mb = 0                           # resident memory (MiB) of each process; above it likewise; 0: all processes
#                                             # together have 80 % of the machine's, or the cgroup's
# max_cpu = 0.9                               # CPU time of each process, as a share of a core; above it likewise
# media = "direct"                            # who receives and sends audio: direct (ours) or aiortc
# echo = "passthrough"                        # audio goes back as it came; transcode: decoded and encoded, as for a model
# opus_complexity = 5                         # of the encoder at most, 0 to 10
# opus_adaptive = true                        # less where the process is busy: plainer voice rather than late voice

[redis]
# What relays and transceivers of several hosts know of each other; calls need none of it, and go on when Redis does not.
# url = ""                  # redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE, redis+cluster://HOST:PORT,HOST:PORT;
#                           # with TLS rediss:// (rediss+sentinel://, rediss+cluster://); empty: no Redis
# username = ""             # of an ACL
# password_file = ""        # 0600; read anew when it changes
# sentinel_password_file = ""
# tls_ca = ""               # PEM; empty: the system's certificate authorities
# tls_cert = ""             # PEM, if Redis asks for a client's certificate
# tls_key = ""
# timeout_s = 0.25          # of a look-up
# flow_ttl_s = 180          # how long a flow is kept that no relay tells of any more
# lease_s = 10.0            # how long a host is believed to live since it was heard

[host]
# role = "all"              # what runs here: all, relay or transceivers
# drain_s = 5.0             # how long calls may go on after SIGTERM
# user = ""                 # whom workers and transceivers run as, if started by root; they drop every capability anyway
"""
