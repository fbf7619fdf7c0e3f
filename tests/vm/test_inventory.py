"""The inventory's parser: what it reads, what it refuses and in which words. Needs no hosts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.errors import ConfigError
from tests.vm.inventory import CarrierCommands, parse_inventory, read_inventory

_EXAMPLE = Path(__file__).with_name("inventory.example.toml")

Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    """A small one that is good."""
    return {
        "name": "five machines",
        "vip": ["10.77.1.2:3478", "[fd77:1::2]:3478"],
        "hosts": {
            "client": {"ssh": "client", "interface": "eth1"},
            "relay": {"ssh": "relay", "public_interface": "eth1", "fleet_interface": "eth2"},
            "transceiver": [
                {"ssh": f"transceiver-{n}", "address": f"10.77.2.1{n}", "url": f"http://10.77.2.1{n}:8080/"}
                for n in (1, 2)
            ],
            "redis": {"ssh": "redis"},
        },
    }


def test_example_is_good_but_for_its_ssh_config(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(_EXAMPLE.read_text())
    with pytest.raises(ConfigError, match=r"inventory.ssh_config: .*rack7.ssh_config is no file"):
        read_inventory(path)
    (tmp_path / "rack7.ssh_config").touch()
    inventory = read_inventory(path)
    assert inventory.ssh_config == tmp_path / "rack7.ssh_config"
    assert [host.ssh for host in inventory.hosts] == [
        *("rack7-client", "rack7-relay", "rack7-transceiver-1", "rack7-transceiver-2", "rack7-redis")
    ]
    assert (inventory.relay.machine, inventory.client.machine) == ("port-12", "rack7-client")
    assert inventory.offers == {"chromium", "ipv4", "ipv6", "native", "redis", "two transceiver hosts"}


def test_defaults(document: Document) -> None:
    inventory = parse_inventory(document, Path())
    assert (inventory.ssh_config, inventory.carrier, inventory.driver) == (None, None, "")
    assert (inventory.xdp_mode, inventory.max_loss, inventory.client.chromium) == ("native", 0.0, False)
    assert (inventory.config, inventory.venv) == ("/etc/relayctl/relayctl.toml", "/opt/relayctl")
    assert (inventory.source, inventory.service) == ("/opt/src/relayctl", "relayctl.service")


def test_what_is_not_there_is_not_offered(document: Document) -> None:
    del document["hosts"]["redis"]
    document["hosts"]["transceiver"] = document["hosts"]["transceiver"][0]
    document |= {"vip": ["10.77.1.2:3478"], "xdp_mode": "generic"}
    inventory = parse_inventory(document, Path())
    assert inventory.offers == {"ipv4"}
    assert len(inventory.hosts) == 3


def test_one_arm_has_one_interface(document: Document) -> None:
    document["hosts"]["relay"]["fleet_interface"] = "eth1"
    assert parse_inventory(document, Path()).relay.interfaces == ("eth1",)


def test_carrier_commands(document: Document) -> None:
    commands = CarrierCommands("virsh domif-setlink {machine} {mac} down", "port {interface} up")
    document |= {"carrier_off": commands.off, "carrier_on": commands.on}
    assert parse_inventory(document, Path()).carrier == commands


def _set(value: Any, *keys: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *path, last = keys
        inner: Any = document
        for key in path:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(None, "name"), "inventory.name: is missing; write it as name ="),
        (_set(7, "name"), "inventory.name: needs a string, not 7"),
        (_set("x" * 1001, "name"), "inventory.name: has 1001 characters"),
        (_set("x", "nane"), "inventory.nane: unknown key; did you mean 'name'?"),
        (_set("skb", "xdp_mode"), "inventory.xdp_mode: needs to be one of native, generic, not 'skb'"),
        (_set([], "vip"), "inventory.vip: is missing; write what clients are told"),
        (_set(["10.77.1.2"], "vip"), "inventory.vip: "),
        (_set(["0.0.0.0:3478"], "vip"), "inventory.vip: 0.0.0.0:3478 is a wildcard"),
        (_set(101.0, "max_loss"), "inventory.max_loss: needs percent, 0 to 100, not 101"),
        (_set(float("nan"), "max_loss"), "inventory.max_loss: needs percent"),
        (_set(-1, "boot_s"), "inventory.boot_s: needs seconds of 0 or more"),
        (_set("opt/relayctl", "venv"), "inventory.venv: needs an absolute path on the hosts"),
        (_set("/opt; reboot", "source"), "inventory.source: needs an absolute path on the hosts"),
        (_set("virsh {mac} down", "carrier_off"), "inventory.carrier_on: is missing"),
        (_set("a; reboot", "service"), "inventory.service: needs a systemd unit"),
        (_set(3, "hosts"), "hosts: needs tables, as [hosts.client], not 3"),
        (_set(None, "hosts"), "hosts.client: is missing; write a table [hosts.client]"),
        (_set(None, "hosts", "relay"), "hosts.relay: is missing; write a table [hosts.relay]"),
        (_set(None, "hosts", "transceiver"), "hosts.transceiver: is missing; write a table [[hosts.trans"),
        (_set([], "hosts", "transceiver"), "hosts.transceiver: needs 1 to 16 hosts, not 0"),
        (_set([{}] * 17, "hosts", "transceiver"), "hosts.transceiver: needs 1 to 16 hosts, not 17"),
        (_set([{}] * 2, "hosts", "redis"), "hosts.redis: is there 2 times; only transceiver may be"),
        (_set("relay", "hosts", "relay"), "hosts.relay: needs to be a table ([hosts.relay]), not 'relay'"),
        (_set({}, "hosts", "gateway"), "hosts.gateway: unknown host; there are client, relay, redis, trans"),
        (_set(None, "hosts", "redis", "ssh"), 'hosts.redis.ssh: is missing; write it as ssh = "relay"'),
        (_set("-oProxyCommand=x", "hosts", "redis", "ssh"), "hosts.redis.ssh: '-oProxyCommand=x' is no name"),
        (_set("relay", "hosts", "redis", "ssh"), "hosts: relay is there twice; each needs a machine"),
        (_set("eth1 down", "hosts", "client", "interface"), "hosts.client.interface: 'eth1 down' is no name"),
        (_set("x" * 16, "hosts", "relay", "fleet_interface"), "hosts.relay.fleet_interface: 'xxx"),
        (_set("eth2", "hosts", "relay", "interface"), "hosts.relay.interface: unknown key; did you mean"),
        (_set("yes", "hosts", "client", "chromium"), "hosts.client.chromium: needs true or false"),
        (_set("ten", "hosts", "transceiver", 1, "address"), "hosts.transceiver[1].address: 'ten' is no IP"),
        (
            _set("10.77.2.11", "hosts", "transceiver", 0, "url"),
            "hosts.transceiver[0].url: '10.77.2.11' is no",
        ),
        (
            _set("http://a/x", "hosts", "transceiver", 0, "url"),
            "hosts.transceiver[0].url: 'http://a/x' is no",
        ),
    ],
)
def test_refusal_names_the_field_and_the_way_out(
    document: Document, change: Callable[[Document], None], said: str
) -> None:
    change(document)
    with pytest.raises(ConfigError) as refused:
        parse_inventory(document, Path())
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("virsh {host} down", "inventory.carrier_off: {host} is no placeholder; there are {machine}"),
        ("virsh {mac down", "inventory.carrier_off: {mac down is no placeholder"),
        ("virsh mac} down", "inventory.carrier_off: }"),
        ("virsh '{mac}", "inventory.carrier_off: cannot be split into words (No closing quotation)"),
    ],
)
def test_carrier_command_that_cannot_be_run(document: Document, command: str, said: str) -> None:
    document |= {"carrier_off": command, "carrier_on": "true"}
    with pytest.raises(ConfigError) as refused:
        parse_inventory(document, Path())
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory); tests/vm/inventory.example.toml shows one"),
        (b"name = ", "is not TOML: "),
        (b"\xff", "is not TOML: "),
        (b"#" * 70_000, "is longer than 65536 bytes"),
        (b"a = " + b"[" * 40_000, "is not TOML: "),
    ],
)
def test_file_that_is_no_inventory(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "inventory.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_inventory(path)
    assert str(refused.value).startswith(f"{path}: {said}")


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
_names = ["name", "vip", "hosts", "carrier_off", "carrier_on", "ssh_config", "max_loss", "boot_s", "config"]
_hosts = st.dictionaries(st.sampled_from(["client", "relay", "redis", "transceiver"]), _values)


@given(st.dictionaries(st.sampled_from(_names), _values | _hosts))
def test_any_other_document_raises_config_error_alone(document: Document) -> None:
    with pytest.raises(ConfigError):
        parse_inventory(document, Path())
