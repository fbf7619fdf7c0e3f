"""``relayctl drops``: why packets went nowhere, and how fast."""

import time
from typing import Any

import click

from cli.main import cli, json_option, state_dir_option
from cli.render import print_json, print_rows
from cli.view import RelayView, look
from cli.watching import interval_option, turns
from host.state_dir import StateDir
from relay.core.verdict import MEANINGS, Verdict


@cli.command()
@interval_option
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--all", "show_all", is_flag=True, help="Reasons that never happened too.")
@state_dir_option
@json_option
def drops(state_dir: StateDir, interval_s: float, watch: bool, show_all: bool, as_json: bool) -> None:
    """Show each drop reason: how often in XDP and in the workers, its rate now, and what it means."""
    before, seen_at = look(state_dir), time.monotonic()
    for _ in turns(interval_s, None if watch else 1):
        now, looked_at = look(state_dir), time.monotonic()
        rows = _rows(before, now, looked_at - seen_at)
        rows = [row for row in rows if show_all or row["packets"]]
        if as_json:
            print_json(rows)
        else:
            print_rows(f"dropped: {sum(row['packets'] for row in rows)} packets", rows)
        before, seen_at = now, looked_at


def _rows(before: RelayView, now: RelayView, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for verdict in Verdict:
        if not verdict.is_drop:
            continue
        xdp, workers = (counts.get(verdict.label, 0) for counts in (now.xdp_verdicts, now.worker_verdicts))
        past = before.xdp_verdicts.get(verdict.label, 0) + before.worker_verdicts.get(verdict.label, 0)
        rows.append(
            {
                "reason": verdict.label.removeprefix("drop_"),
                "packets": xdp + workers,
                "packets/s": round(max(0, xdp + workers - past) / seconds, 1),
                "in_xdp": xdp,
                "in_workers": workers,
                "meaning": MEANINGS[verdict],
            }
        )
    return rows
