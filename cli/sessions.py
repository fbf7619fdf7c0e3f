"""``relayctl sessions``: the calls of this host's transceivers."""

from cli.admin import ask
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_duration, print_json, print_table
from host.state_dir import StateDir


@cli.command()
@state_dir_option
@json_option
def sessions(state_dir: StateDir, as_json: bool) -> None:
    """List sessions: state, selected client address, path moves, longest silence of the client, setup time."""
    listed = ask(state_dir, "sessions")
    if as_json:
        print_json(listed)
        return
    print_table(
        count_of(len(listed), "session"),
        (
            "session",
            "transceiver",
            "state",
            "age",
            "client",
            "vip",
            "paths",
            "moves",
            "longest gap",
            "connected after",
        ),
        (
            (
                session["session"],
                session["transceiver"],
                session["state"],
                human_duration(session["age_s"]),
                session["client"],
                session["vip"],
                session["paths"],
                session["moves"],
                f"{session['longest_gap_ms']:.0f} ms",
                f"{session['phases_s']['connected'] * 1000:.0f} ms"
                if "connected" in session["phases_s"]
                else None,
            )
            for session in listed
        ),
    )
