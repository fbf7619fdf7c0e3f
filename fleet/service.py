"""The fleet as a service of the supervisor: runs the agent, which alone speaks with Redis, and keeps what is known of other hosts.

The lines between the agent and a relay's processes are made here, once, and outlive both. Nothing waits for Redis: what is
told of other hosts is what was heard last, for as long as their leases last.
"""

import asyncio
import contextlib
import datetime
import hashlib
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fleet.config import RedisConfig
from fleet.line import RelayLine, open_line
from fleet.settings import AgentSettings
from host.channel import Channel, ChannelError
from host.errors import ConfigError, OperatorError
from host.process import ProcessSpec
from host.supervisor import AdminMethod, ProcessGroup
from wire.address import Address
from wire.admin import Message
from wire.keys import KeyRing

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")
# Slots that a relay may have (relay.config.MAX_WORKERS), each with a line.
MAX_LINES = 64
_BEAT_S = 1.0
# The agent answers at once, whatever Redis does.
_STATUS_TIMEOUT_S = 1.0
# A question to Redis, and what the agent adds.
_QUESTION_TIMEOUT_S = 10.0

Presence = dict[str, Any]
PresenceSource = Callable[[], Awaitable[Presence]]
LeasesListener = Callable[[list[dict[str, Any]]], None]


