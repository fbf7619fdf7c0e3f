"""Reads one table of a TOML configuration: every value checked, every error naming its field, no key ignored."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

from host.errors import ConfigError
from wire.address import Address

_Value = TypeVar("_Value")
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
}


TABLES = ("fleet", "relay", "transceiver", "redis", "host")


def read_document(path: Path | None) -> dict[str, Any]:
    """All tables of a configuration file, each one of TABLES; none without a file. Raises ConfigError."""
    document = {} if path is None else _read_toml(path)
    for name in document:
        if name not in TABLES:
            raise ConfigError(name, f"unknown table; known are {', '.join(f'[{table}]' for table in TABLES)}")
    return document


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(
            str(path), f"cannot be read ({error.strerror}); `relayctl init` writes one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None


class ConfigTable:
    """Values are taken out one by one; ``finish`` refuses what nobody took."""

    def __init__(self, name: str, values: Any, directory: Path = Path()) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(name, f"needs to be a table ([{name}]), not {values!r}")
        self._name = name
        self._values = dict(values)
        self._directory = directory.absolute()
        self._known: list[str] = []

    def field(self, key: str) -> str:
        """The full name of a key, as errors print it."""
        return f"{self._name}.{key}"

    def take(self, key: str, kind: type[_Value], default: _Value) -> _Value:
        """The value of ``key``, or the default if it is absent."""
        self._known.append(key)
        value: Any = self._values.pop(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(self.field(key), f"needs {_TYPE_NAMES.get(kind, kind.__name__)}, not {value!r}")
        return value

    def take_int(self, key: str, default: int, *, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self.take(key, int, default)
        if not low <= value <= high:
            raise ConfigError(self.field(key), f"needs to be {low} to {high}, not {value}")
        return value

    def take_seconds(self, key: str, default: float) -> float:
        """A span of time, 0 or more."""
        value = self.take(key, float, default)
        if not 0 <= value < float("inf"):
            raise ConfigError(self.field(key), f"needs seconds of 0 or more, not {value}")
        return value

    def take_address(self, key: str, default: str, *, wildcard: bool = False) -> Address:
        """ADDRESS:PORT; a wildcard address only where ``wildcard`` allows it."""
        return self._address(key, self.take(key, str, default), wildcard=wildcard)

    def take_addresses(self, key: str, default: list[str]) -> tuple[Address, ...]:
        """A list of ADDRESS:PORT."""
        return tuple(self._address(key, text) for text in self._strings(key, default))

    def take_networks(self, key: str, default: list[str]) -> tuple[IPv4Network | IPv6Network, ...]:
        """A list of NETWORK/PREFIX."""
        networks = []
        for text in self._strings(key, default):
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                raise ConfigError(self.field(key), f"{error} (write 10.0.0.0/8 or 2001:db8::/32)") from None
        return tuple(networks)

    def take_choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        value = self.take(key, str, default)
        if value not in choices:
            raise ConfigError(self.field(key), f"needs to be one of {', '.join(choices)}, not {value!r}")
        return value

    def take_strings(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty if absent."""
        return tuple(self._strings(key, []))

    def take_path(self, key: str, default: Path | None) -> Path | None:
        """A file name, relative to the configuration's directory; empty means the default."""
        text = self.take(key, str, "")
        if not text:
            return default
        try:
            return self._directory / Path(text).expanduser()
        except RuntimeError as error:
            raise ConfigError(self.field(key), f"{text}: {error}") from None

    def leave(self, *keys: str) -> None:
        """Keys that are known, whose values are another's to check."""
        self._known.extend(keys)
        for key in keys:
            self._values.pop(key, None)

    def finish(self) -> None:
        """Raise ConfigError if a key is left over."""
        for key in self._values:
            near = difflib.get_close_matches(key, self._known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(self._known))}"
            raise ConfigError(self.field(key), f"unknown key; {hint}")

    def _strings(self, key: str, default: list[str]) -> list[str]:
        values = self.take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise ConfigError(self.field(key), f"needs a list of strings, not {values!r}")
        return values

    def _address(self, key: str, text: str, *, wildcard: bool = False) -> Address:
        try:
            address = Address.parse(text)
        except ValueError as error:
            raise ConfigError(self.field(key), str(error)) from None
        if address.ip.is_unspecified and not wildcard:
            raise ConfigError(
                self.field(key),
                f"{text} is a wildcard; name the address, as replies must leave from the one that clients sent to",
            )
        return address
