"""The relay as a service of the supervisor: runs the workers on their slots, grows and shrinks, tells what happens.

Sockets and counters belong to the supervisor and are inherited, so while a worker restarts its packets queue and its
counts stay. On the kernel's data path a worker that ends gives its slot to another until it is back, and flows are in
maps that every worker reads; else each worker tells of its assured flows, and its successor adopts them.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from fleet.line import RelayLine
from fleet.service import FleetService
from host.channel import Channel, ChannelError
from host.errors import ConfigError
from host.process import Process, ProcessSpec
from host.registry import ProcessRegistry
from host.sockets import bound_address
from host.supervisor import AdminMethod, ProcessGroup
from relay.config import MAX_WORKERS, RelayConfig
from relay.core.policy import AddressRules
from relay.core.verdict import FlowEvent, Verdict
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.choice import choose_data_path
from relay.dataplane.split import Split
from relay.dataplane.sweep import Sweep
from relay.flow_sharing import in_messages, share_flows
from relay.settings import WorkerSettings
from relay.slots import SlotMaker, WorkerSlot
from relay.sweeper import Sweeper
from wire.address import Address
from wire.admin import Message
from wire.errors import WireError
from wire.flow_record import FlowRecord
from wire.keys import KeyRing

logger = logging.getLogger(__name__)

_MODULE = "relay.worker"
# A flow of the cache is told this often while it may live without.
_ROUNDS_A_TTL = 3
# A packet that the kernel gave a socket just before its slot was emptied arrives within this.
_SETTLE_S = 0.05


class RelayService:
    """See the top of this file. Raises OperatorError if data path or sockets cannot be had."""

    name = "relay"

    def __init__(
        self,
        config: RelayConfig,
        cluster_id: int,
        keys: KeyRing,
        pins: PinDir,
        registry: ProcessRegistry,
        user: str | None = None,
        *,
        fleet: FleetService | None = None,
    ) -> None:
        self._config = config
        self._cluster_id = cluster_id
        self._keys = keys
        self._registry = registry
        self._user = user
        self._fleet = fleet
        self._slots: list[WorkerSlot] = []
        # Of userspace workers that `scale` ended; the kernel's counters stay in their map.
        self._departed_verdicts, self._departed_events = Counter[str](), Counter[str]()
        self._is_serving = False
        # What the supervisor does beside, for the kernel's data path.
        self._chores: list[asyncio.Task[None]] = []
        self._sweeper: Sweeper | None = None
        self._state = "running"
        self._scaling = asyncio.Lock()
        left_behind = {entry.pid for entry in registry.left_behind if entry.module == _MODULE}
        self._kernel, self.reason = choose_data_path(config, pins, is_served=bool(left_behind))
        try:
            self._maker = SlotMaker(
                config, self._kernel, fleet.worker_line_fd if fleet is not None else lambda index: -1
            )
            self._maker.check_free(left_behind if self._kernel else set())
            for index in range(config.workers):
                self._slots.append(self._maker.make(index))
            self._policy = self._maker.policy(cluster_id, self._slots)
            self._rules = AddressRules(self._policy)
            self._split = Split()
            if self._kernel is not None:
                self._kernel.check_listeners(self._policy, self._fleet_addresses())
            else:
                self._split.lead(self._slots[0].public, config.workers)
        except BaseException:
            self.close()
            raise
        self._refresh_s = fleet.flow_ttl_s / _ROUNDS_A_TTL if fleet is not None else 0.0
        if fleet is not None:
            fleet.announce(self._presence)

    @property
    def data_path(self) -> str:
        """``xdp`` or ``userspace``."""
        return "userspace" if self._kernel is None else "xdp"

    def specs(self) -> list[ProcessSpec]:
        """One process a worker slot."""
        return [self._spec(slot) for slot in self._slots]

    async def take_over(self) -> None:
        """Steer packets to the workers, then end those that an earlier supervisor left behind."""
        self._is_serving = True
        if self._line is not None:
            asyncio.get_running_loop().add_reader(self._line.fileno(), self._hear_agent)
        if self._kernel is None:
            return
        slots = [(slot.index, slot.sockets) for slot in self._slots]
        next_hops = self._kernel.begin(self._policy, self._fleet_addresses(), slots)
        self._kernel.use_cores(slot.core for slot in self._slots)
        self._sweeper = Sweeper(self._new_sweep, self._want, next_hops, self._line, self._refresh_s)
        self._chores = [
            asyncio.create_task(self._sweeper.run(), name="the sweep of flows"),
            asyncio.create_task(next_hops.run(), name="following the ways to transceivers"),
        ]
        for chore in self._chores:
            chore.add_done_callback(_tell_failure)
        await asyncio.sleep(_SETTLE_S)
        for entry in await asyncio.to_thread(self._registry.end_left_behind, _MODULE):
            logger.info("took over from %s, pid %d", entry.name, entry.pid)

    @property
    def has_taken_over(self) -> bool:
        """Whether the kernel leads packets to our workers."""
        return self._kernel is not None and self._kernel.has_begun

    @property
    def ends_with_supervisor(self) -> str:
        """Without XDP workers do."""
        return f"the relay is on the userspace data path ({self.reason})" if self._kernel is None else ""

    def listeners(self) -> dict[str, int]:
        """None: packets are steered to its own sockets."""
        return {}

    async def status(self, processes: ProcessGroup) -> dict[str, Any]:
        """Addresses, workers, and the counters of all workers added up."""
        verdicts, events, gauges = Counter[str](), Counter[str](), Counter[str]()
        workers = []
        for slot, process in zip(self._slots, processes, strict=False):
            verdicts.update(slot.counters.verdicts())
            events.update(slot.counters.events())
            own_gauges = slot.counters.gauges()
            gauges.update(own_gauges)
            workers.append(
                {
                    "slot": slot.index,
                    **process.describe(),
                    "fleet": [str(bound_address(sock)) for sock in slot.fleet],
                    "packets": _packets(slot.counters.verdicts()),
                    **own_gauges,
                }
            )
        if self._kernel is not None:
            departed = self._kernel.counts_of_others({slot.index for slot in self._slots})
            verdicts.update({label: departed[label] for label in verdicts})
            events.update({label: departed[label] for label in events})
        verdicts.update(self._departed_verdicts)
        events.update(self._departed_events)
        xdp = self._kernel.counts() if self._kernel else {}
        verdicts.update(xdp)
        if self._kernel is not None:
            gauges.update(self._kernel.forwarded_bytes())
        if self._sweeper is not None:
            events[FlowEvent.FLOW_EXPIRED.label] += self._sweeper.expired
            events[FlowEvent.FLOW_UNTOLD.label] += self._sweeper.untold
            # not `|=`: a Counter would drop what is 0
            for name, count in self._sweeper.gauges.items():
                gauges[name] = max(gauges[name], count)
        return {
            "dataplane": self.data_path,
            "reason": self.reason,
            **({"kernel": self._kernel.describe()} if self._kernel else {}),
            "vips": [{"listen": str(v.listen), "vip": str(v.address)} for v in self._config.vips],
            "workers": workers,
            "verdicts": dict(verdicts),
            "xdp_verdicts": xdp,
            "events": dict(events),
            **gauges,
        }

    async def drain(self, processes: ProcessGroup, timeout_s: float) -> None:
        """Nothing to wait for: workers empty their sockets when they are stopped. Neighbours are the kernel's alone again."""
        self._state = "draining"
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._chores.clear()
        if self._kernel is not None and self._kernel.next_hops is not None:
            await self._kernel.next_hops.release()

    def methods(self, processes: ProcessGroup) -> dict[str, AdminMethod]:
        """``flows`` and ``scale``."""

        async def flows(limit: int = 1000, client: str | None = None) -> list[dict[str, Any]]:
            answers = await asyncio.gather(
                *(process.request("flows", limit=limit, client=client) for process in processes),
                return_exceptions=True,
            )
            in_maps = self._kernel.list_flows(limit, client) if self._kernel else []
            listed = {(flow["client"], flow["vip"]): flow for flow in in_maps}
            for slot, answer in zip(self._slots, answers, strict=False):
                if isinstance(answer, ChannelError):
                    continue  # a worker in back-off has no flows to show
                if isinstance(answer, BaseException):
                    raise answer
                for flow in answer:
                    # XDP forwards it, or it went from one worker to another: who had it last knows it best.
                    key = flow["client"], flow["vip"]
                    if key not in listed or flow["idle_s"] < listed[key]["idle_s"]:
                        listed[key] = {**flow, "worker": slot.index}
            return list(listed.values())[:limit]

        async def scale(workers: int) -> dict[str, Any]:
            if type(workers) is not int or not 1 <= workers <= MAX_WORKERS:
                raise ConfigError("--workers", f"needs to be 1 to {MAX_WORKERS}, not {workers!r}")
            async with self._scaling:
                before = len(self._slots)
                await self._grow(processes, workers)
                await self._shrink(processes, workers)
            return {"before": before, "workers": len(self._slots)}

        return {"flows": flows, "scale": scale}

    def close(self) -> None:
        """Detach and remove what is in the kernel, close sockets and counters."""
        for chore in self._chores:
            chore.cancel()
        self._chores.clear()
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        for slot in self._slots:
            slot.close()
        self._slots.clear()

    async def _grow(self, processes: ProcessGroup, workers: int) -> None:
        """Add slots; clients are led to them once their workers are ready."""
        indexes = range(len(self._slots), workers)
        if not indexes:
            return
        # Before there is a new socket: without a program the kernel's own choice is another from then on.
        records = await share_flows(processes, self._slots, self._split)
        added: list[WorkerSlot] = []
        try:
            for index in indexes:
                added.append(self._maker.make(index))
                for record in records:
                    added[-1].flows.remember(record)
            self._slots += added
            await processes.add([self._spec(slot) for slot in added])
        except BaseException:
            self._slots = [slot for slot in self._slots if slot not in added]
            for slot in added:
                slot.close()
            raise
        if self._kernel is not None:
            self._kernel.use_cores(slot.core for slot in self._slots)
            # Their slots were filled as they became ready.
            self._kernel.programs.steer(range(workers))
        else:
            await self._lead_clients(processes, workers, known=records)

    async def _shrink(self, processes: ProcessGroup, workers: int) -> None:
        """Lead the clients of the last slots away, then let their workers empty their sockets and end."""
        leaving, going = self._slots[workers:], list(processes)[workers:]
        if not leaving:
            return
        if self._kernel is not None:
            self._kernel.programs.steer(range(workers))
            for slot in leaving:
                self._kernel.empty(slot.index, len(slot.sockets))
            await asyncio.sleep(_SETTLE_S)
        else:
            await self._lead_clients(list(processes)[:workers], workers)
        # What the supervisor still held open would keep getting packets after the worker has ended.
        self._slots = self._slots[:workers]
        for slot in leaving:
            slot.close_sockets()
        await processes.remove(going)
        for slot in leaving:
            if self._kernel is None:
                self._departed_verdicts.update(slot.counters.verdicts())
                self._departed_events.update(slot.counters.events())
            slot.close()
        if self._kernel is not None:
            self._kernel.use_cores(slot.core for slot in self._slots)

    async def _lead_clients(
        self, processes: Iterable[Process], workers: int, known: Iterable[FlowRecord] = ()
    ) -> None:
        """Where the kernel does not steer: lead clients to so many workers, which know (but for those ``known``) all flows."""
        processes, known = list(processes), set(known)
        known.update(await share_flows(processes, self._slots, self._split, known))
        self._split.lead(self._slots[0].public, workers)
        # What turned assured at its old worker meanwhile, and packets on their way there.
        await asyncio.sleep(_SETTLE_S)
        known.update(await share_flows(processes, self._slots, self._split, known))
        # A worker goes on with those that came to it, too, when it crashes; and who leaves takes its own along.
        for record in known:
            home = self._split.worker_of(record.client)
            for slot in self._slots[:workers] if home is None else (self._slots[home],):
                slot.flows.learn(record)

    def _new_sweep(self, tells: bool) -> Sweep:
        assert self._kernel is not None  # who sweeps has one
        return self._kernel.sweep(self._policy, told_s=self._refresh_s if tells else 0.0)

    def _want(self, hosts: Iterable[bytes]) -> None:
        """Have XDP forward to these hosts; not wherever a worker that was broken into would like."""
        if self._kernel is not None and self._kernel.next_hops is not None:
            self._kernel.next_hops.want([host for host in hosts if self._rules.may_be_transceiver(host)])

    @property
    def _line(self) -> RelayLine | None:
        """To the agent of the fleet's cache, of the supervisor's own."""
        return self._fleet.line if self._fleet is not None else None

    def _hear_agent(self) -> None:
        """Nothing was asked on this line, so all there is to hear is that everything is to be told again."""
        assert self._line is not None  # it is read
        try:
            _, again = self._line.receive()
        except (WireError, ValueError):  # an agent that was broken into ends no supervisor
            return
        if self._line.is_closed:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            logger.error("the agent of the cache has closed its lines; `relayctl restart` makes new ones")
            return
        # Without XDP each worker is told by its own.
        if again and self._sweeper is not None:
            self._sweeper.tell_again()

    async def _presence(self) -> dict[str, Any]:
        """What other hosts are told of this relay."""
        gauges = Counter[str]()
        for slot in self._slots:
            gauges.update(slot.counters.gauges())
        flows = self._sweeper.gauges if self._sweeper is not None else gauges
        return {
            "relay": {
                "dataplane": self.data_path,
                "vips": [str(vip.address) for vip in self._config.vips],
                "workers": len(self._slots),
                "flows": flows["flows"],
                "assured_flows": flows["assured_flows"],
                "state": self._state,
            }
        }

    def _fleet_addresses(self) -> list[Address]:
        return [bound_address(sock) for sock in self._slots[0].fleet]

    def _spec(self, slot: WorkerSlot) -> ProcessSpec:
        def settings() -> dict[str, Any]:
            return WorkerSettings(
                policy=self._maker.policy(self._cluster_id, self._slots),
                keys=self._keys,
                slot=slot.index,
                public_fds=tuple(sock.fileno() for sock in slot.public),
                check_fds=tuple(sock.fileno() for sock in slot.checks),
                fleet_fds=tuple(sock.fileno() for sock in slot.fleet),
                counters_fd=slot.counters_fd,
                counters_page=slot.counters_page,
                kernel_maps=slot.kernel_maps,
                gather_us=self._config.gather_us,
                busy_poll_us=self._config.busy_poll_us,
                line_fd=slot.line_fd,
                refresh_s=self._refresh_s,
            ).to_message()

        async def hand_on_flows(channel: Channel) -> None:
            for batch in in_messages(slot.flows.records()):
                channel.send_event("adopt", flows=batch)
                await channel.drain()
            channel.send_event("serve")

        def follow_flow(message: Message) -> None:
            if message["event"] == "transceiver":
                self._want({bytes.fromhex(message["host"])})
                return
            record = FlowRecord.from_json(message["flow"])
            if message["event"] == "flow_assured":
                slot.flows.remember(record)
            else:
                slot.flows.forget(record.client, record.vip)

        def lead_away() -> None:
            if self._kernel is not None and self._is_serving and slot in self._slots:
                self._kernel.empty(slot.index, len(slot.sockets))

        def lead_back() -> None:
            if self._kernel is not None and self._is_serving and slot in self._slots:
                with contextlib.suppress(OSError):
                    self._kernel.fill(slot.index, slot.sockets)

        return ProcessSpec(
            name=f"worker-{slot.index}",
            module=_MODULE,
            fds=slot.fds,
            core=slot.core,
            user=self._user,
            settings=settings,
            handover=hand_on_flows,
            on_ready=lead_back,
            on_event=follow_flow,
            on_exit=lead_away,
        )


def _packets(verdicts: dict[str, int]) -> int:
    """Of a worker: what it held is counted once more when that goes on."""
    return sum(verdicts.values()) - verdicts[Verdict.HOLD.label]


def _tell_failure(chore: asyncio.Task[None]) -> None:
    if not chore.cancelled() and chore.exception() is not None:
        logger.error("%s ended: %s; `relayctl restart` begins it anew", chore.get_name(), chore.exception())
