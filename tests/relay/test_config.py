"""The ``[relay]`` table: what it takes, and errors that name the field."""

import os
from ipaddress import ip_network
from typing import Any

import pytest

from host.config_table import ConfigTable
from host.errors import ConfigError
from relay.config import MAX_WORKERS, DataPlane, RelayConfig, XdpChoice, pair_vips
from relay.core.policy import RelayPolicy, Vip
from relay.dataplane.bpf import abi
from wire.address import Address

POLICY = RelayPolicy(cluster_id=0, vips=(), transceiver_networks=())
VIPS = (Vip(Address.parse("192.0.2.10:3478"), Address.parse("203.0.113.10:3478")),)


def config_of(**values: Any) -> RelayConfig:
    return RelayConfig.from_table(ConfigTable("relay", values), VIPS)


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(map(Address.parse, texts))


def test_empty_table_has_the_defaults() -> None:
    assert config_of() == RelayConfig(
        vips=VIPS,
        fleet_listen=addresses("127.0.0.1:0"),
        workers=len(os.sched_getaffinity(0)),
        transceiver_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        max_session_s=POLICY.max_session_s,
        max_assured_flows=POLICY.max_assured_flows,
        max_provisional_flows=POLICY.max_provisional_flows,
        dataplane=DataPlane.AUTO,
        interfaces=(),
        xdp_mode=XdpChoice.AUTO,
        unknown_per_s=POLICY.unknown_per_s,
        unknown_burst=POLICY.unknown_burst,
        ipv4_source_bits=POLICY.ipv4_source_bits,
        ipv6_source_bits=POLICY.ipv6_source_bits,
    )


