"""A FastRTC stream behind the relay: an echo of what the caller says.

    relayctl start --role relay          # one terminal
    python examples/fastrtc_app.py       # another; then open http://127.0.0.1:7861/

Needs examples/requirements.txt. FastRTC is the unmodified package: `transceiver.install()` comes before its import, and
the hub is opened where the event loop runs.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

import transceiver

transceiver.install()  # before anything imports aiortc's RTCPeerConnection

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastrtc import AsyncStreamHandler, Stream, wait_for_item

_PAGE = Path(__file__).with_name("call.html").read_text().replace("{offer}", "/webrtc/offer")
_SAMPLE_RATE = 24_000
_MAX_CALLS = 100

Audio = tuple[int, np.ndarray[tuple[int, int], np.dtype[np.int16]]]


class Echo(AsyncStreamHandler):
    """Says what it hears. Speech services would stand here.

    FastRTC's usual handler, ReplyOnPause, fetches the model of its voice activity detector from a hub.
    """

    def __init__(self) -> None:
        super().__init__(input_sample_rate=_SAMPLE_RATE, output_sample_rate=_SAMPLE_RATE)
        self._heard: asyncio.Queue[Audio] = asyncio.Queue()

    def copy(self) -> "Echo":
        """The handler of one more call."""
        return Echo()

    async def receive(self, frame: Audio) -> None:
        """Takes what the caller says."""
        self._heard.put_nowait(frame)

    async def emit(self) -> Audio | None:
        """Gives what is to be said, or None if there is nothing for a while."""
        return await wait_for_item(self._heard)

    async def start_up(self) -> None:
        """Nothing to prepare."""

    async def shutdown(self) -> None:
        """Nothing to end."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The one UDP socket of all calls; its end closes those that are left."""
    async with transceiver.Hub.open(os.getenv("RELAYCTL_CONFIG"), state_dir=os.getenv("RELAYCTL_STATE_DIR")):
        yield


app = FastAPI(lifespan=lifespan)
stream = Stream(Echo(), modality="audio", mode="send-receive", concurrency_limit=_MAX_CALLS)
stream.mount(app)  # POST /webrtc/offer
app.add_api_route("/", lambda: HTMLResponse(_PAGE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="FastRTC echo behind the relay")
    parser.add_argument("--port", type=int, default=7861)
    uvicorn.run(app, port=parser.parse_args().port)
