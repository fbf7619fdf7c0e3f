"""``relayctl bpf``: the programs of the kernel's data path."""

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import click

from cli.admin import describe_left_behind
from cli.config import load_config
from cli.left_behind import end_left_behind, remove_data_path
from cli.main import cli, config_option, json_option, state_dir_option
from cli.render import print_json, print_rows, print_table
from cli.view import open_pins
from host.errors import AlreadyRunningError, NotRunningError, OperatorError
from host.state_dir import StateDir
from relay.dataplane.bpf import links
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import RelayPrograms, network_namespace
from relay.dataplane.bpf.syscall import ProgramInfo, enable_stats
from relay.dataplane.choice import xdp_modes

_STATS_ENABLED = Path("/proc/sys/kernel/bpf_stats_enabled")


@cli.group()
def bpf() -> None:
    """The BPF programs: XDP on network interfaces, and the choice of a worker's socket."""


@bpf.command()
@config_option
@click.option("--interface", "interfaces", multiple=True, metavar="IF", help="Attach XDP here; repeatable.")
@state_dir_option
def load(state_dir: StateDir, config_path: Path | None, interfaces: tuple[str, ...]) -> None:
    """Load and pin programs and maps, for the next `relayctl start` to take over.

    Until then they let every packet pass.
    """
    overrides = {"relay": {"interfaces": list(interfaces)}} if interfaces else {}
    config = load_config(config_path, overrides, state_dir).relay
    pins = PinDir(state_dir.path)
    if state_dir.is_running() or pins.exists:
        raise AlreadyRunningError(f"programs are loaded in {pins.path}; `relayctl bpf status` shows them")
    programs = pins.load(
        MapSizes(max_flows=config.max_assured_flows, max_provisional=config.max_provisional_flows)
    )
    try:
        programs.note_namespace()
        ours = pins.program_ids()
        attached = [
            links.attach(interface, programs.xdp_fd, xdp_modes(config), ours)
            for interface in config.interfaces
        ]
    except BaseException:
        remove_data_path(state_dir)
        raise
    finally:
        programs.close()
    click.echo(f"loaded in {programs.load_s:.2f} s, pinned in {pins.path}")
    for attachment in attached:
        click.echo(
            f"{attachment.mode} XDP on {attachment.interface}" + f" ({attachment.why})" * bool(attachment.why)
        )


@bpf.command()
@click.option(
    "--force", is_flag=True, help="End workers that a dead supervisor left behind, and their calls."
)
@state_dir_option
def unload(state_dir: StateDir, force: bool) -> None:
    """Take the programs off every interface and remove their pins."""
    if state_dir.is_running():
        raise AlreadyRunningError("a relay runs on these programs; `relayctl stop` ends it and removes them")
    if not PinDir(state_dir.path).exists:
        raise NotRunningError(f"nothing is loaded for {state_dir.path}")
    left_behind = describe_left_behind(state_dir)
    if left_behind and not force:
        raise OperatorError(f"{left_behind} serve calls on these programs; --force ends them")
    PinDir(state_dir.path).check_namespace()
    ended = [f"{entry.name} (pid {entry.pid})" for entry in end_left_behind(state_dir)]
    removed = remove_data_path(state_dir)
    click.echo(f"removed {', '.join([*ended, *removed])}")


