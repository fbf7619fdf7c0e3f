"""The transceivers of this host as a service of the supervisor: makes their sockets, runs and drains them."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

from fleet.service import FleetService
from host.channel import ChannelError
from host.errors import AddressInUseError
from host.process import Process, ProcessSpec
from host.registry import ProcessRegistry
from host.sockets import bind_tcp, bind_udp, bound_address, take_without_checksum
from host.supervisor import AdminMethod, ProcessGroup
from transceiver.config import TransceiverConfig
from transceiver.load_board import LoadBoard, create_board_fd
from transceiver.settings import TransceiverSettings
from wire.address import Address
from wire.keys import KeyRing

logger = logging.getLogger(__name__)

_MODULE = "transceiver.process"
_DRAIN_POLL_S = 0.2


class TransceiverService:
    """See the top of this file. Raises AddressInUseError or ConfigError if a socket cannot be made."""

    name = "transceivers"

    def __init__(
        self,
        config: TransceiverConfig,
        cluster_id: int,
        vips: tuple[Address, ...],
        keys: KeyRing,
        bearer_token: str,
        registry: ProcessRegistry,
        user: str | None = None,
        *,
        fleet: FleetService | None = None,
    ) -> None:
        self._config = config
        self._cluster_id = cluster_id
        # One candidate an address family: more would only be more pairs for the client to check.
        self._vips = tuple({vip.family: vip for vip in reversed(vips)}.values())[::-1]
        self._keys = keys
        self._bearer_token = bearer_token
        self._left_behind = {entry.pid for entry in registry.left_behind if entry.module == _MODULE}
        self._user = user
        self._fleet = fleet
        self._sockets: list[tuple[socket.socket, socket.socket]] = []
        self._load_fd = create_board_fd(config.processes)
        self._board = LoadBoard(self._load_fd)
        self._http = bind_tcp("transceiver.http", config.http)
        try:
            for index in range(config.processes):
                self._sockets.append(self._make_sockets(index))
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where the demo page and signaling are."""
        scheme = "https" if self._config.tls_cert else "http"
        return f"{scheme}://{bound_address(self._http)}/"

    def specs(self) -> list[ProcessSpec]:
        """One process a pair of sockets."""
        return [
            ProcessSpec(
                name=f"transceiver-{index}",
                module=_MODULE,
                user=self._user,
                fds=(udp.fileno(), self._http.fileno(), internal.fileno(), self._load_fd),
                settings=self._settings(index).to_message,
                on_exit=partial(self._board.close_process, index),
            )
            for index, (udp, internal) in enumerate(self._sockets)
        ]

    async def take_over(self) -> None:
        """Nothing to do: transceivers that were left behind carry their calls to the end, and take no new ones."""

    @property
    def has_taken_over(self) -> bool:
        """They go on by themselves."""
        return False

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        """The signaling address, and each process with its counts."""
        answers = await self._ask(processes, "status")
        return {
            "http": self.url,
            "bearer_token_file": str(self._config.bearer_token_file) if self._bearer_token else None,
            "processes": [
                {"address": str(bound_address(udp)), **process.describe(), **(answer or {})}
                for (udp, _), process, answer in zip(self._sockets, processes, answers, strict=True)
            ],
        }

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Refuse new sessions and wait until the last has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(await self._ask(processes, "drain")):  # noqa: ASYNC110  # other processes end the calls
                    await asyncio.sleep(_DRAIN_POLL_S)

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        """``sessions``."""

        async def sessions() -> list[dict[str, Any]]:
            answers = await self._ask(processes, "sessions")
            return [
                {"transceiver": process.spec.name, **session}
                for process, answer in zip(processes, answers, strict=True)
                for session in answer or []
            ]

        return {"sessions": sessions}

    def close(self) -> None:
        """Close every socket."""
        if self._load_fd >= 0:
            self._board.close()
            os.close(self._load_fd)
            self._load_fd = -1
        self._http.close()
        for pair in self._sockets:
            for sock in pair:
                sock.close()
        self._sockets.clear()

    async def _ask(self, processes: Iterable[Process], method: str) -> list[Any]:
        """Each process's answer, None from one that is being restarted."""
        answers = await asyncio.gather(*(p.request(method) for p in processes), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ChannelError):
                raise answer
        return [None if isinstance(answer, ChannelError) else answer for answer in answers]

    def _make_sockets(self, index: int) -> tuple[socket.socket, socket.socket]:
        base = self._config.listen
        udp = self._bind_udp(Address(base.host, base.port + index) if base.port else base)
        take_without_checksum(udp)
        try:
            return udp, bind_tcp("transceiver.listen", Address(base.host, 0))
        except BaseException:
            udp.close()
            raise

    def _bind_udp(self, address: Address) -> socket.socket:
        """Any port where one that was left behind still has calls on this one; hints name whatever port it is."""
        try:
            return bind_udp("transceiver.listen", address)
        except AddressInUseError as error:
            if not error.pids or not error.pids <= self._left_behind:
                raise
            logger.warning("%s still has calls of an earlier start; taking any other port", address)
            return bind_udp("transceiver.listen", Address(address.host, 0))

    def _settings(self, index: int) -> TransceiverSettings:
        udp, internal = self._sockets[index]
        return TransceiverSettings(
            keys=self._keys,
            cluster_id=self._cluster_id,
            address=bound_address(udp),
            vips=self._vips,
            relay_networks=self._config.relay_networks,
            max_sessions=self._config.max_sessions,
            internal_http=bound_address(internal),
            bearer_token=self._bearer_token,
            origins=self._config.origins,
            requests_per_s=self._config.requests_per_s,
            request_burst=self._config.request_burst,
            tls_cert=str(self._config.tls_cert or ""),
            tls_key=str(self._config.tls_key or ""),
            index=index,
            siblings_http=tuple(bound_address(sibling) for _, sibling in self._sockets),
            load_fd=self._load_fd,
            udp_fd=udp.fileno(),
            http_fd=self._http.fileno(),
            internal_http_fd=internal.fileno(),
        )
