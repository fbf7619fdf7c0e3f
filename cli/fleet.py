"""``relayctl fleet``: the relays and transceivers of every host that shares our Redis."""

from typing import Any

import click

from cli.admin import ask
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_duration, print_json, print_table
from cli.status import describe_redis
from cli.watching import looks, watch_flag
from host.state_dir import StateDir

_PARTS = ("transceivers", "relays")
_LEASE_COLUMNS = ("version", "heard", "lease ends in")

Lease = dict[str, Any]


@cli.command()
@click.argument("part", type=click.Choice(_PARTS), required=False)
@watch_flag
@state_dir_option
@json_option
def fleet(state_dir: StateDir, part: str | None, interval_s: float, watch: bool, as_json: bool) -> None:
    """Show relays and transceivers of all hosts: state, sessions, load, and how long their leases last.

    PART is transceivers or relays; without it both are shown. A star marks this host.
    """
    for _ in looks(interval_s, watch):
        report = ask(state_dir, "fleet")
        if as_json:
            print_json(report[part] if part else report)
            continue
        click.echo(_describe_sources(report) + "\n")
        if part in (None, "relays"):
            _print_relays(report["relays"])
        if part in (None, "transceivers"):
            _print_transceivers(report["transceivers"])


def _describe_sources(report: dict[str, Any]) -> str:
    """How far this can be believed."""
    redis = report["redis"]
    if redis is None:
        return "no Redis is configured ([redis] url, `relayctl start --redis URL`): this host only"
    words = f"redis {redis['redis']}, {describe_redis(redis)}"
    if redis.get("reads", {}).get("state") == "closed":
        return words
    ages = [lease["age_s"] for part in _PARTS for lease in report[part] if not lease["here"]]
    if not ages:
        return f"{words}\nof other hosts nothing is known now"
    return f"{words}\nother hosts as last heard, {human_duration(min(ages))} ago"


def _print_relays(relays: list[Lease]) -> None:
    flows, assured = (sum(relay.get(field, 0) for relay in relays) for field in ("flows", "assured_flows"))
    print_table(
        f"{count_of(len(relays), 'relay')}: {count_of(flows, 'flow')}, {assured} assured",
        ("host", "state", "data path", "vips", "workers", "flows", "assured", *_LEASE_COLUMNS),
        (
            (
                _host(relay),
                relay.get("state"),
                relay.get("dataplane"),
                ", ".join(relay.get("vips", ())),
                relay.get("workers"),
                relay.get("flows"),
                relay.get("assured_flows"),
                *_lease_cells(relay),
            )
            for relay in sorted(relays, key=_order)
        ),
    )


def _print_transceivers(transceivers: list[Lease]) -> None:
    hosts = len({lease["host_id"] for lease in transceivers})
    sessions, room = (
        sum(lease.get(field, 0) for lease in transceivers) for field in ("sessions", "max_sessions")
    )
    print_table(
        f"{count_of(len(transceivers), 'transceiver')} of {count_of(hosts, 'host')}: "
        f"{sessions} of {count_of(room, 'session')} ({_percent(sessions, room)})",
        ("host", "name", "address", "state", "sessions", "connected", "max", "full", "load", *_LEASE_COLUMNS),
        (
            (
                _host(lease),
                lease.get("name"),
                lease.get("address"),
                lease.get("state"),
                lease.get("sessions"),
                lease.get("connected"),
                lease.get("max_sessions"),
                lease.get("full"),
                _percent(lease.get("sessions", 0), lease.get("max_sessions", 0)),
                *_lease_cells(lease),
            )
            for lease in sorted(transceivers, key=_order)
        ),
    )


def _order(lease: Lease) -> tuple[Any, ...]:
    return not lease["here"], lease["host_name"], lease["host_id"], lease.get("name", "")


def _host(lease: Lease) -> str:
    return f"{lease['host_name']} {lease['host_id'][:6]}{' *' if lease['here'] else ''}"


def _lease_cells(lease: Lease) -> tuple[str | None, ...]:
    if lease["here"]:
        return lease["version"], "here", None
    return lease["version"], f"{human_duration(lease['age_s'])} ago", human_duration(lease["expires_s"])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