class FleetService:
    """See the top of this file. Without ``config.url`` it has no process and no line."""

    name = "fleet"

    def __init__(
        self,
        config: RedisConfig,
        cluster_id: int,
        keys: KeyRing,
        version: str,
        user: str | None = None,
    ) -> None:
        self.host_id = secrets.token_hex(8)
        self.host_name = socket.gethostname()
        self.machine = _machine()
        self._config = config
        self._cluster_id = cluster_id
        self._keys = keys.record_keys()
        self._user = user
        self._host = {
            "host_id": self.host_id,
            "host_name": self.host_name,
            "machine": self.machine,
            "version": version,
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        self._sources: list[PresenceSource] = []
        self._listeners: list[LeasesListener] = []
        self._presence: Presence = {"relay": None, "transceivers": []}
        # What sources raised at the last beat: told once.
        self._untold: set[str] = set()
        self._leases: list[dict[str, Any]] = []
        self._leases_read_at = 0.0
        self._secrets = config.read_secrets()
        self._agent: Channel | None = None
        self._beating: asyncio.Task[None] | None = None
        # Both ends of each: a worker, and the agent, may be restarted at any time. The last one is our own.
        self._lines = [open_line() for _ in range(MAX_LINES + 1)] if config.url else []
        self.line = RelayLine(self._lines[-1][0]) if self._lines else None

    @property
    def enabled(self) -> bool:
        """Whether there is a Redis to ask."""
        return bool(self._config.url)

    @property
    def flow_ttl_s(self) -> int:
        """A flow that is not told again within this is forgotten."""
        return self._config.flow_ttl_s

    @property
    def url(self) -> str:
        """Where Redis is, without credentials; empty without one."""
        return self._config.url

    def worker_line_fd(self, slot: int) -> int:
        """The end that the worker of that slot inherits; -1 without Redis."""
        return self._lines[slot][0].fileno() if self._lines else -1

    def announce(self, source: PresenceSource) -> None:
        """Tell others of what ``source`` says of us, every second: ``{"relay": {...}}`` or ``{"transceivers": [...]}``."""
        self._sources.append(source)

    def on_leases(self, listener: LeasesListener) -> None:
        """Call with the living leases of other hosts' transceivers, whenever they may have changed; also of those that are full."""
        self._listeners.append(listener)

    def others(self) -> list[dict[str, Any]]:
        """The living leases of other hosts, with ``age_s`` and ``expires_s`` as of now."""
        passed = time.monotonic() - self._leases_read_at
        aged = (
            {
                **lease,
                "age_s": round(lease["age_s"] + passed, 1),
                "expires_s": round(lease["expires_s"] - passed, 1),
            }
            for lease in self._leases
        )
        return [lease for lease in aged if lease["expires_s"] > 0]

    def specs(self) -> list[ProcessSpec]:
        """The agent, if there is a Redis."""
        if not self.enabled:
            return []
        return [
            ProcessSpec(
                name="fleet-agent",
                module="fleet.agent",
                fds=tuple(agent_end.fileno() for _, agent_end in self._lines),
                user=self._user,
                settings=self._settings,
                handover=self._meet_agent,
                on_event=self._follow_agent,
            )
        ]

    async def take_over(self) -> None:
        """Begin to tell others of us."""
        self._beating = asyncio.create_task(self._beat(), name="presence in the fleet")

    @property
    def has_taken_over(self) -> bool:
        """An agent that was left behind ends with the last worker that it serves."""
        return False

    @property
    def ends_with_supervisor(self) -> str:
        """No call needs it."""
        return ""

    def listeners(self) -> dict[str, int]:
        """None."""
        return {}

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        """Whether Redis can be used, and how often it was.

        ``{"redis": "redis://10.0.0.9:6379/0", "state": "connected", "why": "", "since_s": 12.3, "reads": {"state": "closed",
        "error": ""}, "writes": {...}, "counts": {"told": 20, ...}, "agent": {"name": "fleet-agent", "pid": 7, ...}}``.
        ``state`` is connected, degraded (one of reads and writes works), away, or off without a Redis.
        """
        if not self.enabled:
            return {"redis": None, "state": "off", "why": "no [redis] url is configured"}
        (agent,) = (process.describe() for process in processes)
        try:
            state = await self._ask("status", timeout_s=_STATUS_TIMEOUT_S)
        except ChannelError as error:
            state = {"state": "away", "why": f"the agent that asks Redis does not answer ({error})"}
        return {"redis": self._config.url, **state, "agent": agent}

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Nothing to wait for; the relay and the transceivers have ended."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        """``fleet``, ``cache_get`` and ``cache_stats``."""

        async def fleet() -> dict[str, Any]:
            await self._gather_presence()
            status = await self.status(processes) if self.enabled else None
            return {"redis": status, **self._describe_fleet()}

        async def cache_get(client: str, vip: str | None = None) -> list[dict[str, Any]]:
            vips = [vip] if vip is not None else self._known_vips()
            self._check_enabled()
            _parse("--client", client)
            for address in vips:
                _parse("--vip", address)
            return list(await self._ask("cache_get", timeout_s=_QUESTION_TIMEOUT_S, client=client, vips=vips))

        async def cache_stats() -> dict[str, Any]:
            self._check_enabled()
            return dict(await self._ask("cache_stats", timeout_s=_QUESTION_TIMEOUT_S))

        return {"fleet": fleet, "cache_get": cache_get, "cache_stats": cache_stats}

    def close(self) -> None:
        """Close the lines."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        for ends in self._lines:
            for end in ends:
                end.close()
        self._lines.clear()
        self.line = None

    def _settings(self) -> dict[str, Any]:
        self._reread_secrets()
        return AgentSettings(
            redis=self._config,
            secrets=self._secrets,
            cluster_id=self._cluster_id,
            keys=self._keys,
            line_fds=tuple(agent_end.fileno() for _, agent_end in self._lines),
        ).to_message()

    async def _meet_agent(self, channel: Channel) -> None:
        self._agent = channel

    def _follow_agent(self, message: Message) -> None:
        match message:
            case {"event": "leases", "leases": list(leases)}:
                self._leases, self._leases_read_at = leases, time.monotonic()
                self._tell_listeners()

    async def _ask(self, method: str, *, timeout_s: float, **params: Any) -> Any:
        if self._agent is None:
            raise ChannelError("it has not started")
        return await self._agent.request(method, timeout_s=timeout_s, **params)

    async def _beat(self) -> None:
        while True:
            try:
                await self._tell_of_us()
            except Exception:
                logger.exception("others are not told of this host")
            # Leases lapse also while nothing is heard.
            self._tell_listeners()
            await asyncio.sleep(_BEAT_S)

    async def _tell_of_us(self) -> None:
        await self._gather_presence()
        if self._agent is None or self._agent.is_closed:
            return
        if self._reread_secrets():
            self._agent.send_event("secrets", **self._secrets._asdict())
        self._agent.send_event("presence", leases=self._own_leases())

    async def _gather_presence(self) -> None:
        presence: Presence = {"relay": None, "transceivers": []}
        answers = await asyncio.gather(*(source() for source in self._sources), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, dict):
                presence |= answer
        untold = {str(answer) for answer in answers if isinstance(answer, Exception)}
        for problem in untold - self._untold:
            logger.warning("a part of this host cannot be told of: %s", problem)
        self._presence, self._untold = presence, untold

    def _own_leases(self) -> dict[str, dict[str, Any]]:
        """What we tell of ourselves, by the name of the lease."""
        leases = {f"transceiver:{part['address']}": part for part in self._presence["transceivers"]}
        if self._presence["relay"] is not None:
            leases[f"relay:{self.host_id}"] = self._presence["relay"]
        return {name: {**part, **self._host} for name, part in leases.items()}

    def _tell_listeners(self) -> None:
        if not self._listeners:
            return
        transceivers = [
            lease
            for lease in self.others()
            if lease["kind"] == "transceiver" and lease["host_id"] != self.host_id
        ]
        for listener in self._listeners:
            try:
                listener(transceivers)
            except Exception:  # a defect of a listener must not silence this host
                logger.exception("a listener of leases failed")

    def _describe_fleet(self) -> dict[str, Any]:
        own = [
            {"kind": name.partition(":")[0], **document, "age_s": 0.0, "expires_s": None, "here": True}
            | {"lease": self._told(name)}
            for name, document in self._own_leases().items()
        ]
        everybody = own + [
            {**lease, "here": False} for lease in self.others() if lease["host_id"] != self.host_id
        ]
        transceivers = [lease for lease in everybody if lease["kind"] == "transceiver"]
        sessions = sum(lease["sessions"] for lease in transceivers)
        room = sum(lease["max_sessions"] for lease in transceivers if lease["state"] == "ready")
        return {
            "relays": [lease for lease in everybody if lease["kind"] == "relay"],
            "transceivers": transceivers,
            "sessions": sessions,
            "max_sessions": room,
            "load": round(sessions / room, 3) if room else None,
        }

    def _told(self, name: str) -> dict[str, Any] | None:
        """How others see us: what Redis has of our own lease, and how long it lasts; None if it has none."""
        for lease in self.others():
            of_whom = lease["address"] if lease["kind"] == "transceiver" else lease["host_id"]
            if lease["host_id"] == self.host_id and f"{lease['kind']}:{of_whom}" == name:
                return {field: lease[field] for field in ("state", "age_s", "expires_s")}
        return None

    def _known_vips(self) -> list[str]:
        own = (self._presence["relay"] or {}).get("vips", [])
        others = (vip for lease in self.others() if lease["kind"] == "relay" for vip in lease["vips"])
        return list(dict.fromkeys([*own, *others]))

    def _check_enabled(self) -> None:
        if not self.enabled:
            raise OperatorError("there is no Redis to ask; `relayctl start --redis URL` names one")

    def _reread_secrets(self) -> bool:
        """Whether a password has changed since; one that cannot be read now stays as it was."""
        before = self._secrets
        with contextlib.suppress(ConfigError):
            self._secrets = self._config.read_secrets()
        return self._secrets != before


def _machine() -> str:
    """The same for all in this network namespace, and another after a boot; empty if the kernel does not tell.

    A loopback address in a lease means something only there.
    """
    try:
        boot_id, namespace = _BOOT_ID.read_bytes().strip(), _NETWORK.stat().st_ino
    except OSError:
        return ""
    return hashlib.sha256(b"%s %d" % (boot_id, namespace)).hexdigest()[:16]


def _parse(flag: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise ConfigError(flag, str(error)) from None
