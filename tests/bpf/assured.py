"""A relay whose XDP program knows assured flows and the ways to transceivers; whole frames around it, built by hand."""

import ctypes
import struct
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import Direction, Endpoint, FlowC, FlowFlag, FlowKeyC, Host, LinkPath, NextHop
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.checksums import full_checksum, ipv4_checksum
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT, beat, value_of
from tests.relay.network import CALL, FLEET_SOCKET_V4, FLEET_SOCKET_V6, POLICY
from tests.relay.packets import LINK_MTU
from wire.address import Address

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
OPEN = replace(PATIENT, unknown_burst=1_000_000, unknown_per_s=1_000_000)
# Where BPF_PROG_TEST_RUN has frames come from.
INGRESS, ELSEWHERE = 1, 77
CREATED_NS = 1_234_567
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h
FORWARDED = (Verdict.FORWARD_STUN, Verdict.FORWARD_FLOW, Verdict.FORWARD_CLIENT)

Tags = tuple[tuple[int, int], ...]
"""VLAN tags as (type, TCI), the outer one first."""
# With priorities and drop eligibility, which are the sender's to keep.
PLAIN: Tags = ()
VLAN: Tags = ((0x8100, 0xB007),)
TWO_VLANS: Tags = ((0x88A8, 0x2064), (0x8100, 0x4FFE))
ALL_TAGS = {"plain": PLAIN, "VLAN": VLAN, "two VLANs": TWO_VLANS}


class Link(NamedTuple):
    """How a frame travels: from this MAC to that one, under these tags, out of or into that interface."""

    from_mac: bytes
    to_mac: bytes
    tags: Tags = ()
    ifindex: int = INGRESS

    def back(self) -> "Link":
        """The way of what answers."""
        return self._replace(from_mac=self.to_mac, to_mac=self.from_mac)

    def path(self) -> LinkPath:
        """As the kernel's maps have it."""
        (proto, tci), (inner_proto, inner_tci) = (*self.tags, (0, 0), (0, 0))[:2]
        return LinkPath(
            self.ifindex,
            (ctypes.c_uint8 * 6)(*self.to_mac),
            (ctypes.c_uint8 * 6)(*self.from_mac),
            (proto, inner_proto),
            (tci, inner_tci),
        )


CLIENT_LINK = Link(bytes.fromhex("02000000c001"), bytes.fromhex("0200000000aa"))
"""From the client's router to us."""
HOP_LINK = Link(bytes.fromhex("0200000000bb"), bytes.fromhex("02000000f001"))
"""From us to the transceiver's host."""


@dataclass(frozen=True)
class Packet:
    """One UDP datagram in its IP packet."""

    source: Address
    destination: Address
    payload: bytes
    traffic_class: int = 0
    flow_label: int = 0
    hop_limit: int = 64


def framed(
    link: Link, packet: Packet, checksum: int | None = None, *, ip_id: int = 0, padding: bytes = b""
) -> bytes:
    """The frame, with that UDP checksum or the right one. IPv4 packets ask not to be fragmented."""
    source, destination, payload = packet.source, packet.destination, packet.payload
    assert source.family == destination.family
    if checksum is None:
        checksum = full_checksum(source, destination, payload)
    udp = struct.pack("!HHHH", source.port, destination.port, 8 + len(payload), checksum) + payload
    tags = b"".join(struct.pack("!HH", *tag) for tag in link.tags)
    if source.family == 6:
        first = 6 << 28 | packet.traffic_class << 20 | packet.flow_label
        ip = struct.pack("!IHBB", first, len(udp), 17, packet.hop_limit) + source.host + destination.host
        return link.to_mac + link.from_mac + tags + b"\x86\xdd" + ip + udp + padding
    assert not packet.flow_label
    header = [0x45, packet.traffic_class, 20 + len(udp), ip_id, 0x4000, packet.hop_limit, 17, 0]
    hosts = source.host + destination.host
    header[-1] = ipv4_checksum(struct.pack("!BBHHHBBH", *header) + hosts)
    ip = struct.pack("!BBHHHBBH", *header) + hosts
    return link.to_mac + link.from_mac + tags + b"\x08\x00" + ip + udp + padding


def fleet_socket(transceiver: Address) -> Address:
    """Where we send from to this transceiver, and where it sends to."""
    return FLEET_SOCKET_V4 if transceiver.family == 4 else FLEET_SOCKET_V6