@bpf.command()
@click.option(
    "--stats",
    "stats_s",
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Have the kernel count runs and time of every program for so long.",
)
@state_dir_option
@json_option
def status(state_dir: StateDir, stats_s: float | None, as_json: bool) -> None:
    """Show programs, pins, interfaces, and what a run costs while the kernel counts it."""
    pins = PinDir(state_dir.path)
    with contextlib.closing(open_pins(state_dir)) as programs:
        before, counted = _measure(programs, stats_s)
        settings, load_listeners = programs.settings(), programs.listeners()
    attached = [a for a in links.attachments() if a.program_id in pins.program_ids()]
    rows = [_describe(name, info, before[name], pins) for name, info in counted.items()]
    report: dict[str, Any] = {
        "pins": str(pins.path),
        "abi_version": settings.abi_version,
        "build": f"{settings.build:016x}",
        "supervisor": "running" if state_dir.is_running() else "dead",
        "left_behind": describe_left_behind(state_dir),
        "listens": [str(address) for address in load_listeners],
        "fastpath": "on" if settings.fastpath else "off",
        "programs": rows,
        "interfaces": [
            {"interface": a.interface, "mode": a.mode, "program_id": a.program_id} for a in attached
        ],
    }
    if as_json:
        print_json(report)
        return
    version = f"ABI version {settings.abi_version}, build {report['build']}"
    click.echo(f"{version if settings.build else 'not configured yet'}, pinned in {report['pins']}")
    if settings.build:
        click.echo(
            f"fast path {report['fastpath']}" + "; workers forward every call" * (not settings.fastpath)
        )
    serving = report["left_behind"]
    if serving and not state_dir.is_running():
        click.echo(f"the supervisor is dead; {serving} go on serving")
    print_rows("\nprograms", rows)
    if not stats_s and _STATS_ENABLED.read_text().strip() == "0":
        click.echo("runs are not counted; --stats SECONDS counts them for a while\n")
    if settings.network_namespace not in (0, network_namespace()):
        click.echo(f"interfaces are in another network namespace, net:[{settings.network_namespace}]\n")
        return
    print_rows("interfaces", report["interfaces"])


@bpf.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.option("--force", is_flag=True, help="Switch off though no worker is there to carry the calls.")
@state_dir_option
def fastpath(state_dir: StateDir, state: str, force: bool) -> None:
    """Have XDP forward established calls (on), or hand all their packets to the workers (off).

    Works at once, on live calls, also when the supervisor is dead, and holds until `relayctl stop`.
    """
    with contextlib.closing(open_pins(state_dir)) as programs:
        if not programs.settings().build:
            raise NotRunningError("the programs are loaded, and no relay runs on them; `relayctl start` does")
        if state == "off" and not force and not programs.has_living_worker():
            raise OperatorError(
                "no worker beats, so calls live by the fast path alone; run `relayctl start` first, or end them with --force"
            )
        programs.set_fastpath(state == "on")
    carried_by = "by XDP, in the kernel" if state == "on" else "by the workers"
    click.echo(f"fast path {state}: established calls are forwarded {carried_by}")


def _measure(
    programs: RelayPrograms, stats_s: float | None
) -> tuple[dict[str, ProgramInfo], dict[str, ProgramInfo]]:
    """What the kernel knows of the programs before and after a time in which it counts runs; None: twice as it is."""
    if stats_s is None:
        return dict.fromkeys(programs.info(), ProgramInfo(0, "", "", 0, 0, 0, 0, 0)), programs.info()
    try:
        stats_fd = enable_stats()
    except OSError as error:
        raise OperatorError(f"--stats: the kernel does not count ({error.strerror}); run as root") from None
    try:
        before = programs.info()
        time.sleep(stats_s)
        return before, programs.info()
    finally:
        os.close(stats_fd)


def _describe(name: str, info: ProgramInfo, before: ProgramInfo, pins: PinDir) -> dict[str, Any]:
    runs, run_ns = info.run_count - before.run_count, info.run_time_ns - before.run_time_ns
    return {
        "program": name,
        "id": info.id,
        "tag": info.tag,
        "instructions": info.instructions,
        "verified": info.verified,
        "runs": runs or None,
        "ns_a_run": round(run_ns / runs) if runs else None,
        "pin": str(pins.path / name),
    }


@bpf.command()
@json_option
def verify(as_json: bool) -> None:
    """Compile the programs and have this kernel's verifier accept them; nothing is attached, nothing stays."""
    programs = RelayPrograms.load(MapSizes())
    try:
        infos, load_s = programs.info(), programs.load_s
    finally:
        programs.close()
    if as_json:
        described = {name: info._asdict() for name, info in infos.items()}
        print_json({"kernel": platform.release(), "load_s": round(load_s, 3), "programs": described})
        return
    print_table(
        f"accepted by Linux {platform.release()}, compiled and loaded in {load_s:.2f} s",
        ("program", "tag", "instructions", "walked by the verifier"),
        [(name, info.tag, info.instructions, info.verified) for name, info in infos.items()],
    )
