"""relayctl on its hosts: relays that are killed and started again in their state directory, and transceivers that stay."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.errors import BenchError
from bench.peers.process import running
from bench.peers.relayctl import RELAYCTL
from bench.recovery.hosts import REDIS, SIGNALING, TRANSCEIVER, VIP, Side, Sites
from bench.rig import processes
from bench.topology import FLEET, PUBLIC
from cli.admin import ask
from host.state_dir import StateDir

_RELAY_CONFIG = """
[fleet]
keys_file = "{keys}"
[relay]
transceiver_networks = ["{transceiver}/32"]
# probes begin a flow every 2 ms
unknown_per_s = 1000000
unknown_burst = 1000000
"""
_TRANSCEIVER_CONFIG = """
[fleet]
keys_file = "{keys}"
vip = ["{vip}"]
[transceiver]
listen = "{listen}"
relay_networks = [{relays}]
max_cpu = 1000.0
"""
_END_S = 10.0


def is_up(said: str) -> bool:
    """Whether ``relayctl start`` says so."""
    return "Ctrl-C stops" in said


class Relay:
    """One relay's host: started, killed, and started again where it was. Nothing runs at first."""

    def __init__(self, sites: Sites, side: Side, directory: Path, *, dataplane: str) -> None:
        self._host, self._dataplane, self.side = sites.relay(side), dataplane, side
        self._directory = directory / f"relay-{side}-{dataplane}"
        self._directory.mkdir()
        self._state_dir = StateDir(self._directory / "state")
        self._state_dir.path.mkdir()
        self._config = self._directory / "relayctl.toml"
        keys = directory / "keys.json"
        self._config.write_text(_RELAY_CONFIG.format(keys=keys, transceiver=TRANSCEIVER.ip))
        self._running = contextlib.ExitStack()
        self._pid = 0

    def start(self, *, redis: bool) -> None:
        """``relayctl start``; returns when it says that it is up. Raises BenchError."""
        command = [str(RELAYCTL), "start", "--role", "relay", "--state-dir", str(self._state_dir.path)]
        command += ["--config", str(self._config), "--dataplane", self._dataplane]
        command += ["--listen", str(VIP), "--fleet-listen", str(self.side.fleet)]
        if self._dataplane == "xdp":
            command += ["--interface", PUBLIC, "--interface", FLEET]
        if redis:
            command += ["--redis", f"redis://{REDIS}/0"]
        log = self._directory / "log"
        # What was killed is reaped.
        self._running.close()
        self._pid = self._running.enter_context(running(self._host, command, log, is_up)).pid

    def kill(self) -> float:
        """SIGKILL to the supervisor and all its processes; when the last of them was gone, in seconds of the wall clock.

        Nothing, where nothing runs.
        """
        if self._pid:
            found = [psutil.Process(pid) for pid in processes(self._pid)]
            for process in found:
                os.kill(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + _END_S
            while not all(map(_has_ended, found)):
                if time.monotonic() > deadline:
                    raise BenchError("killed processes do not end")
                time.sleep(0.001)
            self._pid = 0
        return time.clock_gettime(time.CLOCK_REALTIME)

    def stop(self) -> None:
        """SIGTERM; and what a killed one has left in the kernel is removed."""
        self._running.close()
        if not self._pid:
            with self._host:
                command = [str(RELAYCTL), "stop", "--state-dir", str(self._state_dir.path)]
                subprocess.run(command, capture_output=True, timeout=30, check=False)
        self._pid = 0

    def status(self) -> dict[str, Any]:
        """As ``relayctl status --json``."""
        return dict(ask(self._state_dir, "status"))

    def log(self) -> str:
        """What the last one that was started has said."""
        return (self._directory / "log").read_text(errors="replace")


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def transceivers(sites: Sites, directory: Path) -> Iterator[Path]:
    """Two transceivers that echo; the file of their signaling token. Raises BenchError."""
    config, state_dir = directory / "transceivers.toml", directory / "transceivers"
    relays = ", ".join(f'"{side.fleet.ip}/32"' for side in Side)
    state_dir.mkdir()
    config.write_text(
        _TRANSCEIVER_CONFIG.format(keys=directory / "keys.json", vip=VIP, listen=TRANSCEIVER, relays=relays)
    )
    command = [str(RELAYCTL), "start", "--role", "transceivers", "--state-dir", str(state_dir)]
    command += ["--config", str(config), "--transceivers", "2", "--insecure", "--http", str(SIGNALING)]
    with running(sites.transceiver, command, directory / "transceivers.log", is_up):
        yield state_dir / "bearer_token"


@contextlib.contextmanager
def redis_server(sites: Sites, directory: Path) -> Iterator[None]:
    """A Redis on the transceivers' host that writes nothing to disk. Raises BenchError."""
    command = ["redis-server", "--bind", str(REDIS.ip), "--port", str(REDIS.port), "--dir", str(directory)]
    command += ["--save", "", "--appendonly", "no", "--protected-mode", "no"]
    log = directory / "redis.log"
    with running(sites.transceiver, command, log, lambda said: "Ready to accept connections" in said):
        yield
