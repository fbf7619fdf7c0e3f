"""A transceiver process: one UDP socket, its sessions, and its share of the HTTP port.

Run by the supervisor as ``python -m transceiver.process FD``, where FD is its control channel. It ends on SIGTERM, after
it has ended its calls. When the channel closes, its supervisor has died: then it takes no new calls, and ends with the
last one that it has.
"""

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.log import configure_logging
from host.privileges import drop_privileges
from transceiver.backend.echo import EchoBackend
from transceiver.config import EchoMode
from transceiver.hub import Hub, HubSettings
from transceiver.load_board import LoadBoard
from transceiver.media.opus import OpusError, opus_version
from transceiver.media.settings import SPEECH, MediaPath
from transceiver.mux import Mux
from transceiver.overload import Limits
from transceiver.sessions import Sessions, SessionSettings
from transceiver.settings import TransceiverSettings
from transceiver.signaling.app import Signaling, SignalingSettings
from transceiver.signaling.elsewhere import Elsewhere, Transceiver
from wire.admin import Message, decode_message_untrusted

try:
    import uvloop
except ImportError:  # it is not made for every platform
    _new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    _EVENT_LOOP = "asyncio"
else:
    _new_event_loop = uvloop.new_event_loop
    _EVENT_LOOP = f"uvloop {version('uvloop')}"

logger = logging.getLogger("transceiver.process")

# Connections that one wake-up of the loop may accept: all processes share the listening socket, and the least busy one
# should get the next call.
_ACCEPT_BATCH = 1
_LISTEN_BACKLOG = 512
_CALLS_POLL_S = 0.5


class TransceiverProcess:
    """Glue between the hub, the mux, signaling and the supervisor."""

    def __init__(self, settings: TransceiverSettings) -> None:
        self._settings = settings
        self._mux = Mux(socket.socket(fileno=settings.udp_fd), settings.relay_networks, time.monotonic)
        board = LoadBoard(settings.load_fd, settings.index)
        self._hub = Hub(
            HubSettings(
                address=settings.address,
                vips=settings.vips,
                cluster_id=settings.cluster_id,
                audio=replace(
                    SPEECH,
                    path=settings.media,
                    complexity=settings.opus_complexity,
                    adaptive=settings.opus_adaptive,
                ),
            ),
            settings.keys,
            self._mux,
        )
        self._sessions = Sessions(
            SessionSettings(
                internal_http=settings.internal_http,
                max_sessions=settings.max_sessions,
                limits=Limits(memory_bytes=settings.max_memory_bytes, cpu=settings.max_cpu),
            ),
            self._hub,
            self._mux,
            lambda: EchoBackend(transcode=settings.echo is EchoMode.TRANSCODE),
            publish=board.publish,
            is_admitted=lambda: board.is_admitted,
        )
        self._elsewhere = Elsewhere()
        self._signaling = Signaling(
            self._sessions,
            settings.keys,
            SignalingSettings(
                bearer_token=settings.bearer_token,
                origins=settings.origins,
                requests_per_s=settings.requests_per_s,
                request_burst=settings.request_burst,
            ),
            board,
            self._elsewhere,
        )
        self._tls = _tls_context(settings)
        self._ending = asyncio.Event()

    async def run(self, channel: Channel) -> None:
        """Serve until SIGTERM, or without a supervisor until the last call ends."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
        self._mux.start()
        sweeping = asyncio.create_task(self._hub.sweep())
        self._sessions.publish_load()  # before anybody hears that we are ready
        publishing = asyncio.create_task(self._sessions.keep_publishing())
        public = await self._serve_http(self._signaling.public_app(), self._settings.http_fd, self._tls)
        internal = await self._serve_http(
            self._signaling.internal_app(), self._settings.internal_http_fd, None
        )
        serving = asyncio.create_task(self._serve_supervisor(channel, public))
        # What is here now stays: collections look through what calls leave behind only, so they are short, and come sooner.
        gc.collect()
        gc.freeze()
        channel.send_event("ready")
        await self._ending.wait()
        self._sessions.draining = True
        sweeping.cancel()
        await self._sessions.close_all("shut down")
        for runner in (public, internal):
            await runner.cleanup()
        publishing.cancel()
        self._mux.stop()
        channel.close()
        await serving

    async def _serve_supervisor(self, channel: Channel, public: web.AppRunner) -> None:
        await channel.run()
        if self._ending.is_set():
            return
        logger.warning("the supervisor is gone; calls go on to their end: %d", len(self._sessions))
        self._sessions.draining = True
        # The next supervisor needs the address; what belongs to our calls still comes by the internal one.
        await public.cleanup()
        while len(self._sessions) and not self._ending.is_set():  # noqa: ASYNC110  # ends with the calls, or by SIGTERM
            await asyncio.sleep(_CALLS_POLL_S)
        self._ending.set()

    async def answer(self, method: str, params: dict[str, Any]) -> Any:
        """Requests of the supervisor."""
        match method:
            case "ping":
                return "pong"
            case "status":
                tasks = {"tasks": len(asyncio.all_tasks())}
                return self._sessions.describe() | self._describe_media() | tasks
            case "sessions":
                return self._sessions.describe_sessions()
            case "session_ids":
                return [session_id.hex() for session_id in self._sessions.ids]
            case "kick":
                wanted = [bytes.fromhex(session_id) for session_id in params["sessions"]]
                return [one.hex() for one in await self._sessions.kick(wanted, str(params["why"]))]
            case "end_sessions":
                await self._sessions.close_all(str(params["reason"]))
                return None
        raise ChannelError(f"no method {method!r} in a transceiver")

    def receive_event(self, message: Message) -> None:
        """What the supervisor tells."""
        match message["event"]:
            case "elsewhere":
                self._elsewhere.update([Transceiver.from_message(entry) for entry in message["transceivers"]])
            case "max_memory":
                gauge = self._sessions.gauge
                gauge.limits = replace(gauge.limits, memory_bytes=int(message["bytes"]))

    def _describe_media(self) -> dict[str, Any]:
        """What carries the audio; ``opus`` is of our own path."""
        path = self._settings.media
        return {
            "media": path.value,
            "opus": _opus() if path is MediaPath.DIRECT else None,
            "opus_complexity": self._hub.effort.complexity if path is MediaPath.DIRECT else None,
            "event_loop": _EVENT_LOOP,
        }

    async def _serve_http(self, app: web.Application, fd: int, tls: ssl.SSLContext | None) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        listener = socket.socket(fileno=fd)
        await web.SockSite(runner, listener, ssl_context=tls, backlog=_ACCEPT_BATCH).start()
        listener.listen(_LISTEN_BACKLOG)
        return runner


def _opus() -> str:
    try:
        return opus_version()
    except OpusError as error:  # calls in G.711 and G.722 work without
        return str(error)


def _tls_context(settings: TransceiverSettings) -> ssl.SSLContext | None:
    if not settings.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    return context


class _QuietBadRequests(logging.Filter):
    """Keeps requests that are no HTTP out of the log: anybody can send them, and aiohttp writes a traceback for each."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _main(control_fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=control_fd), limit=STREAM_LIMIT)
    line = await reader.readline()
    if not line:
        return
    message = decode_message_untrusted(line)
    process = TransceiverProcess(TransceiverSettings.from_message(message["settings"]))
    drop_privileges(message["user"])
    await process.run(Channel(reader, writer, on_request=process.answer, on_event=process.receive_event))


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging()
    logging.getLogger("aiohttp.server").addFilter(_QuietBadRequests())
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(_main(int(sys.argv[1])))


if __name__ == "__main__":
    main()
