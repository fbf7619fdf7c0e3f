"""``relayctl upgrade``: another version takes over from the supervisor that runs, and calls go on."""

from importlib.metadata import version

import click

from cli.admin import connected
from cli.lifecycle import check_start, last_arguments, start_command
from cli.main import cli, state_dir_option
from host.errors import OperatorError
from host.line_socket import LineSocket
from host.state_dir import StateDir


@cli.command()
@state_dir_option
def upgrade(state_dir: StateDir) -> None:
    """Have this relayctl take over from the supervisor that runs, with the options of the last start. Calls go on."""
    arguments = last_arguments(state_dir)
    with connected(state_dir) as sock:
        # What would not start must not be begun.
        check_start(state_dir, [*arguments, "--dry-run", "--takes-over"])
        line = LineSocket(sock)
        before = line.request("upgrade", command=start_command(state_dir, arguments), keeps=["lock", "http"])
        # A start has time limits of its own.
        sock.settimeout(None)
        outcome = line.receive_one() or {}
    if not outcome.get("begun", True):
        raise OperatorError(outcome["error"])
    if "pid" not in outcome:
        why = outcome.get("error", f"it said nothing; its log ({state_dir.log_file}, or the journal) may")
        raise OperatorError(
            f"the supervisor of version {before['version']} has ended, and that of {version('relayctl')} did not start: "
            f"{why}. Calls go on; `relayctl start` takes them over"
        )
    click.echo(f"upgraded: {before['version']} -> {version('relayctl')} (pid {outcome['pid']})")
