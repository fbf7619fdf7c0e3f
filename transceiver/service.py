"""The transceivers of this host as a service of the supervisor: makes their sockets, runs and drains them, tells the fleet."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from fleet.service import FleetService
from host.channel import Channel, ChannelError
from host.errors import AddressInUseError
from host.process import Process, ProcessSpec, ProcessState
from host.registry import ProcessRegistry
from host.sockets import bind_tcp, bound_address
from host.supervisor import AdminMethod, ProcessGroup
from transceiver.changes import GOODBYE_TIMEOUT_S, Changes
from transceiver.config import TransceiverConfig
from transceiver.load_board import LoadBoard, create_board_fd
from transceiver.overload import MEBIBYTE, default_memory_bytes, find_memory_bytes
from transceiver.session_names import find_sessions
from transceiver.settings import TransceiverSettings
from transceiver.signaling.elsewhere import Transceiver, usable
from transceiver.slots import BACKLOG, SlotMaker, TransceiverSlot, Wanted
from transceiver.standalone import one_a_family
from wire.address import Address
from wire.keys import KeyRing

logger = logging.getLogger(__name__)

_MODULE = "transceiver.process"
_DRAIN_POLL_S = 0.1
# What a process is asked for ``status``, it answers at once, or it hangs.
_ASK_TIMEOUT_S = 2.0
# They close what they serve there within a second (transceiver.process), a busy one later.
_HTTP_RELEASE_S, _HTTP_POLL_S = 5.0, 0.05


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
        drain_s: float = 5.0,
        fleet: FleetService | None = None,
        http: socket.socket | None = None,
    ) -> None:
        """http: a predecessor's listening socket, ours from now on."""
        self._config = config
        self._cluster_id = cluster_id
        self._vips = one_a_family(vips)
        self._keys = keys
        self._bearer_token = bearer_token
        self._user = user
        self._drain_s = drain_s
        self._slots: dict[str, TransceiverSlot] = {}
        self._changes: Changes | None = None
        self._fleet = fleet
        self._elsewhere: list[Transceiver] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._registry = registry
        left_behind = {entry.pid for entry in registry.left_behind if entry.module == _MODULE}
        self._maker = SlotMaker(config, left_behind)
        self._load_fd = create_board_fd()
        self._board = LoadBoard(self._load_fd)
        self._http = _listen_http(config.http, left_behind, http)
        try:
            for index in range(config.processes):
                slot = self._maker.make(index)
                self._slots[slot.name] = slot
                self._board.open(index, slot.internal_http.port)
                self._board.admit(index, True)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where the demo page and signaling are."""
        scheme = "https" if self._config.tls_cert else "http"
        return f"{scheme}://{bound_address(self._http)}/"

    def specs(self) -> list[ProcessSpec]:
        """One process a slot."""
        return [self._spec(slot) for slot in self._slots.values()]

    async def take_over(self) -> None:
        """Nothing to do: transceivers that were left behind carry their calls to the end, and take no new ones."""

    @property
    def has_taken_over(self) -> bool:
        """They go on by themselves."""
        return False

    @property
    def ends_with_supervisor(self) -> str:
        """They carry their calls to the end."""
        return ""

    def listeners(self) -> dict[str, int]:
        """The port of signaling: connections wait there."""
        return {"http": self._http.fileno()}

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        """The signaling address, and each process with its counts."""
        pairs = list(self._pairs(processes))
        answers = await asyncio.gather(*(self._ask(*pair, "status") for pair in pairs))
        return {
            "http": self.url,
            "bearer_token_file": str(self._config.bearer_token_file) if self._bearer_token else None,
            "processes": [
                {**(answer or {}), **process.describe(), **self._describe(slot, process)}
                for (slot, process), answer in zip(pairs, answers, strict=True)
            ],
        }

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Refuse new sessions and wait until the last has ended."""
        if self._changes is not None:
            self._changes.drain_all()
        deadline = time.monotonic() + timeout_s
        while any(
            self._board.load(slot.index).sessions for slot in self._slots.values()
        ):  # other processes end them
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_DRAIN_POLL_S)

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        """``sessions``, ``kick``, ``transceivers`` with their ``status``, and the verbs that change them."""
        changes = self._changes = Changes(
            self._slots, processes, self._board, self._http, self._maker, self._spec, self._drain_s
        )
        if self._fleet is not None:
            self._fleet.announce(partial(self._presence, processes))
            self._fleet.on_leases(partial(self._follow_others, processes, self._fleet.machine))

        async def transceivers() -> list[dict[str, Any]]:
            return [
                {"name": slot.name, "pid": process.pid, **self._describe(slot, process)}
                | {"restarts": process.restarts, "last_exit": process.last_exit}
                for slot, process in self._pairs(processes)
            ]

        async def drain(names: Sequence[str], deadline_s: float | None = None) -> list[dict[str, Any]]:
            changes.drain(names, deadline_s)
            return await transceivers()

        async def stop(names: Sequence[str], drain_s: float | None = None) -> list[dict[str, Any]]:
            changes.stop(names, drain_s)
            return await transceivers()

        async def start(names: Sequence[str]) -> list[dict[str, Any]]:
            await changes.start(names)
            return await transceivers()

        async def scale(count: int, drain_s: float | None = None) -> dict[str, Any]:
            before = await changes.scale(count, drain_s)
            await self._tell_all(processes, "max_memory", bytes=self._max_memory_bytes())
            return {"before": before, "transceivers": await transceivers()}

        return {
            **self._session_methods(processes, changes),
            "transceivers": transceivers,
            "transceivers_drain": drain,
            "transceivers_stop": stop,
            "transceivers_start": start,
            "transceivers_scale": scale,
        }

    def _session_methods(self, processes: ProcessGroup, changes: Changes) -> dict[str, AdminMethod]:
        async def ask(names: Sequence[str], method: str) -> list[tuple[TransceiverSlot, Process, Any]]:
            """The answer of each; of all, if none is named."""
            slots = changes.find(names) if names else list(self._slots.values())
            pairs = [(slot, process) for slot, process in self._pairs(processes) if slot in slots]
            answers = await asyncio.gather(*(self._ask(*pair, method) for pair in pairs))
            return [(*pair, answer) for pair, answer in zip(pairs, answers, strict=True)]

        async def sessions(names: Sequence[str] = ()) -> list[dict[str, Any]]:
            return [
                {"transceiver": slot.name, **session}
                for slot, _, answer in await ask(names, "sessions")
                for session in answer or []
            ]

        async def status(names: Sequence[str] = ()) -> list[dict[str, Any]]:
            return [
                {
                    "name": slot.name,
                    "pid": process.pid,
                    "uptime_s": process.uptime_s,
                    **(answer or {}),
                    **self._describe(slot, process),
                    "restarts": process.restarts,
                    "last_exit": process.last_exit,
                }
                for slot, process, answer in await ask(names, "status")
            ]

        async def kick(sessions: Sequence[str], why: str = "") -> list[dict[str, Any]]:
            answers = await ask((), "session_ids")
            owners = {
                session_id: (slot, process) for slot, process, ids in answers for session_id in ids or []
            }
            silent = [slot.name for slot, process, ids in answers if ids is None and process.pid is not None]
            found = find_sessions(list(owners), sessions, self._out_of_reach(silent))
            ended = await asyncio.gather(
                *(
                    self._kick(process, [one for one in found if owners[one][1] is process], why)
                    for process in {owners[session_id][1] for session_id in found}
                )
            )
            kicked = {session_id for ids in ended for session_id in ids}
            return [
                {"session": one, "transceiver": owners[one][0].name, "kicked": one in kicked} for one in found
            ]

        return {"sessions": sessions, "kick": kick, "transceivers_status": status}

    async def _kick(self, process: Process, session_ids: list[str], why: str) -> list[str]:
        """Those that it had. Raises ChannelError if it does not answer."""
        return list(await process.request("kick", timeout_s=GOODBYE_TIMEOUT_S, sessions=session_ids, why=why))

    def _out_of_reach(self, silent: Sequence[str]) -> str:
        """Whose sessions we cannot know of, as the end of an error."""
        left_behind = [
            f"{entry.name} (pid {entry.pid}) of an earlier start"
            for entry in self._registry.left_behind
            if entry.module == _MODULE and entry.is_alive
        ]
        names = ", ".join([*silent, *left_behind])
        return f"; those of {names} are out of reach" if names else ""

    def close(self) -> None:
        """Close every socket."""
        if self._load_fd >= 0:
            self._board.close()
            os.close(self._load_fd)
            self._load_fd = -1
        self._http.close()
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()

    def _pairs(self, processes: ProcessGroup) -> Iterator[tuple[TransceiverSlot, Process]]:
        by_name = {process.spec.name: process for process in processes}
        for slot in sorted(self._slots.values(), key=lambda slot: slot.index):
            if slot.name in by_name:
                yield slot, by_name[slot.name]

    def _describe(self, slot: TransceiverSlot, process: Process) -> dict[str, Any]:
        load = self._board.load(slot.index)
        left_s = None if slot.deadline is None else round(max(0.0, slot.deadline - time.monotonic()), 1)
        return {
            "state": self._state(slot, process, load.sessions),
            "wanted": slot.wanted.name.lower(),
            "address": str(slot.address),
            "sessions": load.sessions,
            "connected": load.connected,
            "max_sessions": self._config.max_sessions,
            "full": load.full,
            "deadline_s": left_s if load.sessions else None,
        }

    def _state(self, slot: TransceiverSlot, process: Process, sessions: int) -> str:
        """As of its process, or for one that works: ready, draining, drained, hung."""
        if process.state is not ProcessState.READY:
            return process.state.value
        if self._board.is_hung(slot.index):
            return "hung"
        if slot.wanted is Wanted.SERVING:
            return "ready"
        return "draining" if sessions else "drained"

    async def _ask(self, slot: TransceiverSlot, process: Process, method: str) -> Any:
        """Its answer; None from one that hangs or is being restarted."""
        if self._board.is_hung(slot.index):
            return None
        with contextlib.suppress(ChannelError):
            return await process.request(method, timeout_s=_ASK_TIMEOUT_S)

    async def _presence(self, processes: ProcessGroup) -> dict[str, Any]:
        """What the other hosts hear of ours."""
        fields = ("address", "state", "sessions", "connected", "max_sessions", "full")
        described = [(slot, self._describe(slot, process)) for slot, process in self._pairs(processes)]
        return {
            "transceivers": [
                {
                    "name": slot.name,
                    "internal_http": str(slot.internal_http),
                    **{field: description[field] for field in fields},
                }
                for slot, description in described
            ]
        }

    def _follow_others(self, processes: ProcessGroup, machine: str, leases: list[dict[str, Any]]) -> None:
        """Tell our processes which transceivers of other hosts may take a session, where that has changed."""
        elsewhere = usable(leases, machine)
        if elsewhere == self._elsewhere:
            return
        self._elsewhere = elsewhere
        task = asyncio.create_task(self._tell_all(processes, **self._elsewhere_event()))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_all(self, processes: ProcessGroup, event: str, **fields: Any) -> None:
        await asyncio.gather(*(process.send(event, **fields) for process in processes))

    async def _tell_elsewhere(self, channel: Channel) -> None:
        channel.send_event(**self._elsewhere_event())

    def _elsewhere_event(self) -> dict[str, Any]:
        return {"event": "elsewhere", "transceivers": [t.to_message() for t in self._elsewhere]}

    def _spec(self, slot: TransceiverSlot) -> ProcessSpec:
        return ProcessSpec(
            name=slot.name,
            module=_MODULE,
            user=self._user,
            fds=(slot.udp.fileno(), self._http.fileno(), slot.internal.fileno(), self._load_fd),
            settings=lambda: self._settings(slot).to_message(),
            handover=self._tell_elsewhere,
            on_exit=partial(self._board.close_process, slot.index),
        )

    def _max_memory_bytes(self) -> int:
        if self._config.max_memory_mb:
            return self._config.max_memory_mb * MEBIBYTE
        count = sum(slot.wanted is not Wanted.REMOVED for slot in self._slots.values())
        return default_memory_bytes(find_memory_bytes(), max(1, count))

    def _settings(self, slot: TransceiverSlot) -> TransceiverSettings:
        return TransceiverSettings(
            keys=self._keys,
            cluster_id=self._cluster_id,
            address=slot.address,
            vips=self._vips,
            relay_networks=self._config.relay_networks,
            max_sessions=self._config.max_sessions,
            max_memory_bytes=self._max_memory_bytes(),
            max_cpu=self._config.max_cpu,
            media=self._config.media,
            echo=self._config.echo,
            opus_complexity=self._config.opus_complexity,
            opus_adaptive=self._config.opus_adaptive,
            internal_http=slot.internal_http,
            bearer_token=self._bearer_token,
            origins=self._config.origins,
            requests_per_s=self._config.requests_per_s,
            request_burst=self._config.request_burst,
            tls_cert=str(self._config.tls_cert or ""),
            tls_key=str(self._config.tls_key or ""),
            index=slot.index,
            load_fd=self._load_fd,
            udp_fd=slot.udp.fileno(),
            http_fd=self._http.fileno(),
            internal_http_fd=slot.internal.fileno(),
        )


def _listen_http(
    address: Address, left_behind: Collection[int], predecessors: socket.socket | None
) -> socket.socket:
    """Raises AddressInUseError or ConfigError."""
    if predecessors is not None:
        bound = bound_address(predecessors)
        if bound == Address(address.host, address.port or bound.port):
            predecessors.setblocking(False)
            predecessors.listen(BACKLOG)  # it may have been shut
            return predecessors
        predecessors.close()
    deadline = time.monotonic() + _HTTP_RELEASE_S
    while True:
        try:
            return bind_tcp("transceiver.http", address)
        except AddressInUseError as error:
            # Those that a supervisor has just left behind let go of it as they notice. Without CAP_SYS_PTRACE nobody can
            # tell who holds it.
            if not left_behind or not error.pids <= set(left_behind) or time.monotonic() > deadline:
                raise
        time.sleep(_HTTP_POLL_S)
