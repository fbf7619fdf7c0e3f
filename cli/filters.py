"""Which rows to show: --client and --where, checked before anything is read."""

import operator
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import click

from host.errors import ConfigError
from wire.address import Address

Row = dict[str, Any]
_NOTHING = "-"  # as tables show it
_OPERATORS = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --client, --where and --limit."""
    for option in (
        click.option(
            "--limit", type=click.IntRange(1), default=1000, show_default=True, help="Rows at most."
        ),
        click.option(
            "--where",
            "conditions",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Only rows where this holds; also !=, <, >, <=, >=; repeatable.",
        ),
        click.option("--client", metavar="ADDR[:PORT]", help="Only rows of this client."),
    ):
        command = option(command)
    return command


def parse_client(client: str) -> str:
    """The text form that rows have, of an address with or without a port. Raises ConfigError."""
    try:
        return str(ip_address(client))
    except ValueError:
        pass
    try:
        return str(Address.parse(client))
    except ValueError:
        raise ConfigError("--client", f"{client!r} is no IP address, and no ADDR:PORT") from None


class RowFilter:
    """--client and --where, checked once."""

    def __init__(self, client: str | None, conditions: tuple[str, ...]) -> None:
        self._client = None if client is None else parse_client(client)
        self._conditions = [_parse_condition(text) for text in conditions]

    def apply(self, rows: list[Row]) -> list[Row]:
        """The rows that pass. Raises ConfigError for a field that no row has."""
        if rows:
            fields = rows[0].keys()
            for field, _, _ in self._conditions:
                if field not in fields:
                    raise ConfigError("--where", f"no field {field!r} here; there are {', '.join(fields)}")
            if self._client is not None and "client" not in fields:
                raise ConfigError("--client", "the rows of this map have no client")
        return [row for row in rows if self._passes(row)]

    def _passes(self, row: Row) -> bool:
        if self._client is not None and row["client"] != self._client:
            host = Address.parse(row["client"]).ip
            if str(host) != self._client:
                return False
        return all(_compare(row[field], sign, value) for field, sign, value in self._conditions)


def _parse_condition(text: str) -> tuple[str, str, str]:
    for sign in _OPERATORS:
        field, found, value = text.partition(sign)
        if found and field and not field.endswith(("!", "<", ">")):
            return field.strip(), sign, value.strip()
    raise ConfigError(
        "--where", f"{text!r} is no condition; write FIELD=VALUE, as state=assured or packets_up>1000"
    )


def _compare(actual: Any, sign: str, wanted: str) -> bool:
    compare = _OPERATORS[sign]
    if actual is None or wanted == _NOTHING:
        # nothing is neither more nor less than anything
        return sign in ("=", "!=") and bool(compare(actual is None, wanted == _NOTHING))
    if isinstance(actual, bool) or not isinstance(actual, int | float):
        return bool(compare(str(actual).lower(), wanted.lower()))
    try:
        return bool(compare(actual, float(wanted)))
    except ValueError:
        raise ConfigError("--where", f"{wanted!r} is no number") from None
