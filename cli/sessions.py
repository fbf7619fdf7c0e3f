"""``relayctl sessions``: the calls of this host's transceivers, in a table, and one of them in full."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from cli.admin import ask
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_duration, print_json, print_pairs, print_table
from cli.watching import looks, watch_flag
from host.state_dir import StateDir
from transceiver.session_names import find_sessions, short_length

Session = dict[str, Any]

_DIRECTIONS = (("up", "from the client"), ("down", "to the client"))
# What is counted of both directions, then of what comes from the client alone.
_COUNTS = ("packets", "lost", "concealed", "filled", "late", "excess", "duplicates", "reordered")


@cli.command()
@click.argument("session", required=False, metavar="[SESSION]")
@watch_flag
@state_dir_option
@json_option
def sessions(state_dir: StateDir, session: str | None, interval_s: float, watch: bool, as_json: bool) -> None:
    """List sessions: client, round trip, loss, jitter and bitrate each way, setup time; or show one in full.

    SESSION is an id, or as many first letters of it as no other session has.

    \b
    Examples:
      relayctl sessions --watch
      relayctl sessions 1e73bf
    """
    for _ in looks(interval_s, watch):
        listed: list[Session] = ask(state_dir, "sessions")
        if session is None:
            show_sessions(listed, as_json)
            continue
        [wanted] = find_sessions([row["session"] for row in listed], [session])
        chosen = next(row for row in listed if row["session"] == wanted)
        if as_json:
            print_json(chosen)
        else:
            _print_one(chosen)


def show_sessions(listed: Sequence[Session], as_json: bool) -> None:
    """A table, whose ids are as short as tells them apart; or JSON."""
    if as_json:
        print_json(listed)
        return
    length = short_length([session["session"] for session in listed])
    print_table(
        count_of(len(listed), "session") + "; loss, jitter and bitrate: up/down" * bool(listed),
        (
            "session",
            "transceiver",
            "state",
            "age",
            "client",
            "rtt ms",
            "loss %",
            "jitter ms",
            "kbit/s",
            "setup ms",
        ),
        (
            (
                session["session"][:length],
                session["transceiver"],
                session["state"],
                human_duration(session["age_s"]),
                session["client"],
                session["round_trip_ms"],
                _both(session, _loss),
                _both(session, _jitter),
                _both(session, _bitrate),
                _setup_ms(session),
            )
            for session in listed
        ),
    )


def _print_one(session: Session) -> None:
    phases = ", ".join(
        f"{name.replace('_', ' ')} {seconds * 1000:.0f} ms" for name, seconds in session["phases_s"].items()
    )
    round_trip = session["round_trip_ms"]
    dropped = ", ".join(f"{name} {count}" for name, count in session["counters"].items() if count)
    print_pairs(
        (
            ("session", session["session"]),
            ("transceiver", session["transceiver"]),
            ("state", f"{session['state']}, {human_duration(session['age_s'])} old"),
            ("client", session["client"]),
            ("vip", session["vip"]),
            ("paths", f"{session['paths']}, {session['moves']} moves"),
            ("longest gap", f"{session['longest_gap_ms']:.0f} ms"),
            ("setup", phases),
            ("round trip", None if round_trip is None else f"{round_trip} ms"),
            ("server ufrag", session["server_ufrag"]),
            ("dropped", dropped),
        )
    )
    if session["up"] is None:
        click.echo("audio is not counted: it goes by aiortc's own receiver and sender, or there is none\n")
        return
    print_table(
        "audio",
        ("direction", "kbit/s", "loss %", "jitter ms", *_COUNTS),
        (
            (
                f"{key}, {words}",
                _bitrate(session[key]),
                _loss(session[key]),
                _jitter(session[key]),
                *(session[key].get(count) for count in _COUNTS),
            )
            for key, words in _DIRECTIONS
        ),
    )


def _both(session: Session, describe: Callable[[dict[str, Any]], str]) -> str | None:
    """Of both directions; None without audio that we count."""
    if session["up"] is None:
        return None
    return "/".join(describe(session[key]) for key, _ in _DIRECTIONS)


def _loss(direction: dict[str, Any]) -> str:
    return f"{100 * direction['loss']:.1f}"


def _jitter(direction: dict[str, Any]) -> str:
    return f"{direction['jitter_ms']:.1f}"


def _bitrate(direction: dict[str, Any]) -> str:
    return f"{direction['bitrate_bps'] / 1000:.1f}"


def _setup_ms(session: Session) -> int | None:
    connected_s = session["phases_s"].get("connected")
    return None if connected_s is None else round(connected_s * 1000)
