"""``relayctl maps``: what is in the kernel's maps, on a live relay or one whose supervisor is dead."""

import contextlib
import time
from typing import Any

import click

from cli.filters import RowFilter, filter_options
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, print_json, print_rows, print_table
from cli.view import open_pins
from cli.watching import turns, watch_options
from host.errors import ConfigError, OperatorError
from host.state_dir import StateDir
from relay.dataplane.bpf.abi import ARRAY, MAPS, PERCPU_ARRAY
from relay.dataplane.bpf.describe import COUNTS, MapReader, Row
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.syscall import map_info

_MEANINGS = {
    "settings": "how to decide; written by the supervisor",
    "listeners": "addresses that we listen on, and what clients are told",
    "networks": "transceiver networks",
    "next_hops": "ways to transceivers' hosts, for XDP",
    "steering": "Maglev table: a client's hash → slot",
    "sockets": "group and slot → a worker's socket",
    "cores": "a queue to each worker's core (cpumap)",
    "heartbeat": "when a worker beat last",
    "workers": "who serves a slot",
    "counters": "what each worker did",
    "flows": "assured flows: client → transceiver",
    "provisional": "flows without media both ways yet",
    "buckets": "rate of unknown packets, by source",
    "verdicts": "what XDP decided",
    "forwarded_bytes": "payload that XDP forwarded",
    "core_choices": "what cpumap made of packets handed up",
}
# Columns that a table leaves out, as they say the same for a machine.
_JSON_ONLY = ("by_cpu",)


@cli.group()
def maps() -> None:
    """Inspect the BPF maps of a relay, also when its supervisor is dead."""


name_argument = click.argument("name", type=click.Choice(list(MAPS)), metavar="NAME")


@maps.command(name="list")
@state_dir_option
@json_option
def list_maps(state_dir: StateDir, as_json: bool) -> None:
    """List the maps: kind, sizes, entries, and what each is for."""
    path = PinDir(state_dir.path).path
    with contextlib.closing(open_pins(state_dir)) as programs:
        rows = []
        for name, bpf_map in programs.maps.items():
            info = map_info(bpf_map.fd)
            used = sum(1 for _ in bpf_map.items()) if name != "steering" else info.max_entries
            rows.append(
                {
                    "name": name,
                    "id": info.id,
                    "kind": bpf_map.layout.kind.name,
                    "key_bytes": info.key_size,
                    "value_bytes": info.value_size,
                    "used": used,
                    "max_entries": info.max_entries,
                    "what": _MEANINGS[name],
                }
            )
    if as_json:
        print_json({"pins": str(path), "maps": rows})
        return
    print_rows(f"{len(rows)} maps, pinned in {path}", rows)


@maps.command()
@name_argument
@filter_options
@state_dir_option
@json_option
def show(
    state_dir: StateDir, name: str, client: str | None, conditions: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """Show every element of a map."""
    keep = RowFilter(client, conditions)
    with contextlib.closing(open_pins(state_dir)) as programs:
        reader = MapReader(programs)
        rows = keep.apply(reader.rows(name))
    _print(name, rows[:limit], len(rows), as_json)


@maps.command()
@name_argument
@click.argument("key", nargs=-1, required=True)
@state_dir_option
@json_option
def get(state_dir: StateDir, name: str, key: tuple[str, ...], as_json: bool) -> None:
    """Show one element; KEY is written as `maps show` prints it."""
    with contextlib.closing(open_pins(state_dir)) as programs:
        reader = MapReader(programs)
        try:
            rows = reader.get(name, key)
        except ValueError as error:
            raise ConfigError("KEY", str(error)) from None
    if not rows and MAPS[name].kind not in (ARRAY, PERCPU_ARRAY):
        raise OperatorError(f"{name} has no {' '.join(key)}")
    _print(name, rows, len(rows), as_json)


@maps.command()
@name_argument
@filter_options
@watch_options
@state_dir_option
def watch(
    state_dir: StateDir,
    name: str,
    client: str | None,
    conditions: tuple[str, ...],
    limit: int,
    interval_s: float,
    count: int | None,
) -> None:
    """Show a map again and again, with the rate of every count."""
    keep = RowFilter(client, conditions)
    with contextlib.closing(open_pins(state_dir)) as programs:
        reader = MapReader(programs)
        before, seen_at = _by_identity(reader.rows(name)), time.monotonic()
        for _ in turns(interval_s, count):
            rows, now = reader.rows(name), time.monotonic()
            shown = keep.apply(_with_rates(rows, before, now - seen_at))
            _print(name, shown[:limit], len(shown), as_json=False)
            before, seen_at = _by_identity(rows), now


def _print(name: str, rows: list[Row], total: int, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    shown = [{field: row[field] for field in row if field not in _JSON_ONLY} for row in rows]
    title = (
        f"{name}: {len(rows)} of {total} rows" if len(rows) < total else f"{name}: {count_of(total, 'row')}"
    )
    if len(shown) == 1 and len(shown[0]) > 6:
        print_table(name, ("field", "value"), list(shown[0].items()), wrap_last=True)
    else:
        print_rows(title, shown)


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(
        row.get(field) for field in ("client", "listen", "slot", "counter", "verdict", "choice", "direction")
    )


def _by_identity(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    return {_identity(row): row for row in rows}


def _with_rates(rows: list[Row], before: dict[tuple[Any, ...], Row], seconds: float) -> list[Row]:
    """Each count with its rate beside it."""
    rated = []
    for row in rows:
        old, new = before.get(_identity(row), {}), {}
        for field, value in row.items():
            new[field] = value
            if field in COUNTS:
                new[f"{field}/s"] = round((value - old.get(field, 0)) / seconds, 1)
        rated.append(new)
    return rated
