"""``python -m bench``: measure this relay beside others. See docs/performance.md."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench import breakdown, forward, latency, setup, voice
from bench import flows as by_flows
from bench.conditions import describe
from bench.errors import BenchError
from bench.flood.attacks import ATTACKS, Attack
from bench.flood.rows import as_markdown as as_flood_markdown
from bench.flood.rows import print_rows
from bench.flood.scenario import FULL_SPEED, measure_floods
from bench.interrupted import end_as_interrupted
from bench.output import output_options, put_out
from bench.plots import draw
from bench.progress import progress
from bench.recovery.rounds import SCENARIOS, Scenario
from bench.recovery.run import Wanted, measure_recovery
from bench.recovery.tables import sheets as recovery_sheets
from bench.report import as_markdown, print_sheets, replace_block, sheets
from bench.results import FLOWS, MANY_FLOWS, OPUS, Results
from bench.rig import Rig, rig
from bench.stage import PEERS
from bench.topology import remove_stale
from bench.transceiver.command import transceiver

Measure = Callable[[Rig, dict[str, Any]], Results]


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _peers(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    names = _split(text)
    for name in names or ():
        if name not in PEERS:
            raise click.BadParameter(f"no peer {name!r}; there are {', '.join(PEERS)}")
    return names


def _payloads(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int | str] | None:
    sizes: list[int | str] = []
    for part in _split(text) or ():
        if part != OPUS and not (part.isdigit() and 40 <= int(part) <= 1400):
            raise click.BadParameter(f"{part!r} is neither 40 to 1400 bytes nor {OPUS}")
        sizes.append(part if part == OPUS else int(part))
    return sizes or None


def _counts(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    counts = [part.replace("_", "") for part in _split(text) or ()]
    for count in counts:
        if not (count.isdigit() and 1 <= int(count) <= 1_000_000):
            raise click.BadParameter(f"{count!r} is not 1 to 1000000 flows")
    return [int(count) for count in counts] or None


def _attacks(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[Attack]:
    by_name = {attack.name: attack for attack in ATTACKS}
    names = _split(text) or list(by_name)
    for name in names:
        if name not in by_name:
            raise click.BadParameter(f"no flood {name!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def _scenarios(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[Scenario]:
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    names = _split(text) or list(by_name)
    for name in names:
        if name not in by_name:
            raise click.BadParameter(f"no scenario {name!r}; there are {', '.join(by_name)}")
    # Those of one data path beside each other.
    return [scenario for name, scenario in by_name.items() if name in names]


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--only", metavar="A,B", callback=_peers, help=f"These peers: {', '.join(PEERS)}."),
        click.option(
            "--rounds",
            type=click.IntRange(1, 100),
            default=5,
            show_default=True,
            help="The first of several is discarded.",
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(0.05, 10),
            default=0.4,
            show_default=True,
            help="A turn of one peer.",
        ),
        click.option(
            "--payload", metavar="N,opus", callback=_payloads, help="For forward: bytes, or the Opus mix."
        ),
        click.option(
            "--flows", metavar="N,M", callback=_counts, help="For forward and flows: how many flows."
        ),
        click.option(
            "--clients",
            type=click.IntRange(100, setup.MAX_CLIENTS),
            default=setup.DEFAULT_CLIENTS,
            show_default=True,
            help="For setup: new clients of each peer.",
        ),
        click.option(
            "--million",
            is_flag=True,
            help="For flows: userspace with 1,000,000 flows too, which are made over the wire (some minutes).",
        ),
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output in place of tables."),
        click.option(
            "--out",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the JSON there as well; `report` reads it.",
        ),
        click.option(
            "--plot",
            "plots",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="Draw SVG files there.",
        ),
        click.option(
            "--check", is_flag=True, help="Exit with 1 if a target that was measured does not hold."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _forward(rig: Rig, options: dict[str, Any]) -> Results:
    names: Sequence[str] = options["only"] or forward.DEFAULT_PEERS
    rounds, seconds = options["rounds"], options["seconds"]
    with progress("forward") as shown:
        rows = forward.measure_forward(
            rig,
            names,
            payloads=options["payload"] or forward.DEFAULT_PAYLOADS,
            counts=options["flows"] or [FLOWS],
            rounds=rounds,
            seconds=seconds,
            progress=shown,
        )
    with progress("voice load") as shown:
        compared = [name for name in voice.PEERS if name in names]
        cpu = voice.measure_voice(rig, compared, rounds=rounds, seconds=seconds, progress=shown)
    return Results(rows=rows, cpu=cpu)


def _flows(rig: Rig, options: dict[str, Any]) -> Results:
    with progress("flows") as shown:
        names: Sequence[str] = options["only"] or by_flows.DEFAULT_PEERS
        counts: Sequence[int] = options["flows"] or by_flows.DEFAULT_FLOWS
        if options["flows"] or options["million"]:
            userspace_counts = counts
        else:
            userspace_counts = [count for count in counts if count < MANY_FLOWS]
        rows, worker_memory = by_flows.measure_flows(
            rig,
            names,
            counts=counts,
            userspace_counts=userspace_counts,
            rounds=options["rounds"],
            seconds=options["seconds"],
            progress=shown,
        )
    memory = by_flows.measure_memory(MANY_FLOWS) if "xdp" in names else None
    return Results(rows=rows, memory=memory, worker_memory=worker_memory)


def _latency(rig: Rig, options: dict[str, Any]) -> Results:
    with progress("latency") as shown:
        rows = latency.measure_latency(
            rig,
            options["only"] or latency.DEFAULT_PEERS,
            rounds=options["rounds"],
            seconds=options["seconds"],
            progress=shown,
        )
    return Results(latency=rows)


def _setup(rig: Rig, options: dict[str, Any]) -> Results:
    with progress("setup") as shown:
        names = options["only"] or setup.DEFAULT_PEERS
        return Results(setup=setup.measure_setup(rig, names, clients=options["clients"], progress=shown))


def _breakdown(rig: Rig, options: dict[str, Any]) -> Results:
    with progress("breakdown") as shown:
        # One sample of many: as long as all rounds together.
        seconds = options["rounds"] * options["seconds"]
        return Results(breakdown=breakdown.measure_breakdown(rig, seconds=seconds, progress=shown))


MEASURES: dict[str, Measure] = {
    "forward": _forward,
    "breakdown": _breakdown,
    "latency": _latency,
    "flows": _flows,
    "setup": _setup,
}


def _run(measures: Sequence[Measure], options: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and XDP need root")
    end_as_interrupted()
    remove_stale()
    try:
        with rig() as made:
            conditions = describe(made, rounds=options["rounds"], seconds=options["seconds"])
            parts = [measure(made, options) for measure in measures]
        results = Results.joined([*parts, Results(conditions=conditions)])
        if options["out"]:
            options["out"].write_text(json.dumps(results.to_json(), indent=1) + "\n")
        if options["plots"]:
            draw(results, options["plots"])
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    _show(results, as_json=options["as_json"])
    if options["check"] and any(target.holds is False for target in results.targets()):
        sys.exit(1)


def _show(results: Results, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results.to_json(), indent=1))
    else:
        print_sheets(sheets(results))


@click.group(invoke_without_command=True)
@_options
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Measure this relay beside others, in network namespaces of its own; all measurements without a command."""
    if context.invoked_subcommand is None:
        _run(list(MEASURES.values()), options)


