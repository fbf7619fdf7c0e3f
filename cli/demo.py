"""``relayctl demo``: relay, two transceivers and one call, on this machine, with one command."""

import asyncio
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from cli.call import CallError
from cli.lifecycle import start_background, stop_background
from cli.main import EXIT_CALL_FAILED, EXIT_INTERRUPTED, cli
from cli.probe import find_problem, place_call, print_report
from host.errors import AddressInUseError
from host.sockets import bind_tcp, bind_udp, bound_address
from host.state_dir import StateDir
from wire.address import Address

_PROBE_S = 5.0


@cli.command()
@click.option("--check", is_flag=True, help="Exit after the report: 0 if the call lost nothing, else 5.")
def demo(check: bool) -> None:
    """Start a relay and two transceivers, place a call, show its report and the demo page's address.

    Everything is on loopback and in a temporary state directory; Ctrl-C ends it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ok, called, interrupted = True, False, False
    with tempfile.TemporaryDirectory(prefix="relayctl-demo-") as directory:
        state_dir = StateDir(Path(directory))
        listen = _free(Address.parse("127.0.0.1:3478"), bind_udp)
        url = f"http://{_free(Address.parse('127.0.0.1:8080'), bind_tcp)}/"
        click.echo("starting one relay and two transceivers")
        start_background(state_dir, ["--listen", str(listen), "--http", url[7:-1], "--transceivers", "2"])
        try:
            ok, called = _call(url), True
            if not check:
                click.echo(f"\nopen {url} in a browser on this machine; Ctrl-C ends the demo")
                click.echo(f"look inside with: {sys.argv[0]} status --state-dir {state_dir.path}")
                signal.pause()
        except KeyboardInterrupt:
            click.echo()
            interrupted = not called
        finally:
            stop_background(state_dir, drain_s=0)
            click.echo("stopped")
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if ok else EXIT_CALL_FAILED)


def _free(wanted: Address, bind: Callable[[str, Address], socket.socket]) -> Address:
    """The wanted address, or the same host with any free port if it is taken."""
    try:
        sock = bind("demo", wanted)
    except AddressInUseError as error:
        click.echo(f"{error}; taking another port")
        sock = bind("demo", Address(wanted.host, 0))
    with sock:
        return bound_address(sock)


def _call(url: str) -> bool:
    click.echo(f"placing a call of {_PROBE_S:g} s as a stock aiortc client\n")
    try:
        report = asyncio.run(place_call(url, _PROBE_S, "", insecure=False, show_progress=True))
    except CallError as error:
        click.echo(f"relayctl: {error}", err=True)
        return False
    print_report(report)
    problem = find_problem(report, max_loss=0.0)
    click.echo(f"\n{problem or 'the call lost nothing'}")
    return problem is None
