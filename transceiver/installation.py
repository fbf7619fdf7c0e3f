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
    late = [
        name
        for name, module in list(sys.modules.items())
        if not name.startswith(("aiortc", "transceiver"))
        and getattr(module, "RTCPeerConnection", None) is _STOCK
    ]
    if late:
        raise HubError(
            f"{', '.join(sorted(late))} took aiortc's RTCPeerConnection already; call transceiver.install() before importing it"
        )
    aiortc.RTCPeerConnection = aiortc.rtcpeerconnection.RTCPeerConnection = RelayedPeerConnection  # type: ignore[misc]
