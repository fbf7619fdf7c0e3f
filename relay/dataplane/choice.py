"""Which data path a relay takes, and why."""

import contextlib
import logging

from host.errors import OperatorError
from relay.config import DataPlane, RelayConfig, XdpChoice
from relay.dataplane.bpf import links
from relay.dataplane.bpf.abi import SIDE_PUBLIC
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.errors import BpfUnavailableError
from relay.dataplane.bpf.links import XdpMode
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.kernel import KernelDataPath

logger = logging.getLogger(__name__)

_MODES = {
    XdpChoice.AUTO: (XdpMode.NATIVE, XdpMode.GENERIC),
    XdpChoice.NATIVE: (XdpMode.NATIVE,),
    XdpChoice.GENERIC: (XdpMode.GENERIC,),
}


def xdp_modes(config: RelayConfig) -> tuple[XdpMode, ...]:
    """The modes to try, in that order."""
    return _MODES[config.xdp_mode]


def choose_data_path(
    config: RelayConfig, pins: PinDir, *, is_served: bool
) -> tuple[KernelDataPath | None, str]:
    """The kernel's data path, or None for userspace, and the reason in words.

    is_served: workers that a dead supervisor left behind serve what is pinned. Raises OperatorError if XDP was demanded and
    is not to be had, or if what is in the way is not for us to remove.
    """
    kernel, reason = _choose(config, pins)
    if kernel is None and pins.exists:
        _remove_unserved(pins, is_served, reason)
    return kernel, reason


def check_take_over(config: RelayConfig, pins: PinDir) -> None:
    """Look whether a start with that configuration can take over what is pinned, and touch nothing.

    Raises OperatorError, as that start would.
    """
    if not pins.exists:
        return
    if config.dataplane is DataPlane.USERSPACE or not config.interfaces:
        raise OperatorError(
            f"calls are carried by XDP ({pins.path}), and this configuration takes userspace; `relayctl restart` ends them"
        )
    pins.check_namespace()
    with contextlib.closing(pins.open()) as programs:
        serving = [address for address, (side, _) in programs.listeners().items() if side == SIDE_PUBLIC]
    wanted = [vip.listen for vip in config.vips]
    if serving != wanted:
        raise OperatorError(
            f"the relay serves {', '.join(map(str, serving))}, the configuration names {', '.join(map(str, wanted))}; "
            "`relayctl restart` moves it, and ends its calls"
        )
    for interface in config.interfaces:
        links.check_interface(interface, pins.program_ids())


def _choose(config: RelayConfig, pins: PinDir) -> tuple[KernelDataPath | None, str]:
    if config.dataplane is DataPlane.USERSPACE:
        return None, "as configured"
    if not config.interfaces:
        return None, "no --interface is named for XDP"
    sizes = MapSizes(max_flows=config.max_assured_flows, max_provisional=config.max_provisional_flows)
    try:
        modes = xdp_modes(config)
        kernel = KernelDataPath(
            pins, config.interfaces, modes, sizes, fastpath=config.fastpath, cpumap=config.cpumap
        )
    except BpfUnavailableError as error:
        if config.dataplane is DataPlane.XDP:
            raise
        logger.warning("userspace data path: %s", error)
        return None, str(error)
    if config.dataplane is DataPlane.XDP:
        return kernel, "as configured"
    return kernel, f"this machine can, and {', '.join(config.interfaces)} is named"


def _remove_unserved(pins: PinDir, is_served: bool, reason: str) -> None:
    """Without workers the program that is left on an interface drops all that it would hand up."""
    if is_served:
        raise OperatorError(
            f"workers that were left behind serve calls by XDP ({pins.path}), and this start takes userspace: {reason}; "
            "start by XDP on the same --interface to take them over, or end them with `relayctl stop`"
        )
    pins.check_namespace()
    interfaces = links.detach(pins.program_ids())
    pins.remove()
    logger.warning(
        "removed %s, which nobody served any more, and XDP from %s", pins.path, interfaces or "nowhere"
    )
