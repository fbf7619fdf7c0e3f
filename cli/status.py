"""``relayctl status``: the whole host at a glance."""

from typing import Any

import click

from cli.admin import ask
from cli.main import cli, json_option, state_dir_option
from cli.render import human_bytes, human_duration, print_json, print_table
from host.state_dir import StateDir
from relay.core.verdict import EVENT_MEANINGS, MEANINGS, FlowEvent, Verdict

_PROCESS_COLUMNS = ("name", "pid", "core", "state", "up", "restarts", "last exit", "CPU %", "RSS")


@cli.command()
@state_dir_option
@json_option
def status(state_dir: StateDir, as_json: bool) -> None:
    """Show processes, restarts, flows, sessions, and what happened to packets."""
    report = ask(state_dir, "status")
    if as_json:
        print_json(report)
        return
    click.echo(
        f"relayctl {report['version']}, {report['state']}, pid {report['pid']}, "
        f"up {human_duration(report['uptime_s'])}, state in {report['state_dir']}\n"
    )
    for entry in report["left_behind"]:
        click.echo(
            f"{entry['name']} of an earlier start, pid {entry['pid']}, carries its calls to their end\n"
        )
    if report.get("fleet", {}).get("redis"):
        click.echo(f"redis {report['fleet']['redis']}, {describe_redis(report['fleet'])}\n")
    if "relay" in report:
        _print_relay(report["relay"])
    if "transceivers" in report:
        _print_transceivers(report["transceivers"])


def describe_redis(state: dict[str, Any]) -> str:
    """Whether Redis can be used, since when, and what is wrong."""
    since = f" for {human_duration(state['since_s'])}" if "since_s" in state else ""
    why = f": {state['why']}" if state["why"] else ""
    return f"{state['state']}{since}{why}"


def _print_relay(relay: dict[str, Any]) -> None:
    for vip in relay["vips"]:
        told = "" if vip["vip"] == vip["listen"] else f", clients are told {vip['vip']}"
        click.echo(f"listen {vip['listen']}{told}")
    click.echo(f"data path {relay['dataplane']} ({relay['reason']})")
    if "kernel" in relay:
        _print_kernel(relay["kernel"])
    print_table(
        "\nworkers",
        (*_PROCESS_COLUMNS, "packets", "flows", "assured"),
        (
            (*_process_cells(worker), worker["packets"], worker["flows"], worker["assured_flows"])
            for worker in relay["workers"]
        ),
    )
    counts = [(v.label, relay["verdicts"][v.label], MEANINGS[v]) for v in Verdict]
    counts += [(e.label, relay["events"][e.label], EVENT_MEANINGS[e]) for e in FlowEvent]
    print_table(
        f"packets and flows ({human_bytes(relay['bytes_up'])} up, {human_bytes(relay['bytes_down'])} down)",
        ("verdict", "count", "meaning"),
        (row for row in counts if row[1]),
        wrap_last=True,
    )


def _print_kernel(kernel: dict[str, Any]) -> None:
    for attached in kernel["interfaces"]:
        why = f" ({attached['why']})" if attached["why"] else ""
        click.echo(f"{attached['mode']} XDP on {attached['interface']}{why}")
    if not kernel["fastpath"]:
        click.echo("fast path off: workers forward every call (`relayctl bpf fastpath on`)")
        return
    for hop in kernel["next_hops"]:
        way = f"by {hop['interface']}" if hop["interface"] else f"by way of the workers: {hop['why']}"
        click.echo(f"to {hop['host']} {way}")


def _print_transceivers(transceivers: dict[str, Any]) -> None:
    click.echo(f"signaling {transceivers['http']}")
    if transceivers["bearer_token_file"]:
        click.echo(f"bearer token in {transceivers['bearer_token_file']}")
    print_table(
        "\ntransceivers",
        (*_PROCESS_COLUMNS, "address", "sessions", "connected"),
        (
            (*_process_cells(process), process["address"], process.get("sessions"), process.get("connected"))
            for process in transceivers["processes"]
        ),
    )
    for process in transceivers["processes"]:
        if process["full"]:
            click.echo(
                f"{process['name']} takes no new sessions: {process['full']}; `relayctl transceivers status` shows its limits\n"
            )


def _process_cells(process: dict[str, Any]) -> tuple[Any, ...]:
    return (
        process["name"],
        process["pid"],
        process["core"],
        process["state"],
        human_duration(process["uptime_s"]),
        process["restarts"],
        process["last_exit"],
        process.get("cpu_percent"),
        human_bytes(process["rss_bytes"]) if "rss_bytes" in process else None,
    )
