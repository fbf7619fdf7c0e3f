"""``relayctl init``: write a commented configuration."""

from pathlib import Path

import click

from cli.config import TEMPLATE
from cli.main import cli
from host.errors import OperatorError


@cli.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), default="relayctl.toml")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(path: Path, force: bool) -> None:
    """Write a commented configuration to PATH (relayctl.toml; - prints it)."""
    if str(path) == "-":
        click.echo(TEMPLATE, nl=False)
        return
    try:
        with path.open("w" if force else "x") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise OperatorError(f"{path} is there already; --force overwrites it") from None
    except OSError as error:
        raise OperatorError(f"cannot write {path} ({error.strerror})") from None
    click.echo(f"wrote {path}; start with `relayctl start --config {path}`")
