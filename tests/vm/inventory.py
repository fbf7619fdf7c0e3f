"""The hosts that tests/vm runs on, read from a TOML file: see inventory.example.toml and docs/vm-testing.md."""

import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from host.config_table import ConfigTable
from host.errors import ConfigError
from wire.address import Address

# A file of this size is not an inventory.
_MAX_BYTES = 64 * 1024
_MAX_CHARS = 1000
_MAX_TRANSCEIVER_HOSTS = 16
# Linux: IFNAMSIZ is 16 with its zero byte; neither a slash nor white space.
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
# A host alias or user@address; what begins with a dash would be an option of ssh.
_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]{0,254}")
_PLACEHOLDERS = ("{machine}", "{mac}", "{interface}")
_ROLES = ("client", "relay", "redis", "transceiver")


@dataclass(frozen=True)
class HostEntry:
    """A host. ``ssh`` is what the ssh client is given; ``machine`` what a hypervisor or a switch calls it."""

    ssh: str
    machine: str


@dataclass(frozen=True)
class ClientEntry(HostEntry):
    """Who calls. ``chromium``: a Chromium is installed there, and its absence is a failure."""

    interface: str
    chromium: bool


@dataclass(frozen=True)
class RelayEntry(HostEntry):
    """``public_interface`` and ``fleet_interface`` are the same on a relay with one arm."""

    public_interface: str
    fleet_interface: str

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys((self.public_interface, self.fleet_interface)))


@dataclass(frozen=True)
class TransceiverEntry(HostEntry):
    """``address`` is that of its transceivers on the fleet's network, ``url`` its signaling as the client reaches it."""

    address: str
    url: str


@dataclass(frozen=True)
class CarrierCommands:
    """Take the carrier of a host's interface away and give it back, run on the controller, without a shell."""

    off: str
    on: str


@dataclass(frozen=True)
class Inventory:
    """Everything that the file says.

    ssh_config: for the ssh client; None: the user's own.
    max_loss: percent of a call's packets that may be lost where the relay is to lose none.
    command_s: longest time for a command on a host, and for a call to come up.
    boot_s: longest time from a reset until ssh answers again.
    config, venv, source: the configuration, the installed environment and the source tree on the hosts.
    service: the systemd unit.
    """

    name: str
    ssh_config: Path | None
    xdp_mode: str
    driver: str
    vips: tuple[Address, ...]
    client: ClientEntry
    relay: RelayEntry
    transceivers: tuple[TransceiverEntry, ...]
    redis: HostEntry | None
    carrier: CarrierCommands | None
    max_loss: float
    command_s: float
    boot_s: float
    config: str
    venv: str
    source: str
    service: str

    @property
    def offers(self) -> frozenset[str]:
        """What tests may need and not every set of hosts has."""
        has = {
            "chromium": self.client.chromium,
            "ipv4": any(vip.family == 4 for vip in self.vips),
            "ipv6": any(vip.family == 6 for vip in self.vips),
            "native": self.xdp_mode == "native",
            "redis": self.redis is not None,
            "two transceiver hosts": len(self.transceivers) > 1,
        }
        return frozenset(what for what, is_there in has.items() if is_there)

    @property
    def hosts(self) -> tuple[HostEntry, ...]:
        """Every host."""
        return (self.client, self.relay, *self.transceivers, *([self.redis] if self.redis else []))


class _Table(ConfigTable):
    """Adds values that have no default."""

    def need(self, key: str, example: str) -> str:
        """A string that has to be there."""
        text = self.take(key, str, "")
        if not text:
            raise ConfigError(self.field(key), f"is missing; write it as {key} = {example}")
        if len(text) > _MAX_CHARS:
            raise ConfigError(self.field(key), f"has {len(text)} characters; {_MAX_CHARS} are enough")
        return text

    def need_match(self, key: str, pattern: re.Pattern[str], what: str, example: str) -> str:
        """A string that the whole pattern matches."""
        text = self.need(key, example)
        if not pattern.fullmatch(text):
            raise ConfigError(self.field(key), f"{text!r} is no {what}; write it as {key} = {example}")
        return text


