"""How the command line prints: tables for people, JSON for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, wrap_last: bool = False
) -> None:
    """A title and a table below it; numbers are set right, nothing is ever cut.

    A table that is wider than the terminal runs over, unless the last column may wrap.
    """
    click.echo(title)
    rows = list(rows)
    if not rows:
        click.echo("  none\n")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        wraps = wrap_last and index == len(columns) - 1
        table.add_column(
            column, justify="right" if numeric else "left", no_wrap=not wraps, header_style="bold"
        )
    for row in rows:
        # Text: brackets of an IPv6 address are no markup.
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = min(needed, console.width) if wrap_last and console.is_terminal else needed
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one form as a table; the fields are the columns."""
    columns = list(rows[0]) if rows else []
    print_table(title, columns, [[row.get(column) for column in columns] for row in rows], wrap_last=True)


def print_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line, the values in one column."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {'-' if value in (None, '') else value}")
    click.echo()


def count_of(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_bytes(count: int) -> str:
    """1536 → 1.5 KiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def human_duration(seconds: float) -> str:
    """93784 → 1d 2h 3m."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    shown = [f"{value}{unit}" for value, unit in parts if value]
    return " ".join(shown[:3])
