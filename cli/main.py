"""Entry point, the options that every command has, and exit codes.

0  done
1  failed
2  wrong usage or configuration; the message names the field
3  not running
4  already running, or an address is taken
5  a probe's call failed or lost packets
130  interrupted
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from host.errors import (
    AddressInUseError,
    AlreadyRunningError,
    ConfigError,
    NotRunningError,
    OperatorError,
)
from host.state_dir import StateDir, default_state_dir

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_RUNNING, EXIT_TAKEN, EXIT_CALL_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130
_EXIT_CODES: tuple[tuple[type[OperatorError], int], ...] = (
    (ConfigError, EXIT_USAGE),
    (NotRunningError, EXIT_NOT_RUNNING),
    (AlreadyRunningError, EXIT_TAKEN),
    (AddressInUseError, EXIT_TAKEN),
    (OperatorError, EXIT_FAILED),
)


def exit_code_of(error: OperatorError) -> int:
    """The documented exit code of an error."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


# Which module registers a command on the group below. Loaded when it is asked for: a caller's WebRTC stack and a compiler
# have no part in `relayctl status`.
_MODULES = {
    "bpf": "bpf",
    "cache": "cache",
    "demo": "demo",
    "drops": "drops",
    "fleet": "fleet",
    "flows": "flows",
    "init": "init",
    "maps": "maps",
    "probe": "probe",
    "restart": "lifecycle",
    "scale": "workers",
    "sessions": "sessions",
    "start": "lifecycle",
    "status": "status",
    "stop": "lifecycle",
    "token": "token",
    "transceivers": "transceivers",
    "upgrade": "upgrade",
    "workers": "workers",
}


class _Group(click.Group):
    """Loads commands when they are needed, and prints what an operator can act on without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            importlib.import_module(f"cli.{_MODULES[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            click.echo(f"relayctl: {error}", err=True)
            ctx.exit(exit_code_of(error))
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(EXIT_INTERRUPTED)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = (__doc__ or "").strip().splitlines()[2:]
        with formatter.section("Exit codes"):
            formatter.write_dl([(line.split()[0], line.split(maxsplit=1)[1]) for line in lines])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("relayctl"), "-V", "--version", prog_name="relayctl")
def cli() -> None:
    """Relay and transceiver for voice AI behind one public UDP address.

    Start with `relayctl start`, look with `relayctl status`, call with `relayctl probe`.
    """


def state_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --state-dir and passes a StateDir."""

    @click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        envvar="RELAYCTL_STATE_DIR",
        default=default_state_dir,
        show_default="/var/lib/relayctl for root, else ~/.local/state/relayctl",
        show_envvar=True,
        help="Where the supervisor keeps its socket, keys and log; also finds a running one.",
    )
    @functools.wraps(command)
    def with_state_dir(*args: Any, state_dir: Path, **kwargs: Any) -> Any:
        return command(*args, state_dir=StateDir(state_dir), **kwargs)

    return with_state_dir


config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="RELAYCTL_CONFIG",
    show_envvar=True,
    help="TOML file; `relayctl init` writes a commented one. Without it everything runs on loopback.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


def main() -> None:
    """Run the command line."""
    # numpy's threads would hear signals that a supervisor keeps for its successor (host.successor).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        sys.exit(cli(standalone_mode=True))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    # One module object: `python -m cli.main` would otherwise register commands on a second group.
    from cli.main import main as _main

    _main()