def read_inventory(path: Path) -> Inventory:
    """Raises ConfigError, which names the field and the way out."""
    return parse_inventory(_read_toml(path), path.parent)


def _read_toml(path: Path) -> dict[str, Any]:
    way_out = "tests/vm/inventory.example.toml shows one"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror}); {way_out}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(str(path), f"is longer than {_MAX_BYTES} bytes, so it is no inventory; {way_out}")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}; {way_out}") from None


def parse_inventory(document: Mapping[str, Any], directory: Path) -> Inventory:
    """``directory`` is where relative file names begin. Raises ConfigError."""
    table = _Table("inventory", document, directory)
    hosts = _read_hosts(document.get("hosts", {}))
    table.leave("hosts")
    inventory = Inventory(
        name=table.need("name", '"two racks"'),
        ssh_config=_read_ssh_config(table),
        xdp_mode=table.take_choice("xdp_mode", "native", ("native", "generic")),
        driver=table.take("driver", str, ""),
        vips=_read_vips(table),
        client=_read_client(_only(hosts, "client")),
        relay=_read_relay(_only(hosts, "relay")),
        transceivers=tuple(_read_transceiver(host) for host in _some(hosts, "transceiver")),
        redis=_read_host(_only(hosts, "redis")) if "redis" in hosts else None,
        carrier=_read_carrier(table),
        max_loss=_read_percent(table, "max_loss"),
        command_s=table.take_seconds("command_s", 120.0),
        boot_s=table.take_seconds("boot_s", 900.0),
        config=_read_remote_path(table, "config", "/etc/relayctl/relayctl.toml"),
        venv=_read_remote_path(table, "venv", "/opt/relayctl"),
        source=_read_remote_path(table, "source", "/opt/src/relayctl"),
        service=_read_service(table),
    )
    table.finish()
    _refuse_doubles(inventory)
    return inventory


def _read_hosts(values: Any) -> dict[str, list[_Table]]:
    """A list of tables for each role."""
    if not isinstance(values, Mapping):
        raise ConfigError("hosts", f"needs tables, as [hosts.client], not {values!r}")
    hosts = {}
    for role, entries in values.items():
        if role not in _ROLES:
            raise ConfigError(f"hosts.{role}", f"unknown host; there are {', '.join(_ROLES)}")
        entries = entries if isinstance(entries, list) else [entries]
        if not 1 <= len(entries) <= _MAX_TRANSCEIVER_HOSTS:
            raise ConfigError(
                f"hosts.{role}", f"needs 1 to {_MAX_TRANSCEIVER_HOSTS} hosts, not {len(entries)}"
            )
        names = (
            [f"hosts.{role}"] if len(entries) == 1 else [f"hosts.{role}[{i}]" for i in range(len(entries))]
        )
        hosts[role] = [_Table(name, entry) for name, entry in zip(names, entries, strict=True)]
    return hosts


def _some(hosts: dict[str, list[_Table]], role: str) -> list[_Table]:
    if role not in hosts:
        example = f"[[hosts.{role}]]" if role == "transceiver" else f"[hosts.{role}]"
        raise ConfigError(f"hosts.{role}", f"is missing; write a table {example}")
    return hosts[role]


def _only(hosts: dict[str, list[_Table]], role: str) -> _Table:
    found = _some(hosts, role)
    if len(found) > 1:
        raise ConfigError(f"hosts.{role}", f"is there {len(found)} times; only transceiver may be")
    return found[0]


def _read_host(table: _Table, *, finish: bool = True) -> HostEntry:
    ssh = table.need_match("ssh", _TARGET, "name of ssh_config, or USER@ADDRESS", '"relay"')
    machine = table.take("machine", str, "") or ssh
    if finish:
        table.finish()
    return HostEntry(ssh, machine)


