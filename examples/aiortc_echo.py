"""An aiortc echo server behind the relay: audio and data channel messages come back.

    relayctl start --role relay          # one terminal
    python examples/aiortc_echo.py       # another; then open http://127.0.0.1:8081/

A server on stock aiortc differs in the three lines that are marked "relay".
"""

import argparse
import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

import transceiver  # relay (1)

logger = logging.getLogger("aiortc_echo")

_PAGE = Path(__file__).with_name("call.html").read_text().replace("{offer}", "/offer")
calls: set[RTCPeerConnection] = set()


async def answer(request: web.Request) -> web.Response:
    """POST /offer with {"sdp", "type"}; answers the same."""
    offer = await request.json()
    peer = transceiver.RelayedPeerConnection()  # relay (2): was RTCPeerConnection()
    calls.add(peer)

    @peer.on("connectionstatechange")
    async def state_changed() -> None:
        logger.info("connection is %s", peer.connectionState)
        if peer.connectionState == "failed":
            await peer.close()
        if peer.connectionState == "closed":
            calls.discard(peer)

    @peer.on("datachannel")
    def channel_opened(channel: RTCDataChannel) -> None:
        channel.on("message", channel.send)

    @peer.on("track")
    def track_arrived(track: MediaStreamTrack) -> None:
        peer.addTrack(track)

    await peer.setRemoteDescription(RTCSessionDescription(offer["sdp"], offer["type"]))
    await peer.setLocalDescription(await peer.createAnswer())
    description = peer.localDescription
    return web.json_response({"sdp": description.sdp, "type": description.type})


async def page(request: web.Request) -> web.Response:
    """A page that places a call."""
    return web.Response(text=_PAGE, content_type="text/html")


async def open_hub(app: web.Application) -> AsyncIterator[None]:
    """The one UDP socket of all calls is there as long as the server."""
    # relay (3)
    async with transceiver.Hub.open(os.getenv("RELAYCTL_CONFIG"), state_dir=os.getenv("RELAYCTL_STATE_DIR")):
        yield
        await asyncio.gather(*(peer.close() for peer in list(calls)))


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description="aiortc echo server behind the relay")
    parser.add_argument("--port", type=int, default=8081)
    app = web.Application()
    app.cleanup_ctx.append(open_hub)
    app.add_routes([web.get("/", page), web.post("/offer", answer)])
    web.run_app(app, host="127.0.0.1", port=parser.parse_args().port)


if __name__ == "__main__":
    main()
