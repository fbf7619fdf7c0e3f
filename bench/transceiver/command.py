"""``python -m bench transceiver``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench.interrupted import end_as_interrupted
from bench.output import output_options, put_out
from bench.progress import progress
from bench.transceiver.phases import CLIENTS, ROUND_TRIPS_MS
from bench.transceiver.run import PARTS, Wanted, measure_transceiver
from bench.transceiver.tables import sheets
from bench.transceiver.variants import VARIANTS, Variant


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parts(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[str]:
    return _known("part", PARTS, text)


def _clients(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[str]:
    return _known("client", CLIENTS, text)


def _variants(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[Variant]:
    names = _known("variant", [variant.name for variant in VARIANTS], text)
    return [variant for variant in VARIANTS if variant.name in names]


def _known(what: str, known: Sequence[str], text: str | None) -> Sequence[str]:
    """Those that are wanted, in their own order; all if none is named."""
    names = known if text is None else _split(text)
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def _round_trips(context: click.Context, parameter: click.Parameter, text: str) -> Sequence[float]:
    parts = _split(text)
    for part in parts:
        if not (part.isdigit() and int(part) <= 2000):
            raise click.BadParameter(f"{part!r} is not 0 to 2000 ms")
    return [float(part) for part in parts]


@click.command()
@click.option("--only", "parts", metavar="A,B", callback=_parts, help=f"These: {', '.join(PARTS)}.")
@click.option(
    "--variants",
    metavar="A,B",
    callback=_variants,
    help=f"These: {', '.join(one.name for one in VARIANTS)}.",
)
@click.option(
    "--clients",
    metavar="A,B",
    callback=_clients,
    help=f"For setup by phase: {', '.join(CLIENTS)}; empty for none.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="The first of several is discarded.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.5, 8), default=3, show_default=True, help="A turn of one variant."
)
@click.option(
    "--calls",
    type=click.IntRange(1, 200),
    default=10,
    show_default=True,
    help="The moderate load, at which CPU and delay are taken.",
)
@click.option(
    "--max-calls",
    type=click.IntRange(1, 2000),
    default=1000,
    show_default=True,
    help="The search for calls a core ends there.",
)
@click.option(
    "--round-trips",
    metavar="MS,MS",
    callback=_round_trips,
    default=",".join(map(str, ROUND_TRIPS_MS)),
    show_default=True,
    help="For setup by phase: of the media path.",
)
@click.option(
    "--setups",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="For setup by phase: calls of each client and round trip.",
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 1000),
    default=200,
    show_default=True,
    help="For memory: at the same time.",
)
@click.option(
    "--churn",
    type=click.IntRange(0, 100_000),
    default=1000,
    show_default=True,
    help="For memory: calls that come and go, 100 at a time.",
)
@output_options
def transceiver(as_json: bool, out: Path | None, markdown: bool, **wanted: Any) -> None:
    """One transceiver process beside stock aiortc: calls a core without loss, CPU and delay of a call; setup, by CPU and by phase; memory (some minutes).

    The process under test keeps to one core, the simulated callers to another. Callers are real as far as a transceiver can tell:
    WHIP, ICE, DTLS, SRTP with Opus speech, every echoed packet counted. Memory is the growth of PSS by sessions that have all
    spoken; nothing is asked to collect garbage before.
    """
    end_as_interrupted()
    with progress("transceiver") as shown:
        found = measure_transceiver(Wanted(**wanted), shown)
    put_out(found.to_json(), sheets(found), as_json=as_json, out=out, markdown=markdown)
