"""What a supervisor that died left running, ended by `stop` and `bpf unload`."""

import contextlib
from pathlib import Path

from host.errors import OperatorError
from host.registry import Entry, ProcessRegistry
from host.state_dir import StateDir
from relay.dataplane.bpf import links
from relay.dataplane.bpf.pins import PinDir

# Clients are told goodbye while a worker still carries it.
_ORDER = ("transceiver.process", "relay.worker", "fleet.agent")


def end_left_behind(state_dir: StateDir) -> list[Entry]:
    """End those processes; returns them."""
    registry = ProcessRegistry(state_dir.processes_file)
    return [entry for module in _ORDER for entry in registry.end_left_behind(module)]


def find_data_path(state_dir: StateDir) -> Path | None:
    """Where programs are pinned that a relay has configured, so that they forward what it has left them."""
    pins = PinDir(state_dir.path)
    if not pins.exists:
        return None
    try:
        with contextlib.closing(pins.open()) as programs:
            return pins.path if programs.settings().build else None
    except OperatorError:  # of another version, or user
        return None


def remove_data_path(state_dir: StateDir) -> list[str]:
    """Take the programs off every interface and remove the pins; returns what was removed, in words."""
    pins = PinDir(state_dir.path)
    if not pins.exists:
        pins.remove()  # what a start that was killed had begun
        return []
    removed = [f"XDP on {interface}" for interface in links.detach(pins.program_ids())]
    pins.remove()
    return [*removed, f"pins in {pins.path}"]
