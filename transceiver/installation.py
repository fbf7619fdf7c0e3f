"""Puts our connection in the place of aiortc's, for frameworks that make theirs themselves."""

import sys

import aiortc
import aiortc.rtcpeerconnection

from transceiver.hub import HubError
from transceiver.peer import RelayedPeerConnection

_STOCK = aiortc.RTCPeerConnection


def install() -> None:
    """From now on ``aiortc.RTCPeerConnection`` is ``RelayedPeerConnection``.

    Call it before what makes connections is imported (pipecat, FastRTC). Raises HubError, naming the module and the name,
    where a module has taken the class already: it would go on with sockets of its own.
    """
    late = _names_of_stock() | _names_of_subclasses(_STOCK)
    if late:
        raise HubError(
            f"{', '.join(sorted(late))} took aiortc's RTCPeerConnection already; call transceiver.install() before importing it"
        )
    aiortc.RTCPeerConnection = aiortc.rtcpeerconnection.RTCPeerConnection = RelayedPeerConnection  # type: ignore[misc]


def _names_of_stock() -> set[str]:
    """``module.name`` of each module but aiortc's and ours that has the stock class."""
    found: dict[tuple[int, str], str] = {}
    for module_name, module in reversed(list(sys.modules.items())):
        if module_name.partition(".")[0] in ("aiortc", "transceiver"):
            continue
        # By their dictionaries: to ask a module for a name may make it load others.
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is _STOCK:
                found[id(module), name] = f"{module_name}.{name}"
    return set(found.values())


def _names_of_subclasses(stock: type[aiortc.RTCPeerConnection]) -> set[str]:
    found: set[str] = set()
    for subclass in stock.__subclasses__():
        if subclass is not RelayedPeerConnection:
            found |= {f"{subclass.__module__}.{subclass.__qualname__}"} | _names_of_subclasses(subclass)
    return found
