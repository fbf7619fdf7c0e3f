"""``relayctl flows``: the relay's flow table."""

import click

from cli.admin import ask
from cli.filters import parse_client
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_bytes, human_duration, print_json, print_table
from host.state_dir import StateDir


@cli.command()
@state_dir_option
@click.option(
    "--client", metavar="ADDR[:PORT]", help="Only flows of this client (an IPv6 port needs brackets)."
)
@click.option(
    "--limit", type=click.IntRange(1, 5000), default=1000, show_default=True, help="At most this many."
)
@json_option
def flows(state_dir: StateDir, client: str | None, limit: int, as_json: bool) -> None:
    """List flows: client, transceiver, state, age, and packets each way."""
    if client is not None:
        client = parse_client(client)
    listed = ask(state_dir, "flows", limit=limit, client=client)
    if as_json:
        print_json(listed)
        return
    print_table(
        count_of(len(listed), "flow") + (" (limit reached)" if len(listed) == limit else ""),
        (
            "client",
            "vip",
            "transceiver",
            "worker",
            "state",
            "age",
            "idle",
            "packets up",
            "down",
            "bytes up",
            "down",
        ),
        (
            (
                flow["client"],
                flow["vip"],
                flow["transceiver"],
                flow["worker"],
                flow["state"],
                human_duration(flow["age_s"]),
                human_duration(flow["idle_s"]),
                flow["packets_up"],
                flow["packets_down"],
                human_bytes(flow["bytes_up"]),
                human_bytes(flow["bytes_down"]),
            )
            for flow in listed
        ),
    )
