"""Puts our connection in the place of aiortc's, for frameworks that make theirs themselves."""

import sys

import aiortc
import aiortc.rtcpeerconnection

from transceiver.hub import HubError
from transceiver.peer import RelayedPeerConnection

_STOCK = aiortc.RTCPeerConnection


def install() -> None:
    """From now on ``aiortc.RTCPeerConnection`` is ``RelayedPeerConnection``.

    Call it before what makes connections is imported (pipecat, FastRTC). Raises HubError, naming the module, where a
    module has taken the name already: it would go on with sockets of its own.
    """
    # By their dictionaries: to ask a module for a name may make it load others.
    late = {
        id(module): name
        for name, module in reversed(list(sys.modules.items()))
        if name.partition(".")[0] not in ("aiortc", "transceiver")
        and getattr(module, "__dict__", {}).get("RTCPeerConnection") is _STOCK
    }
    if late:
        raise HubError(
            f"{', '.join(sorted(late.values()))} took aiortc's RTCPeerConnection already; call transceiver.install() before importing it"
        )
    aiortc.RTCPeerConnection = aiortc.rtcpeerconnection.RTCPeerConnection = RelayedPeerConnection  # type: ignore[misc]
