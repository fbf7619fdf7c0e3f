"""``relayctl start``, ``stop``, ``restart``: the verbs that begin and end a supervisor."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import click

from cli.admin import ask
from cli.config import Config, Role, load_config
from cli.left_behind import end_left_behind, remove_data_path
from cli.main import EXIT_FAILED, cli, config_option, exit_code_of, state_dir_option
from cli.seconds import check_seconds
from fleet.service import FleetService
from host.errors import ConfigError, NotRunningError, OperatorError
from host.keystore import load_keys, load_or_create_keys
from host.log import configure_logging
from host.registry import ProcessRegistry
from host.service_manager import ServiceManager
from host.state_dir import StateDir, read_or_create_token
from host.successor import inherited_children, watch_children_without_threads
from host.supervisor import Service, Supervisor
from relay.config import DataPlane, XdpChoice
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.choice import check_take_over
from relay.supervisor import RelayService
from transceiver.service import TransceiverService
from wire.admin import encode_message

# Longer than one process may take: services start one after the other.
_START_TIMEOUT_S = 240.0
_STOP_MARGIN_S = 20.0
# Parameters that are not named as their flag.
_FLAGS = {"interfaces": "--interface"}


def _start_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        config_option,
        click.option("--role", type=click.Choice([role.value for role in Role]), help="What to run here."),
        click.option(
            "--listen", multiple=True, metavar="ADDR:PORT", help="Public address of the relay; repeatable."
        ),
        click.option(
            "--vip",
            multiple=True,
            metavar="ADDR:PORT",
            help="What clients are told for each --listen; repeatable.",
        ),
        click.option(
            "--fleet-listen",
            multiple=True,
            metavar="ADDR:PORT",
            help="The relay's side towards transceivers.",
        ),
        click.option("--http", metavar="ADDR:PORT", help="Signaling and the demo page."),
        click.option(
            "--insecure", is_flag=True, help="Signaling beyond loopback without TLS (a proxy has it)."
        ),
        click.option(
            "--interface",
            "interfaces",
            multiple=True,
            metavar="IF",
            help="Network interface for XDP; repeatable.",
        ),
        click.option(
            "--dataplane",
            type=click.Choice([choice.value for choice in DataPlane]),
            help="How packets reach the workers; auto takes XDP where an interface is named and this machine can.",
        ),
        click.option(
            "--xdp-mode",
            type=click.Choice([choice.value for choice in XdpChoice]),
            help="XDP in the driver, generic, or whichever works.",
        ),
        click.option("--workers", type=int, metavar="N", help="Relay workers."),
        click.option("--transceivers", type=int, metavar="N", help="Transceiver processes."),
        click.option("--redis", metavar="URL", help="Redis that the fleet shares; empty for none."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_start_options
@click.option("--daemon", is_flag=True, help="Go to the background once everything is up.")
@click.option(
    "--dry-run", is_flag=True, help="Check configuration, keys and certificates, and start nothing."
)
@click.option("--ready-fd", type=int, hidden=True, help="Where the outcome goes, as a line of JSON.")
@click.option("--lock-fd", type=int, hidden=True, help="A predecessor's lock of the state directory.")
@click.option("--http-fd", type=int, hidden=True, help="A predecessor's listening socket for --http.")
@click.option(
    "--takes-over", is_flag=True, hidden=True, help="With --dry-run: check also what it would take over."
)
@state_dir_option
def start(
    state_dir: StateDir,
    config_path: Path | None,
    daemon: bool,
    dry_run: bool,
    ready_fd: int | None,
    lock_fd: int | None,
    http_fd: int | None,
    takes_over: bool,
    **flags: Any,
) -> None:
    """Start relay and transceivers, in the foreground unless --daemon."""
    arguments = _arguments(config_path, flags)
    manager = ServiceManager.take_from(os.environ)
    outcome = open(ready_fd, "wb", buffering=0) if ready_fd is not None else None  # noqa: SIM115  # open until it is told
    http = socket.socket(fileno=http_fd) if http_fd is not None else None
    try:
        configure_logging()
        config = load_config(config_path, _overrides(flags), state_dir)
        if dry_run:
            if config.keys_file.exists():
                load_keys(config.keys_file)
            if takes_over:
                _check_take_over(config, PinDir(state_dir.path))
            click.echo("configuration is good")
        elif daemon:
            _start_daemon(state_dir, arguments)
        else:
            _run(state_dir, config, _Launch(arguments, outcome, lock_fd, http, manager))
    except OperatorError as error:
        manager.tell(STATUS=str(error))
        _tell_outcome(outcome, {"error": str(error), "exit_code": exit_code_of(error)})
        raise


_drain_option = click.option(
    "--drain",
    "drain_s",
    type=float,
    callback=check_seconds,
    metavar="SECONDS",
    help="Let calls go on for at most this long.",
)


@cli.command()
@state_dir_option
@_drain_option
def stop(state_dir: StateDir, drain_s: float | None) -> None:
    """Stop the supervisor and every process of it, or what a dead one left behind."""
    try:
        click.echo(f"stopped (pid {stop_background(state_dir, drain_s)})")
    except NotRunningError:
        if state_dir.is_running() or not state_dir.path.exists():
            raise
        PinDir(state_dir.path).check_namespace()
        with state_dir.held():
            ended = [f"{entry.name} (pid {entry.pid})" for entry in end_left_behind(state_dir)]
            removed = remove_data_path(state_dir)
        if not ended and not removed:
            raise
        click.echo(f"the supervisor was dead; ended and removed {', '.join([*ended, *removed])}")


@cli.command()
@state_dir_option
@_drain_option
def restart(state_dir: StateDir, drain_s: float | None) -> None:
    """Stop, then start in the background with the options of the last start."""
    arguments = last_arguments(state_dir)
    # What would not start again must not be stopped.
    check_start(state_dir, [*arguments, "--dry-run"])
    try:
        stop_background(state_dir, drain_s)
    except NotRunningError:
        click.echo("was not running")
    _start_daemon(state_dir, arguments)


def last_arguments(state_dir: StateDir) -> list[str]:
    """Those of the last ``start`` that succeeded. Raises NotRunningError."""
    try:
        return list(json.loads(state_dir.launch_file.read_text()))
    except (OSError, ValueError):
        raise NotRunningError(f"nothing was ever started in {state_dir.path}; use `relayctl start`") from None


def check_start(state_dir: StateDir, arguments: list[str]) -> None:
    """Run ``start`` with these arguments, ``--dry-run`` among them; ends this command as that one did, if it failed."""
    checked = subprocess.run(start_command(state_dir, arguments), capture_output=True, text=True, check=False)
    if checked.returncode:
        click.echo(checked.stderr, nl=False, err=True)
        sys.exit(checked.returncode)


def _overrides(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Flags that were given, by table and key of the configuration file."""
    given = {
        ("host", "role"): flags["role"],
        ("relay", "listen"): list(flags["listen"]),
        ("relay", "fleet_listen"): list(flags["fleet_listen"]),
        ("relay", "workers"): flags["workers"],
        ("relay", "interfaces"): list(flags["interfaces"]),
        ("relay", "dataplane"): flags["dataplane"],
        ("relay", "xdp_mode"): flags["xdp_mode"],
        ("fleet", "vip"): list(flags["vip"]),
        ("redis", "url"): flags["redis"],
        ("transceiver", "http"): flags["http"],
        ("transceiver", "insecure"): flags["insecure"] or None,
        ("transceiver", "processes"): flags["transceivers"],
    }
    overrides: dict[str, dict[str, Any]] = {}
    for (table, key), value in given.items():
        if value is not None and value != []:
            overrides.setdefault(table, {})[key] = value
    return overrides