def _read_client(table: _Table) -> ClientEntry:
    host = _read_host(table, finish=False)
    client = ClientEntry(
        host.ssh, host.machine, _need_interface(table, "interface"), table.take("chromium", bool, False)
    )
    table.finish()
    return client


def _read_relay(table: _Table) -> RelayEntry:
    host = _read_host(table, finish=False)
    names = [_need_interface(table, key) for key in ("public_interface", "fleet_interface")]
    table.finish()
    return RelayEntry(host.ssh, host.machine, *names)


def _read_transceiver(table: _Table) -> TransceiverEntry:
    host = _read_host(table, finish=False)
    address = table.need("address", '"10.0.1.7"')
    try:
        ip = ip_address(address)
    except ValueError:
        raise ConfigError(table.field("address"), f"{address!r} is no IP address") from None
    url = table.need("url", '"http://10.0.1.7:8080/"')
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            table.field("url"), f'{url!r} is no signaling URL; write url = "http://10.0.1.7:8080/"'
        )
    table.finish()
    return TransceiverEntry(host.ssh, host.machine, str(ip), url)


def _need_interface(table: _Table, key: str) -> str:
    return table.need_match(key, _INTERFACE, "name of a network interface", '"eth1"')


def _read_ssh_config(table: _Table) -> Path | None:
    path = table.take_path("ssh_config", None)
    if path is not None and not path.is_file():
        raise ConfigError(
            table.field("ssh_config"),
            f"{path} is no file; `vagrant ssh-config` prints one, and without the key ssh takes the user's own",
        )
    return path


def _read_vips(table: _Table) -> tuple[Address, ...]:
    vips = table.take_addresses("vip", [])
    if not vips:
        raise ConfigError(
            table.field("vip"), 'is missing; write what clients are told, as vip = ["192.0.2.2:3478"]'
        )
    return vips


def _read_percent(table: _Table, key: str) -> float:
    percent = table.take(key, float, 0.0)
    if not 0 <= percent <= 100:
        raise ConfigError(table.field(key), f"needs percent, 0 to 100, not {percent}")
    return percent


def _read_remote_path(table: _Table, key: str, default: str) -> str:
    text = table.take(key, str, default)
    if not re.fullmatch(r"/[A-Za-z0-9_./@+-]{1,1000}", text):
        raise ConfigError(
            table.field(key), f"needs an absolute path on the hosts, without blanks, not {text!r}"
        )
    return text


def _read_service(table: _Table) -> str:
    text = table.take("service", str, "relayctl.service")
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,250}\.service", text):
        raise ConfigError(table.field("service"), f"needs a systemd unit, as relayctl.service, not {text!r}")
    return text


def _read_carrier(table: _Table) -> CarrierCommands | None:
    commands = {key: table.take(key, str, "") for key in ("carrier_off", "carrier_on")}
    if not any(commands.values()):
        return None
    for key, command in commands.items():
        if not command:
            raise ConfigError(table.field(key), "is missing; carrier_off and carrier_on are used together")
        for found in re.findall(r"[{}][^{}]*}?", command):
            if found not in _PLACEHOLDERS:
                raise ConfigError(
                    table.field(key), f"{found} is no placeholder; there are {', '.join(_PLACEHOLDERS)}"
                )
        try:
            shlex.split(command)
        except ValueError as error:
            raise ConfigError(table.field(key), f"cannot be split into words ({error})") from None
    return CarrierCommands(commands["carrier_off"], commands["carrier_on"])


def _refuse_doubles(inventory: Inventory) -> None:
    """A host that is two of them would be reset under a test that relies on the other."""
    seen: set[str] = set()
    for host in inventory.hosts:
        if host.ssh in seen:
            raise ConfigError("hosts", f"{host.ssh} is there twice; each needs a machine of its own")
        seen.add(host.ssh)
