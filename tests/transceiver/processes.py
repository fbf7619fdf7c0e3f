"""Transceiver processes in one event loop: each with its sessions, its UDP socket, and both of its HTTP listeners."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from host.sockets import bind_tcp, bind_udp, bound_address
from tests.transceiver.checks import VIP, VIP_V6
from transceiver.backend import BackendFactory
from transceiver.backend.echo import EchoBackend
from transceiver.hub import Hub, HubSettings
from transceiver.load_board import LoadBoard, create_board_fd
from transceiver.media.settings import SPEECH, AudioSettings
from transceiver.mux import Mux
from transceiver.overload import Limits
from transceiver.sessions import Sessions, SessionSettings
from transceiver.signaling.app import Signaling, SignalingSettings
from transceiver.signaling.elsewhere import Elsewhere
from wire.address import Address
from wire.keys import FleetKey, KeyRing

KEYS = KeyRing([FleetKey(1, bytes(range(32)))], 1)
LOOPBACK = Address.parse("127.0.0.1:0")
CLUSTER_ID = 7

Client = TestClient[Request, Application]


@dataclass
class Process:
    """``public`` is a client of the public listener; ``internal`` one of the siblings' listener.

    ``supervisor`` is the supervisor's view of ``board``; ``publishing`` the task without which the process seems to hang.
    """

    sessions: Sessions
    mux: Mux
    address: Address
    public: Client
    internal: Client
    elsewhere: Elsewhere
    board: LoadBoard
    supervisor: LoadBoard
    publishing: asyncio.Task[None]

    @property
    def internal_http(self) -> Address:
        """Where siblings pass requests on to."""
        return self.sessions.settings.internal_http

    async def restart_empty(self) -> None:
        """Every session is gone; the listeners are still there."""
        await self.sessions.close_all("restarted")


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Process]:
    """A process that serves by itself until the end of the block; ``options`` as those of ``serving_on``."""
    async with serving_siblings(1, **options) as (process,):
        yield process


@asynccontextmanager
async def serving_siblings(
    processes: int, *, limits: Sequence[Limits] = (), **options: Any
) -> AsyncIterator[list[Process]]:
    """Processes of one host, which know each other's load; ``limits`` of each, none if it is empty."""
    listeners = [bind_tcp("internal", LOOPBACK) for _ in range(processes)]
    fd = create_board_fd()
    async with AsyncExitStack() as stack:
        stack.callback(os.close, fd)
        supervisor = LoadBoard(fd)
        stack.callback(supervisor.close)
        served = []
        for own, listener in enumerate(listeners):
            board = LoadBoard(fd, own)
            stack.callback(board.close)
            supervisor.open(own, bound_address(listener).port)
            supervisor.admit(own, True)
            own_limits = limits[own] if limits else Limits()
            served.append(
                await stack.enter_async_context(
                    serving_on(board, supervisor, listener, limits=own_limits, **options)
                )
            )
        yield served


@asynccontextmanager
async def serving_on(
    board: LoadBoard,
    supervisor: LoadBoard,
    listener: socket.socket,
    *,
    keys: KeyRing = KEYS,
    vips: tuple[Address, ...] = (VIP, VIP_V6),
    bearer_token: str = "",
    origins: tuple[str, ...] = (),
    request_burst: int = 10_000,
    max_sessions: int = 100,
    limits: Limits = Limits(),  # noqa: B008  # immutable
    make_backend: BackendFactory = EchoBackend,
    audio: AudioSettings = SPEECH,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Process]:
    """One process; ``listener`` is where its siblings pass requests on to."""
    udp = bind_udp("udp", LOOPBACK)
    mux = Mux(udp, (ip_network("127.0.0.0/8"),), clock)
    settings = HubSettings(
        address=bound_address(udp),
        vips=vips,
        cluster_id=CLUSTER_ID,
        audio=audio,
    )
    hub = Hub(settings, keys, mux, clock)
    sessions = Sessions(
        SessionSettings(internal_http=bound_address(listener), max_sessions=max_sessions, limits=limits),
        hub,
        mux,
        make_backend,
        board.publish,
        lambda: board.is_admitted,
    )
    elsewhere = Elsewhere()
    signaling = Signaling(
        sessions,
        keys,
        SignalingSettings(
            bearer_token=bearer_token, origins=origins, requests_per_s=0.5, request_burst=request_burst
        ),
        board,
        elsewhere,
    )
    public = TestClient(TestServer(signaling.public_app()))
    internal = TestClient(
        TestServer(signaling.internal_app(), socket_factory=lambda host, port, family: listener)
    )
    mux.start()
    publishing = asyncio.create_task(sessions.keep_publishing())
    await public.start_server()
    await internal.start_server()
    try:
        yield Process(
            sessions, mux, settings.address, public, internal, elsewhere, board, supervisor, publishing
        )
    finally:
        publishing.cancel()
        await public.close()
        await internal.close()
        await sessions.close_all("shut down")
        mux.stop()
    assert len(sessions) == len(hub) == len(hub.ticker) == 0
