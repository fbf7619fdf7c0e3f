"""How a measurement goes out: as tables, as Markdown, as JSON."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from bench.report import Sheet, print_sheets, sheet_as_markdown


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, ``--out`` and ``--markdown``, for ``put_out``."""
    for option in (
        click.option("--markdown", is_flag=True, help="The tables as they are in docs/performance.md."),
        click.option(
            "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON there as well."
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output in place of tables."),
    ):
        command = option(command)
    return command


def put_out(found: Any, sheets: Iterable[Sheet], *, as_json: bool, out: Path | None, markdown: bool) -> None:
    """Print what was found, of which ``sheets`` are the tables."""
    document = json.dumps(found, indent=1)
    if out:
        out.write_text(document + "\n")
    if as_json:
        print(document)
    elif markdown:
        for sheet in sheets:
            print("\n".join(sheet_as_markdown(sheet)) + "\n")
    else:
        print_sheets(list(sheets))