class Passed(NamedTuple):
    """What one frame did."""

    action: int
    verdict: Verdict | None
    frame: bytes


class Relay:
    """The programs, and what a supervisor and workers have written into their maps."""

    def __init__(self, programs: RelayPrograms) -> None:
        self.programs = programs

    def begin(self) -> None:
        """As at first: no flows, the way to no transceiver known, LINK_MTU everywhere."""
        for name in ("flows", "provisional", "next_hops"):
            for key, _ in list(self.programs.maps[name].items()):
                self.programs.maps[name].delete(key)
        self.programs.configure(OPEN, FLEET_SOCKETS, HASH_KEY)
        self.programs.set_fastpath(True)
        self.programs.set_mtu(LINK_MTU)
        beat(self.programs, 0)

    def know_hop(self, transceiver: Address, link: Link = HOP_LINK, mtu: int = LINK_MTU) -> None:
        """Where a transceiver's host is."""
        self.programs.maps["next_hops"].put(host_key(transceiver), NextHop(link.path(), mtu))

    def forget_hop(self, transceiver: Address) -> None:
        self.programs.maps["next_hops"].delete(host_key(transceiver))

    def know_flow(
        self,
        client: Address,
        vip_index: int = 0,
        transceiver: Address = CALL.transceiver,
        *,
        tag: str = CALL.tag,
        client_link: Link | None = None,
        name: str = "flows",
    ) -> FlowKeyC:
        """A flow that a worker made; ``client_link`` is what XDP has learned of the client since."""
        key = FlowKeyC.of(client, vip_index)
        flow = FlowC(
            transceiver=Endpoint.of(transceiver),
            flags=FlowFlag.FLOW_IS_ASSURED if name == "flows" else 0,
            created_ns=CREATED_NS,
            ufrag_tag=tag.encode(),
        )
        if client_link is not None:
            flow.client_path = client_link.path()
        self.programs.maps[name].put(key, flow)
        return key

    def flow(self, key: FlowKeyC) -> FlowC:
        flow = value_of(self.programs.maps["flows"], key)
        assert isinstance(flow, FlowC)
        return flow

    def change_flow(self, key: FlowKeyC, **fields: Any) -> None:
        flow = self.flow(key)
        for name, value in fields.items():
            setattr(flow, name, value)
        self.programs.maps["flows"].put(key, flow)

    def forwarded_bytes(self) -> dict[Direction, int]:
        """Payload, all CPUs added up."""
        by_cpu = self.programs.maps["forwarded_bytes"]
        return {direction: sum(value_of(by_cpu, direction)) for direction in Direction}

    def meets(self, frame: bytes) -> Passed:
        """What a frame does; it is counted once or is none of our business."""
        before = self.programs.counts()
        action, left = self.programs.run(frame)
        after = self.programs.counts()
        counted = {verdict: after[verdict] - before[verdict] for verdict in Verdict}
        judged = [verdict for verdict in Verdict if counted[verdict]]
        assert [counted[verdict] for verdict in judged] in ([], [1])
        return Passed(action, judged[0] if judged else None, left)

    def hands_up(self, frame: bytes, verdict: Verdict = Verdict.HAND_UP) -> None:
        """The frame goes the long way (and may be dropped there), and leaves no trace in flows."""
        before, forwarded = self._flows(), self.forwarded_bytes()
        passed = self.meets(frame)
        action = XDP_PASS if verdict is Verdict.HAND_UP else XDP_DROP
        assert passed == Passed(action, verdict, frame)
        assert (self._flows(), self.forwarded_bytes()) == (before, forwarded)

    def _flows(self) -> dict[str, dict[bytes, bytes]]:
        return {
            name: {bytes(key): bytes(flow) for key, flow in self.programs.maps[name].items()}
            for name in ("flows", "provisional")
        }


def host_key(address: Address) -> Host:
    return Host((ctypes.c_uint8 * 16)(*address.mapped))


def listen_of(vip_index: int) -> Address:
    return POLICY.vips[vip_index].listen


def vip_of(vip_index: int) -> Address:
    return POLICY.vips[vip_index].address


def coarse_ns() -> int:
    """The clock that XDP notes times by: that of the last tick."""
    return time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)