def _add_command(name: str, text: str) -> None:
    @main.command(name, help=text)
    @_options
    def command(**options: Any) -> None:
        _run([MEASURES[name]], options)


_add_command(
    "forward", "Packets a second through each peer, both ways, by payload; CPU time a packet at a voice load."
)
_add_command(
    "breakdown",
    "What a userspace worker's time is for (receiving, Python, sending, waiting), for all rounds at once.",
)
_add_command("latency", "Time from client to transceiver at half load.")
_add_command(
    "flows", "Packets a second by number of flows in random order, and memory of a flow and of a worker."
)
_add_command("setup", "New clients a second, and the latency of their first packet.")


@main.command()
@click.option("--seconds", type=click.FloatRange(1, 60), default=10, show_default=True, help="Of each flood.")
@click.option(
    "--rate",
    type=click.IntRange(1, FULL_SPEED),
    default=FULL_SPEED,
    help="Packets a second; what a core makes, if not given.",
)
@click.option(
    "--only", metavar="A,B", callback=_attacks, help=f"These: {', '.join(a.name for a in ATTACKS)}."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output in place of the table.")
@click.option("--markdown", is_flag=True, help="The table as it is in docs/security.md.")
def flood(seconds: float, rate: int, only: Sequence[Attack], as_json: bool, markdown: bool) -> None:
    """What floods cost calls through a relay in userspace mode (about 15 s each)."""
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and XDP need root")
    end_as_interrupted()
    remove_stale()
    try:
        with progress("flood") as shown:
            rows = measure_floods(only, seconds=seconds, rate=rate, progress=shown)
    except BenchError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    elif markdown:
        print(as_flood_markdown(rows))
    else:
        print_rows(rows)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Of each column.")
@click.option(
    "--only", metavar="A,B", callback=_scenarios, help=f"These: {', '.join(one.name for one in SCENARIOS)}."
)
@click.option("--calls", type=click.IntRange(0, 50), default=6, show_default=True, help="Of aiortc.")
@click.option("--tabs", type=click.IntRange(0, 10), default=2, show_default=True, help="Of Chromium.")
@click.option("--redis/--no-redis", default=True, help="Whether there is a column with Redis.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the times of kills.")
@output_options
def recovery(
    only: Sequence[Scenario], as_json: bool, out: Path | None, markdown: bool, **wanted: Any
) -> None:
    """How long calls are without media when a relay is killed or its VIP moves, with Redis and without (some minutes)."""
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces and XDP need root")
    if not wanted["calls"] + wanted["tabs"]:
        raise click.UsageError("--calls 0 --tabs 0 leaves nobody to measure")
    end_as_interrupted()
    remove_stale()
    with progress("recovery") as shown:
        found = measure_recovery(Wanted(scenarios=only, **wanted), shown)
    put_out(found.to_json(), recovery_sheets(found), as_json=as_json, out=out, markdown=markdown)
    for played in found.played:
        if played.why_not:
            raise click.ClickException(f"{played.scenario.name}: {played.why_not}")


@main.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--plot",
    "plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw SVG files there.",
)
@click.option(
    "--document",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Renew the generated part of this Markdown file.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output in place of tables.")
def report(files: tuple[Path, ...], plots: Path | None, document: Path | None, as_json: bool) -> None:
    """Tables and plots of what `--out` wrote; several files are put together."""
    results = Results.joined(Results.from_json(json.loads(path.read_text())) for path in files)
    try:
        drawn = draw(results, plots) if plots else []
        if document:
            images = [os.path.relpath(path, document.parent) for path in drawn]
            document.write_text(replace_block(document.read_text(), as_markdown(results, images)))
    except (BenchError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    _show(results, as_json=as_json)


main.add_command(transceiver)


if __name__ == "__main__":
    main(prog_name="python -m bench")
