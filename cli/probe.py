"""``relayctl probe``: place a real call and say how it went."""

import asyncio
import sys

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cli.call import OVERDUE_S, CallError, CallReport, EchoCall
from cli.main import EXIT_CALL_FAILED, cli, json_option
from cli.render import print_json

_PHASES = {
    "answered": "SDP answer",
    "ice": "ICE completed",
    "dtls": "DTLS completed",
    "data_channel": "data channel open",
    "audio": "first echoed audio",
}


@cli.command()
@click.argument("url")
@click.option(
    "--duration",
    type=click.FloatRange(min=0.5),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to stay in the call.",
)
@click.option("--token", default="", envvar="RELAYCTL_BEARER_TOKEN", help="Bearer token of signaling.")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option(
    "--max-loss",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    metavar="PERCENT",
    help="Packets that may be lost.",
)
@json_option
def probe(url: str, duration: float, token: str, insecure: bool, max_loss: float, as_json: bool) -> None:
    """Call the signaling at URL (as http://127.0.0.1:8080/) and report.

    The call is real: a stock aiortc client sends a tone and data channel pings, and expects both back. The exit code is
    5 if it could not be set up, ended or fell silent by itself, left pings unanswered, or lost more than --max-loss.
    """
    try:
        report = asyncio.run(place_call(url, duration, token, insecure=insecure, show_progress=not as_json))
    except CallError as error:
        click.echo(f"relayctl: {error}", err=True)
        sys.exit(EXIT_CALL_FAILED)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    problem = find_problem(report, max_loss)
    if problem:
        click.echo(f"relayctl: {problem}", err=True)
        sys.exit(EXIT_CALL_FAILED)


async def place_call(
    url: str, duration: float, token: str, *, insecure: bool, show_progress: bool
) -> CallReport:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=not (show_progress and console.is_terminal), transient=True
    ) as bar:
        task = bar.add_task("calling", total=duration)
        async with EchoCall(url, bearer_token=token, verify_tls=not insecure) as call:
            bar.update(task, description="in call")
            step_s = duration / 50
            for _ in range(50):
                await asyncio.sleep(step_s)
                if call.is_over:
                    break
                bar.advance(task, step_s)
            return await call.report()


def find_problem(report: CallReport, max_loss: float) -> str | None:
    """What is wrong with a finished call, or None; ``max_loss`` is in percent of packets."""
    if report.state != "connected":
        return f"the call ended by itself: connection {report.state}"
    if not report.heard:
        return "the echo carried no tone"
    if report.silent_s > OVERDUE_S:
        return f"the echo fell silent {report.silent_s:g} s before the end"
    if report.pings_overdue:
        return f"{report.pings_overdue} of {report.pings_sent} pings had no answer within {OVERDUE_S:g} s"
    packets = report.uplink.get("sent", 0) + report.downlink.get("received", 0)
    loss = 100 * report.packets_lost / max(1, packets)
    if loss > max_loss:
        return f"{report.packets_lost} of {packets} packets lost ({loss:.2f} %, --max-loss is {max_loss:g} %)"
    return None


def print_report(report: CallReport) -> None:
    """The report for people."""
    click.echo(f"call      {report.session_url}")
    click.echo(f"vip       {', '.join(report.vips)} (the only remote candidates)")
    click.echo("setup     ms since the POST")
    for phase, label in _PHASES.items():
        if phase in report.phases_ms:
            click.echo(f"          {label:<20} {report.phases_ms[phase]:>8.1f}")
    click.echo(
        f"rtt       p50 {report.round_trip_ms(0.5)} ms, p99 {report.round_trip_ms(0.99)} ms "
        f"({len(report.round_trips_ms)} of {report.pings_sent} pings)"
    )
    up, down = report.uplink, report.downlink
    click.echo(f"uplink    {up.get('sent', 0)} packets sent, {up.get('lost', 0)} lost (RTCP)")
    click.echo(f"downlink  {down.get('received', 0)} packets received, {down.get('lost', 0)} lost")
    if report.silent_s > OVERDUE_S:
        click.echo(
            f"echo      silent for the last {report.silent_s:g} s, so what was lost then is not in the counts above"
        )
    else:
        click.echo(f"echo      {'the tone came back' if report.heard else 'silence'}")