@dataclass(frozen=True)
class _Launch:
    """How a supervisor was started, by whom, and with what of its predecessor.

    arguments: of ``start``, for the next time. outcome: who waits for it, None for somebody at a terminal. lock_fd: of the
    state directory. http: a listening socket.
    """

    arguments: list[str]
    outcome: IO[bytes] | None
    lock_fd: int | None
    http: socket.socket | None
    manager: ServiceManager


def _run(state_dir: StateDir, config: Config, launch: _Launch) -> None:
    inherited = inherited_children()
    state_dir.acquire(launch.lock_fd)
    services: list[Service] = []
    try:
        if not config.keys_file.exists():
            click.echo(f"new key      in {config.keys_file}; every host of the fleet needs this file")
        keys = load_or_create_keys(config.keys_file)
        registry = ProcessRegistry(state_dir.processes_file)
        # First: it starts before those that tell and ask by it, and ends after them.
        fleet = FleetService(config.redis, config.cluster_id, keys, version("relayctl"), config.user)
        services.append(fleet)
        if config.role is not Role.TRANSCEIVERS:
            pins = PinDir(state_dir.path)
            services.append(
                RelayService(config.relay, config.cluster_id, keys, pins, registry, config.user, fleet=fleet)
            )
        if config.role is not Role.RELAY:
            token_file = config.transceiver.bearer_token_file
            token = read_or_create_token(token_file) if token_file else ""
            vips = tuple(vip.address for vip in config.vips)
            services.append(
                TransceiverService(
                    config.transceiver,
                    config.cluster_id,
                    vips,
                    keys,
                    token,
                    registry,
                    config.user,
                    drain_s=config.drain_s,
                    fleet=fleet,
                    http=launch.http,
                )
            )
        elif launch.http is not None:
            launch.http.close()
        supervisor = Supervisor(
            state_dir,
            services,
            registry,
            version=version("relayctl"),
            drain_s=config.drain_s,
            manager=launch.manager,
            inherited=inherited,
        )

        lines = _describe(config, services)

        def ready() -> None:
            state_dir.launch_file.write_text(json.dumps(launch.arguments))
            if launch.outcome is None:
                click.echo("\n".join([*lines, f"state        {state_dir.path}; Ctrl-C stops"]))
            _tell_outcome(launch.outcome, {"pid": os.getpid(), "lines": lines})

        watch_children_without_threads()
        asyncio.run(supervisor.run(ready))
    finally:
        for service in services:
            service.close()
        state_dir.release()


