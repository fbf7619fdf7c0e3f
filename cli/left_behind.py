"""What a supervisor that died left running, ended by `stop` and `bpf unload`."""

from host.errors import OperatorError
from host.registry import Entry, ProcessRegistry
from host.state_dir import StateDir
from relay.dataplane.bpf import links
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import network_namespace

# Clients are told goodbye while a worker still carries it.
_ORDER = ("transceiver.process", "relay.worker")


def check_namespace(state_dir: StateDir) -> None:
    """Raises OperatorError if the interfaces with our program are not those of this network namespace."""
    pins = PinDir(state_dir.path)
    attached_in = pins.network_namespace()
    if attached_in not in (0, network_namespace()):
        raise OperatorError(
            f"XDP is attached in another network namespace, net:[{attached_in}] (`lsns -t net` tells whose); run this there, "
            "as `nsenter --net=/run/netns/NAME relayctl …`"
        )


def end_left_behind(state_dir: StateDir) -> list[Entry]:
    """End those processes; returns them."""
    registry = ProcessRegistry(state_dir.processes_file)
    return [entry for module in _ORDER for entry in registry.end_left_behind(module)]


def remove_data_path(state_dir: StateDir) -> list[str]:
    """Take the programs off every interface and remove the pins; returns what was removed, in words."""
    pins = PinDir(state_dir.path)
    if not pins.exists:
        return []
    removed = [f"XDP on {interface}" for interface in links.detach(pins.program_ids())]
    pins.remove()
    return [*removed, f"pins in {pins.path}"]
