"""Assured flows on their way from worker to worker, where no map of the kernel holds them."""

import asyncio
import contextlib
from collections.abc import Collection, Iterable
from typing import Any

from host.channel import ChannelError
from host.process import Process
from relay.dataplane.split import Split
from relay.slots import WorkerSlot
from wire.flow_record import FlowRecord

_FLOWS_A_MESSAGE = 500


async def share_flows(
    processes: Iterable[Process],
    slots: Iterable[WorkerSlot],
    split: Split,
    known: Collection[FlowRecord] = (),
) -> list[FlowRecord]:
    """Tell every worker of all flows, as most clients get another worker with their number.

    Those ``known`` are left out. Returns when the workers have heard it.
    """
    records = [record for record in _known_flows(slots, split) if record not in known]
    if records:
        await asyncio.gather(*(_tell_flows(process, records) for process in processes))
    return records


def in_messages(records: list[FlowRecord]) -> Iterable[list[dict[str, Any]]]:
    """As they go over a channel, in messages far below its longest line."""
    flows = [record.to_json() for record in records]
    return (flows[start : start + _FLOWS_A_MESSAGE] for start in range(0, len(flows), _FLOWS_A_MESSAGE))


def _known_flows(slots: Iterable[WorkerSlot], split: Split) -> list[FlowRecord]:
    """One a client and VIP: what its worker has told, or else another that had it before."""
    flows: dict[bytes, FlowRecord] = {}
    for slot in slots:
        for record in slot.flows.records():
            if record.name not in flows or split.worker_of(record.client) == slot.index:
                flows[record.name] = record
    return list(flows.values())


async def _tell_flows(process: Process, records: list[FlowRecord]) -> None:
    for batch in in_messages(records):
        await process.send("adopt", flows=batch)
    # It answers in order. One that is being restarted does not, and is given the flows of its slot.
    with contextlib.suppress(ChannelError):
        await process.request("ping")
