"""``relayctl transceivers``: the transceiver processes of this host, and how many calls they take."""

from typing import Any

import click

from cli.admin import ask
from cli.draining import Ended, follow
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_duration, print_json, print_table
from cli.seconds import check_seconds
from cli.sessions import show_sessions
from cli.transceiver_status import print_status
from cli.watching import looks, watch_flag
from host.channel import ChannelError
from host.errors import NotRunningError
from host.state_dir import StateDir
from transceiver.load_board import MAX_PROCESSES

# A process has 20 s to become ready.
_START_TIMEOUT_S = 60.0

any_names_argument = click.argument("names", nargs=-1, metavar="[NAME]...")
names_argument = click.argument("names", nargs=-1, required=True, metavar="NAME...")
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait for the calls to end.")
drain_option = click.option(
    "--drain",
    "drain_s",
    type=float,
    callback=check_seconds,
    metavar="SECONDS",
    help="Let calls go on for at most this long; default: [host] drain_s.",
)


@cli.group()
def transceivers() -> None:
    """Look at the transceivers of this host and their calls; drain, stop, start, add and remove them.

    \b
    Examples:
      relayctl transceivers status --watch
      relayctl transceivers drain transceiver-1 --deadline 600
      relayctl transceivers kick 1e73bf --reason "sends noise"
    """


@transceivers.command(name="list")
@watch_flag
@state_dir_option
@json_option
def list_transceivers(state_dir: StateDir, interval_s: float, watch: bool, as_json: bool) -> None:
    """List them: state, sessions, restarts."""
    for _ in looks(interval_s, watch):
        listed = _ask(state_dir, "transceivers")
        if as_json:
            print_json(listed)
        else:
            _print(listed)


@transceivers.command()
@any_names_argument
@watch_flag
@state_dir_option
@json_option
def status(
    state_dir: StateDir, names: tuple[str, ...], interval_s: float, watch: bool, as_json: bool
) -> None:
    """Show load, room and counts of each.

    CPU and memory beside their limits, sessions, why it is full, what it counted since it began; with Redis its lease, as other
    hosts read it. Without NAME: of all.
    """
    for _ in looks(interval_s, watch):
        rows = _ask(state_dir, "transceivers_status", names=names)
        fleet = ask(state_dir, "fleet")
        leases = {lease["name"]: lease["lease"] for lease in fleet["transceivers"] if lease["here"]}
        for row in rows:
            row["lease"] = leases.get(row["name"])
        if as_json:
            print_json(rows)
        else:
            print_status(rows, has_fleet=fleet["redis"] is not None)


@transceivers.command(name="sessions")
@any_names_argument
@watch_flag
@state_dir_option
@json_option
def list_sessions(
    state_dir: StateDir, names: tuple[str, ...], interval_s: float, watch: bool, as_json: bool
) -> None:
    """List sessions of some transceivers.

    As `relayctl sessions` lists those of all; also without NAME.
    """
    for _ in looks(interval_s, watch):
        show_sessions(_ask(state_dir, "sessions", names=names), as_json)


@transceivers.command()
@click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
@click.option(
    "--reason",
    "why",
    default="",
    metavar="TEXT",
    help="For the log; neither the client nor the counters get it.",
)
@state_dir_option
def kick(state_dir: StateDir, sessions: tuple[str, ...], why: str) -> None:
    """End sessions, with a goodbye to the client.

    SESSION is an id, or as many first letters of it as no other session has. If one of several is not found, none is ended.
    Sessions of processes that an earlier start left behind are out of reach.
    """
    for ended in _ask(state_dir, "kick", sessions=sessions, why=why):
        outcome = "kicked" if ended["kicked"] else "had ended already"
        click.echo(f"{ended['session']} of {ended['transceiver']} {outcome}")


@transceivers.command()
@names_argument
@click.option(
    "--deadline",
    "deadline_s",
    type=float,
    callback=check_seconds,
    metavar="SECONDS",
    help="End the calls that are left then; default: never.",
)
@no_wait_option
@state_dir_option
def drain(state_dir: StateDir, names: tuple[str, ...], deadline_s: float | None, no_wait: bool) -> None:
    """Take no new calls, and let those that there are end.

    Holds until `start`, also when a process crashes meanwhile or this command ends; not when relayctl is restarted.
    """
    listed = _ask(state_dir, "transceivers_drain", names=names, deadline_s=deadline_s)
    if not no_wait:
        follow(lambda: _ask(state_dir, "transceivers"), listed, names, Ended.DRAINED)


@transceivers.command()
@names_argument
@drain_option
@no_wait_option
@state_dir_option
def stop(state_dir: StateDir, names: tuple[str, ...], drain_s: float | None, no_wait: bool) -> None:
    """Drain, then end the process; it is not restarted."""
    listed = _ask(state_dir, "transceivers_stop", names=names, drain_s=drain_s)
    if not no_wait:
        follow(lambda: _ask(state_dir, "transceivers"), listed, names, Ended.STOPPED)


@transceivers.command()
@names_argument
@state_dir_option
def start(state_dir: StateDir, names: tuple[str, ...]) -> None:
    """Start what is stopped; let what is draining or drained take calls again."""
    listed = _ask(state_dir, "transceivers_start", timeout_s=_START_TIMEOUT_S, names=names)
    for row in listed:
        if row["name"] in names:
            click.echo(f"{row['name']} {row['state']}")


@transceivers.command()
@click.argument("count", type=click.IntRange(1, MAX_PROCESSES), metavar="N")
@drain_option
@no_wait_option
@state_dir_option
def scale(state_dir: StateDir, count: int, drain_s: float | None, no_wait: bool) -> None:
    """Have N of them: start more, or drain and remove the last ones.

    The next start has transceiver.processes again.
    """
    scaled = _ask(state_dir, "transceivers_scale", timeout_s=_START_TIMEOUT_S, count=count, drain_s=drain_s)
    listed = scaled["transceivers"]
    leaving = [row["name"] for row in listed if row["wanted"] == "removed"]
    if leaving and not no_wait:
        follow(lambda: _ask(state_dir, "transceivers"), listed, leaving, Ended.REMOVED)
    click.echo(f"{count_of(count, 'transceiver')} (before: {scaled['before']})")


def _ask(state_dir: StateDir, method: str, **params: Any) -> Any:
    try:
        return ask(state_dir, method, **params)
    except ChannelError:
        if "transceivers" in ask(state_dir, "status"):
            raise
        raise NotRunningError("no transceivers run here, only a relay") from None


def _print(listed: list[dict[str, Any]]) -> None:
    print_table(
        count_of(len(listed), "transceiver"),
        (
            "name",
            "pid",
            "state",
            "calls end in",
            "address",
            "sessions",
            "connected",
            "max",
            "full",
            "restarts",
        ),
        (
            (
                row["name"],
                row["pid"],
                row["state"],
                None if row["deadline_s"] is None else human_duration(row["deadline_s"]),
                row["address"],
                row["sessions"],
                row["connected"],
                row["max_sessions"],
                row["full"],
                row["restarts"],
            )
            for row in listed
        ),
    )
