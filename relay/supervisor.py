"""The relay as a service of the supervisor: makes the sockets, runs the workers, remembers their flows and counters.

Sockets and counters belong to the supervisor and are inherited, so while a worker restarts its packets queue and its
counts stay. Each worker tells of its assured flows; its successor adopts them before the clients' next checks.
"""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.flow_cache import FlowCache, FlowRecord
from host.channel import Channel, ChannelError
from host.process import Process, ProcessSpec
from host.sockets import bind_udp, bound_address, check_free_udp
from host.supervisor import AdminMethod
from relay.config import RelayConfig
from relay.core.policy import RelayPolicy
from relay.dataplane.counters import WorkerCounters, create_counters_fd
from relay.settings import WorkerSettings
from wire.address import Address
from wire.admin import Message
from wire.keys import KeyRing

_FLOWS_A_MESSAGE = 500


@dataclass
class _WorkerSlot:
    """What outlives a worker process: its sockets, counters and the flows to hand on."""

    index: int
    core: int
    public: list[socket.socket]
    fleet: list[socket.socket]
    flows: FlowCache
    counters_fd: int = field(default_factory=create_counters_fd)

    def __post_init__(self) -> None:
        self.counters = WorkerCounters(self.counters_fd)

    @property
    def fds(self) -> tuple[int, ...]:
        return (*(sock.fileno() for sock in (*self.public, *self.fleet)), self.counters_fd)

    def close(self) -> None:
        for sock in (*self.public, *self.fleet):
            sock.close()
        self.counters.close()
        os.close(self.counters_fd)


class RelayService:
    """See the top of this file. Raises AddressInUseError or ConfigError if a socket cannot be made."""

    name = "relay"

    def __init__(self, config: RelayConfig, cluster_id: int, keys: KeyRing) -> None:
        self._config = config
        self._keys = keys
        self._slots: list[_WorkerSlot] = []
        for vip in config.vips:
            check_free_udp("relay.listen", vip.listen)
        cores = sorted(os.sched_getaffinity(0))
        try:
            for index in range(config.workers):
                self._slots.append(self._make_slot(index, cores[index % len(cores)]))
        except BaseException:
            self.close()
            raise
        fleet_sockets = {bound_address(sock) for slot in self._slots for sock in slot.fleet}
        self._policy = RelayPolicy(
            cluster_id=cluster_id,
            vips=config.vips,
            transceiver_networks=config.transceiver_networks,
            own_sockets=frozenset(fleet_sockets.union(*((v.listen, v.address) for v in config.vips))),
            max_session_s=config.max_session_s,
            max_assured_flows=config.max_assured_flows,
            max_provisional_flows=config.max_provisional_flows,
        )

    def specs(self) -> list[ProcessSpec]:
        """One process a worker slot."""
        return [self._spec(slot) for slot in self._slots]

    async def status(self, processes: Sequence[Process]) -> dict[str, Any]:
        """Addresses, workers, and the counters of all workers added up."""
        verdicts, events, gauges = Counter[str](), Counter[str](), Counter[str]()
        workers = []
        for slot, process in zip(self._slots, processes, strict=True):
            verdicts.update(slot.counters.verdicts())
            events.update(slot.counters.events())
            own_gauges = slot.counters.gauges()
            gauges.update(own_gauges)
            workers.append(
                {
                    **process.describe(),
                    "fleet": [str(bound_address(sock)) for sock in slot.fleet],
                    "packets": sum(slot.counters.verdicts().values()),
                    **own_gauges,
                }
            )
        return {
            "dataplane": "userspace",
            "vips": [{"listen": str(v.listen), "vip": str(v.address)} for v in self._config.vips],
            "workers": workers,
            "verdicts": dict(verdicts),
            "events": dict(events),
            **gauges,
        }

    async def drain(self, processes: Sequence[Process], timeout_s: float) -> None:
        """Nothing to wait for: workers empty their sockets when they are stopped."""

    def methods(self, processes: Sequence[Process]) -> dict[str, AdminMethod]:
        """``flows``."""

        async def flows(limit: int = 1000, client: str | None = None) -> list[dict[str, Any]]:
            answers = await asyncio.gather(
                *(process.request("flows", limit=limit, client=client) for process in processes),
                return_exceptions=True,
            )
            listed: list[dict[str, Any]] = []
            for index, answer in enumerate(answers):
                if isinstance(answer, ChannelError):
                    continue  # a worker in back-off has no flows to show
                if isinstance(answer, BaseException):
                    raise answer
                listed += [{**flow, "worker": index} for flow in answer]
            return listed[:limit]

        return {"flows": flows}

    def close(self) -> None:
        """Close sockets and counters."""
        for slot in self._slots:
            slot.close()
        self._slots.clear()

    def _make_slot(self, index: int, core: int) -> _WorkerSlot:
        def fleet_address(base: Address) -> Address:
            return Address(base.host, base.port + index) if base.port else base

        public: list[socket.socket] = []
        fleet: list[socket.socket] = []
        try:
            for vip in self._config.vips:
                public.append(bind_udp("relay.listen", vip.listen, reuseport=True))
            for base in self._config.fleet_listen:
                fleet.append(bind_udp("relay.fleet_listen", fleet_address(base)))
        except BaseException:
            for sock in (*public, *fleet):
                sock.close()
            raise
        return _WorkerSlot(index, core, public, fleet, FlowCache(self._config.max_assured_flows))

    def _spec(self, slot: _WorkerSlot) -> ProcessSpec:
        def settings() -> dict[str, Any]:
            return WorkerSettings(
                policy=self._policy,
                keys=self._keys,
                public_fds=tuple(sock.fileno() for sock in slot.public),
                fleet_fds=tuple(sock.fileno() for sock in slot.fleet),
                counters_fd=slot.counters_fd,
            ).to_message()

        async def hand_on_flows(channel: Channel) -> None:
            flows = [record.to_json() for record in slot.flows.records()]
            for start in range(0, len(flows), _FLOWS_A_MESSAGE):
                channel.send_event("adopt", flows=flows[start : start + _FLOWS_A_MESSAGE])
                await channel.drain()
            channel.send_event("serve")

        def follow_flow(message: Message) -> None:
            record = FlowRecord.from_json(message["flow"])
            if message["event"] == "flow_assured":
                slot.flows.remember(record)
            else:
                slot.flows.forget(record.client, record.vip)

        return ProcessSpec(
            name=f"worker-{slot.index}",
            module="relay.worker",
            fds=slot.fds,
            core=slot.core,
            settings=settings,
            handover=hand_on_flows,
            on_event=follow_flow,
        )
