"""A pipecat bot behind the relay: it says again what you said, once you stop speaking.

    relayctl start --role relay          # one terminal
    python examples/pipecat_bot.py       # another; then open http://127.0.0.1:7860/

Needs examples/requirements.txt. pipecat is the unmodified package: `transceiver.install()` comes before its import, and
the hub is opened where the event loop runs. The voice activity detector's model is part of pipecat's package.
"""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import transceiver

transceiver.install()  # before anything imports aiortc's RTCPeerConnection

import uvicorn
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import HTMLResponse
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames import frames
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc import request_handler
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

_PAGE = Path(__file__).with_name("call.html").read_text().replace("{offer}", "/api/offer")
# What was said just before the detector was sure that it is speech.
_LEAD_S = 0.5


class Parrot(FrameProcessor):
    """Keeps what the user says, and says it when the user has stopped. Speech services would stand here."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = bytearray()
        self._format = (0, 0)
        self._speaking = False

    async def process_frame(self, frame: frames.Frame, direction: FrameDirection) -> None:
        """See FrameProcessor."""
        await super().process_frame(frame, direction)
        match frame:
            case frames.InputAudioRawFrame():
                self._heard += frame.audio
                if not self._speaking:
                    del self._heard[: -int(_LEAD_S * frame.sample_rate) * frame.num_channels * 2]
                self._format = (frame.sample_rate, frame.num_channels)
                return
            case frames.VADUserStartedSpeakingFrame():
                self._speaking = True
            case frames.VADUserStoppedSpeakingFrame():
                self._speaking = False
                await self.push_frame(frames.OutputAudioRawFrame(bytes(self._heard), *self._format))
                self._heard.clear()
        await self.push_frame(frame, direction)


async def run_bot(connection: SmallWebRTCConnection) -> None:
    """One call, from its answer to its end."""
    params = TransportParams(audio_in_enabled=True, audio_out_enabled=True)
    transport = SmallWebRTCTransport(connection, params)
    detector = VADProcessor(vad_analyzer=SileroVADAnalyzer())
    worker = PipelineWorker(Pipeline([transport.input(), detector, Parrot(), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def hung_up(transport: SmallWebRTCTransport, client: SmallWebRTCConnection) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The one UDP socket of all calls."""
    async with transceiver.Hub.open(os.getenv("RELAYCTL_CONFIG"), state_dir=os.getenv("RELAYCTL_STATE_DIR")):
        yield
        await handler.close()


app = FastAPI(lifespan=lifespan)
app.add_api_route("/", lambda: HTMLResponse(_PAGE))
handler = request_handler.SmallWebRTCRequestHandler()


@app.post("/api/offer")
async def offer(request: request_handler.SmallWebRTCRequest, background: BackgroundTasks) -> dict[str, str]:
    """Answers an offer, as pipecat's own runner does."""

    async def start(connection: SmallWebRTCConnection) -> None:
        background.add_task(run_bot, connection)

    return await handler.handle_web_request(request, start)


@app.patch("/api/offer")
async def trickle(request: request_handler.SmallWebRTCPatchRequest) -> dict[str, str]:
    """Takes a client's candidates, of which a lite agent needs none."""
    await handler.handle_patch_request(request)
    return {"status": "success"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="pipecat bot behind the relay")
    parser.add_argument("--port", type=int, default=7860)
    # Calls that go on are cut off after a second, or they would hold up the end of the process.
    uvicorn.run(app, port=parser.parse_args().port, timeout_graceful_shutdown=1)
