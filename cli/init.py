"""``relayctl init``: write a commented configuration."""

import json
from pathlib import Path

import click

from cli.config import TEMPLATE
from cli.main import cli
from host.errors import OperatorError

_NO_USER = '# user = ""'


@cli.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), default="relayctl.toml")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option("--user", metavar="NAME", help="Set host.user: whom workers and transceivers run as.")
def init(path: Path, force: bool, user: str | None) -> None:
    """Write a commented configuration to PATH (relayctl.toml; - prints it)."""
    template = TEMPLATE if user is None else TEMPLATE.replace(_NO_USER, f"user = {json.dumps(user)}")
    if str(path) == "-":
        click.echo(template, nl=False)
        return
    try:
        with path.open("w" if force else "x") as file:
            file.write(template)
    except FileExistsError:
        raise OperatorError(f"{path} is there already; --force overwrites it") from None
    except OSError as error:
        raise OperatorError(f"cannot write {path} ({error.strerror})") from None
    click.echo(f"wrote {path}; start with `relayctl start --config {path}`")