def test_every_setting_is_taken() -> None:
    assert config_of(
        fleet_listen=["10.9.0.1:65534", "[fd00:9::1]:7000"],
        workers=2,
        transceiver_networks=["10.1.0.0/16"],
        max_session_s=60,
        max_assured_flows=1,
        max_provisional_flows=3,
        dataplane="xdp",
        interfaces=["eth0", "eth1"],
        xdp_mode="generic",
        unknown_per_s=4,
        unknown_burst=5,
        ipv4_source_bits=24,
        ipv6_source_bits=56,
    ) == RelayConfig(
        vips=VIPS,
        fleet_listen=addresses("10.9.0.1:65534", "[fd00:9::1]:7000"),
        workers=2,
        transceiver_networks=(ip_network("10.1.0.0/16"),),
        max_session_s=60,
        max_assured_flows=1,
        max_provisional_flows=3,
        dataplane=DataPlane.XDP,
        interfaces=("eth0", "eth1"),
        xdp_mode=XdpChoice.GENERIC,
        unknown_per_s=4,
        unknown_burst=5,
        ipv4_source_bits=24,
        ipv6_source_bits=56,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("fleet_listen", [], id="no fleet address"),
        pytest.param("fleet_listen", "127.0.0.1:0", id="fleet_listen is no list"),
        pytest.param("fleet_listen", ["10.9.0.1:1", "10.9.0.2:1"], id="two fleet addresses of a family"),
        pytest.param("fleet_listen", ["[fd00::1]:1", "[fd00::2]:1"], id="two IPv6 fleet addresses"),
        pytest.param("fleet_listen", ["0.0.0.0:7000"], id="wildcard"),
        pytest.param("fleet_listen", ["localhost:7000"], id="name"),
        pytest.param("fleet_listen", ["10.9.0.1:65535"], id="no port for the second worker"),
        pytest.param("fleet_listen", ["10.9.0.1:1", "[fd00::1]:65535"], id="no IPv6 port for it"),
        pytest.param("workers", 0, id="no worker"),
        pytest.param("workers", 65, id="too many workers"),
        pytest.param("workers", True, id="workers = true"),
        pytest.param("workers", "2", id="workers as text"),
        pytest.param("transceiver_networks", [], id="no transceiver network"),
        pytest.param("transceiver_networks", ["10.1.0.1/16"], id="host bits set"),
        pytest.param("transceiver_networks", ["fleet"], id="no network"),
        pytest.param("max_session_s", 59, id="session too short"),
        pytest.param("max_session_s", 30 * 86400 + 1, id="session too long"),
        pytest.param("max_assured_flows", 0, id="no assured flow"),
        pytest.param("max_assured_flows", 10_000_001, id="too many assured flows"),
        pytest.param("max_provisional_flows", 0, id="no provisional flow"),
        pytest.param("max_provisional_flows", 1_000_001, id="too many provisional flows"),
        pytest.param("dataplane", "dpdk", id="unknown data path"),
        pytest.param("dataplane", "XDP", id="data path in capitals"),
        pytest.param("xdp_mode", "offload", id="unknown XDP mode"),
        pytest.param("xdp_mode", True, id="XDP mode is no text"),
        pytest.param("interfaces", "eth0", id="interfaces are no list"),
        pytest.param("interfaces", ["eth0", "eth1", "eth0"], id="interface named twice"),
        pytest.param("cpumap", True, id="cpumap without an interface"),
        pytest.param(
            "transceiver_networks",
            [f"10.0.{i}.0/24" for i in range(257)],
            id="more networks than the trie has",
        ),
        pytest.param("unknown_per_s", 0, id="no unknown packet"),
        pytest.param("unknown_per_s", 1_000_001, id="too many unknown packets"),
        pytest.param("unknown_burst", 0, id="no burst"),
        pytest.param("gather_us", -1, id="gather_us below 0"),
        pytest.param("gather_us", 10_001, id="gather_us too long"),
        pytest.param("busy_poll_us", -1, id="busy_poll_us below 0"),
        pytest.param("busy_poll_us", 10_001, id="busy_poll_us too long"),
        pytest.param("unknown_burst", 1_000_001, id="burst too large"),
        pytest.param("ipv4_source_bits", 7, id="half of IPv4 is no source"),
        pytest.param("ipv4_source_bits", 33, id="more bits than IPv4 has"),
        pytest.param("ipv6_source_bits", 15, id="the IPv6 Internet is no source"),
        pytest.param("ipv6_source_bits", 129, id="more bits than IPv6 has"),
        pytest.param("max_provisional_flow", 1, id="misspelt"),
    ],
)
def test_setting_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(**({"workers": 2} | {field: value}))
    assert refused.value.field == f"relay.{field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workers", MAX_WORKERS),
        ("unknown_per_s", 1),
        ("unknown_per_s", 1_000_000),
        ("unknown_burst", 1_000_000),
        ("gather_us", 0),
        ("gather_us", 10_000),
        ("busy_poll_us", 10_000),
        ("ipv4_source_bits", 8),
        ("ipv4_source_bits", 32),
        ("ipv6_source_bits", 16),
        ("ipv6_source_bits", 128),
    ],
)
def test_bounds_themselves_are_taken(field: str, value: int) -> None:
    assert getattr(config_of(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("dataplane", "interfaces", "words"),
    [
        pytest.param("auto", [], None, id="auto without an interface: userspace"),
        pytest.param("auto", ["eth0"], None, id="auto"),
        pytest.param("xdp", ["eth0"], None, id="XDP"),
        pytest.param("userspace", [], None, id="userspace"),
        pytest.param("xdp", [], "is empty; XDP needs --interface, `ip link` lists", id="XDP on no interface"),
        pytest.param("userspace", ["eth0"], "leave them out, or choose dataplane", id="nothing to attach"),
    ],
)
def test_interfaces_go_with_the_data_path(dataplane: str, interfaces: list[str], words: str | None) -> None:
    if words is None:
        assert config_of(dataplane=dataplane, interfaces=interfaces).dataplane == dataplane
        return
    with pytest.raises(ConfigError, match=words) as refused:
        config_of(dataplane=dataplane, interfaces=interfaces)
    assert refused.value.field == "relay.interfaces"


def test_worker_of_every_number_has_a_slot_in_the_kernel() -> None:
    assert MAX_WORKERS == abi.MAX_SLOTS


def test_machine_with_many_cores_starts_no_more_workers_than_there_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    assert config_of().workers == MAX_WORKERS


def test_fleet_ports_of_all_workers_fit() -> None:
    assert config_of(workers=64, fleet_listen=["10.9.0.1:65472"]).workers == 64
    assert config_of(workers=64, fleet_listen=["10.9.0.1:0"]).workers == 64
    with pytest.raises(ConfigError, match=r"65473.*64 workers"):
        config_of(workers=64, fleet_listen=["10.9.0.1:65473"])


def test_listen_and_vip_pair_up_in_order() -> None:
    listen = addresses("192.0.2.10:3478", "[2001:db8::10]:3478", "192.0.2.11:443")
    told = addresses("203.0.113.10:3478", "[2001:db8::10]:3478", "203.0.113.11:443")
    assert pair_vips(listen, told) == tuple(Vip(ours, vip) for ours, vip in zip(listen, told, strict=True))


def test_without_vip_clients_are_told_where_the_relay_listens() -> None:
    listen = addresses("203.0.113.10:3478", "[2001:db8::10]:3478")
    assert pair_vips(listen, ()) == tuple(Vip(address, address) for address in listen)


V4, OTHER_V4, V6 = "192.0.2.10:3478", "192.0.2.11:3478", "[2001:db8::10]:3478"


@pytest.mark.parametrize(
    ("listen", "vip", "field"),
    [
        pytest.param([], [], "relay.listen", id="nothing"),
        pytest.param([], [V4], "relay.listen", id="no listen"),
        pytest.param([V4], [V4, OTHER_V4], "fleet.vip", id="a vip too many"),
        pytest.param([V4, OTHER_V4], [V4], "fleet.vip", id="a vip too few"),
        pytest.param([V4, V4], [], "relay.listen", id="listen doubled"),
        pytest.param([V4, V4], [V4, OTHER_V4], "relay.listen", id="listen doubled under two vips"),
        pytest.param([V4, OTHER_V4], [V4, V4], "fleet.vip", id="vip doubled"),
        pytest.param([V4], [V6], "fleet.vip", id="other family"),
        pytest.param([V4, V6], [V6, V4], "fleet.vip", id="families in the other order"),
        pytest.param([V4], ["203.0.113.10:0"], "fleet.vip", id="vip without a port"),
        pytest.param(["192.0.2.10:0"], [V4], "relay.listen", id="listen without a port: each worker's differs"),
        pytest.param(["192.0.2.10:0"], [], "relay.listen", id="listen without a port, no vip"),
    ],
)  # fmt: skip
def test_addresses_that_do_not_pair_up_are_named(listen: list[str], vip: list[str], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pair_vips(addresses(*listen), addresses(*vip))
    assert refused.value.field == field
