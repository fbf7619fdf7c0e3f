"""``relayctl workers`` and ``scale``: who serves packets, and how many."""

import time

import click

from cli.admin import ask
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, print_json, print_rows
from cli.view import cpu_seconds, look
from cli.watching import interval_option
from host.state_dir import StateDir
from relay.config import MAX_WORKERS

_FIELDS = ("slot", "pid", "core", "state", "packets", "packets/s", "flows", "assured_flows", "cpu_percent")
# A worker has 20 s to become ready.
_SCALE_TIMEOUT_S = 30.0


@cli.command()
@interval_option
@state_dir_option
@json_option
def workers(state_dir: StateDir, interval_s: float, as_json: bool) -> None:
    """Show the workers: slot, pid, core, packets, flows and CPU, over one interval."""
    before, seen_at = look(state_dir).workers, time.monotonic()
    cpu_before = {worker["pid"]: cpu_seconds(worker["pid"]) for worker in before if worker["pid"]}
    packets_before = {worker["slot"]: worker["packets"] for worker in before}
    time.sleep(interval_s)
    view, seconds = look(state_dir), time.monotonic() - seen_at
    rows = []
    for worker in view.workers:
        pid, slot = worker["pid"], worker["slot"]
        rated = {
            **worker,
            "packets/s": round((worker["packets"] - packets_before.get(slot, 0)) / seconds, 1),
            "cpu_percent": round(100 * (cpu_seconds(pid) - cpu_before[pid]) / seconds, 1)
            if pid in cpu_before
            else None,
        }
        rows.append({field: rated.get(field) for field in _FIELDS})
    if as_json:
        print_json(rows)
        return
    orphaned = "" if view.is_supervised else "; no supervisor lives, `relayctl start` takes over"
    print_rows(f"{count_of(len(rows), 'worker')}{orphaned}", rows)


@cli.command()
@click.option(
    "--workers",
    "count",
    type=click.IntRange(1, MAX_WORKERS),
    required=True,
    metavar="N",
    help="How many from now on.",
)
@state_dir_option
def scale(state_dir: StateDir, count: int) -> None:
    """Change the number of workers of a live relay; its calls go on."""
    scaled = ask(state_dir, "scale", timeout_s=_SCALE_TIMEOUT_S, workers=count)
    click.echo(f"{count_of(scaled['workers'], 'worker')} (before: {scaled['before']})")
