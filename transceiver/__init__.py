"""The transceiver: ICE, DTLS and SRTP of many calls on one UDP socket. Run by relayctl, or a library for aiortc's users."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transceiver.hub import Hub, HubError
    from transceiver.installation import install
    from transceiver.media.settings import SPEECH, AudioSettings, MediaPath
    from transceiver.offer import OfferError
    from transceiver.peer import RelayedPeerConnection

__all__ = [
    "SPEECH",
    "AudioSettings",
    "Hub",
    "HubError",
    "MediaPath",
    "OfferError",
    "RelayedPeerConnection",
    "install",
]

# Loaded when asked for: a supervisor, which only configures transceivers, needs no WebRTC stack.
_MODULES = {
    "SPEECH": "media.settings",
    "AudioSettings": "media.settings",
    "Hub": "hub",
    "HubError": "hub",
    "MediaPath": "media.settings",
    "OfferError": "offer",
    "install": "installation",
    "RelayedPeerConnection": "peer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