def _check_take_over(config: Config, pins: PinDir) -> None:
    """Raises OperatorError if a start with this configuration could not take over from a supervisor that runs now."""
    if config.role is not Role.TRANSCEIVERS:
        check_take_over(config.relay, pins)
    elif pins.exists:
        raise ConfigError(
            "host.role",
            "a relay runs here, and transceivers alone take none over; `relayctl restart` ends its calls",
        )


def _tell_outcome(asker: IO[bytes] | None, outcome: dict[str, Any]) -> None:
    """Once; whoever waits for it may be gone."""
    if asker is None or asker.closed:
        return
    with contextlib.suppress(OSError), asker:
        asker.write(encode_message(outcome))


def _describe(config: Config, services: list[Service]) -> list[str]:
    """Where everything is, a line each."""
    lines = []
    for service in services:
        if isinstance(service, FleetService) and service.enabled:
            lines.append(f"redis        {service.url}")
        if isinstance(service, RelayService):
            for vip in config.vips:
                told = "" if vip.listen == vip.address else f" (clients are told {vip.address})"
                lines.append(f"relay        {vip.listen}{told}, workers: {config.relay.workers}")
            lines.append(f"data path    {service.data_path}: {service.reason}")
        if isinstance(service, TransceiverService):
            lines.append(f"transceivers {config.transceiver.processes}")
            lines.append(f"signaling    {service.url}")
            if config.transceiver.bearer_token_file:
                lines.append(f"token        in {config.transceiver.bearer_token_file}")
    return lines


def _arguments(config_path: Path | None, flags: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    if config_path is not None:
        arguments += ["--config", str(config_path.absolute())]
    for name, value in flags.items():
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        if value is True:
            arguments.append(flag)
        elif isinstance(value, tuple):
            arguments += [part for item in value for part in (flag, item)]
        elif value not in (None, False):
            arguments += [flag, str(value)]
    return arguments


def _start_daemon(state_dir: StateDir, arguments: list[str]) -> None:
    started = start_background(state_dir, arguments)
    click.echo(f"started (pid {started['pid']}), log in {state_dir.log_file}")
    click.echo("\n".join(started["lines"]))


def start_background(state_dir: StateDir, arguments: list[str]) -> dict[str, Any]:
    """Start a supervisor with these arguments of ``start`` and wait until it is up: its ``pid``, and ``lines`` that tell
    where everything is.

    Ends this command with the supervisor's message and exit code if it did not come up.
    """
    state_dir.create()
    reader, writer = os.pipe()
    try:
        log = state_dir.log_file.open("ab")
    except OSError as error:
        raise OperatorError(
            f"state_dir: cannot write {state_dir.log_file} ({error.strerror}); choose another with --state-dir"
        ) from None
    with log:
        child = subprocess.Popen(
            start_command(state_dir, [*arguments, "--ready-fd", str(writer)]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            cwd="/",
        )
    os.close(writer)
    try:
        with open(reader, "rb") as ready:
            said = ready.read()
    except KeyboardInterrupt:
        child.terminate()
        child.wait(_START_TIMEOUT_S)
        raise
    outcome = json.loads(said) if said else {}
    if "pid" in outcome:
        return dict(outcome)
    child.wait(timeout=_START_TIMEOUT_S)
    message = outcome.get(
        "error", f"did not start (exit code {child.returncode}); its last words are in {state_dir.log_file}"
    )
    click.echo(f"relayctl: {message}", err=True)
    sys.exit(outcome.get("exit_code", EXIT_FAILED))


def start_command(state_dir: StateDir, arguments: list[str]) -> list[str]:
    """What runs ``start`` of this very relayctl."""
    return [sys.executable, "-P", "-m", "cli.main", "start", "--state-dir", str(state_dir.path), *arguments]


def stop_background(state_dir: StateDir, drain_s: float | None = None) -> int:
    """Stop the supervisor of a state directory and wait until it has ended; returns its pid."""
    stopping = ask(state_dir, "stop", drain_s=drain_s)
    _wait_until_stopped(state_dir, stopping["drain_s"] + _STOP_MARGIN_S)
    return int(stopping["pid"])


def _wait_until_stopped(state_dir: StateDir, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while state_dir.is_running():
        if time.monotonic() > deadline:
            raise OperatorError(f"still running after {timeout_s:g} s; see {state_dir.log_file}")
        time.sleep(0.05)
