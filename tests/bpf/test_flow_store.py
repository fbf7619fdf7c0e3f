"""A worker's flows in the kernel's maps: nothing of them is lost, and each is where XDP looks for it."""

import math
import string
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.flow import Flow, FlowKey
from relay.core.flow_table import FlowTable
from relay.core.forwarding import FlowNotice
from relay.dataplane.bpf import flow_store
from relay.dataplane.bpf.abi import MAPS, FlowFlag, FlowKeyC
from relay.dataplane.bpf.flow_store import KernelFlowStore
from relay.dataplane.bpf.maps import BpfMap
from tests.bpf.kernel_objects import make_map
from tests.relay.network import CALL, CLIENT_V4, CLIENT_V6, OTHER_VIP_V4, POLICY, VIP_V4, VIP_V6
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("bpf")]

MAX_ASSURED = 4
NEVER = float("-inf")


class Stored(SimpleNamespace):
    """A store over maps of its own."""

    store: KernelFlowStore
    assured: BpfMap
    provisional: BpfMap

    def places(self, flow: Flow) -> str:
        """Which maps have the flow, under the address that its client's packets arrive at."""
        group = [vip.address for vip in POLICY.vips].index(flow.key.vip)
        key = FlowKeyC.of(flow.key.client, group)
        maps = {"assured": self.assured, "provisional": self.provisional}
        return " ".join(name for name, bpf_map in maps.items() if bpf_map.get(key) is not None)

    def clear(self) -> None:
        for bpf_map in (self.assured, self.provisional):
            for key, _ in list(bpf_map.items()):
                bpf_map.delete(key)


def make_store(max_assured: int = MAX_ASSURED, max_provisional: int = 1024) -> Stored:
    sizes = {"flows": max_assured, "provisional": max_provisional}
    maps = []
    for name, size in sizes.items():
        layout = MAPS[name]
        empty = BpfMap(-1, layout)
        fd = make_map(name, layout.kind.number, empty.key_size, empty.value_size, size)
        maps.append(BpfMap(fd, layout))
    store = KernelFlowStore(maps[0].fd, maps[1].fd, POLICY.vips)
    return Stored(store=store, assured=maps[0], provisional=maps[1])


@pytest.fixture(scope="module")
def shared(bpf: None) -> Iterator[Stored]:
    """For hypothesis, which calls a test many times over one fixture."""
    stored = make_store()
    yield stored
    stored.assured.close()
    stored.provisional.close()


@pytest.fixture
def stored(shared: Stored) -> Stored:
    shared.clear()
    shared.store = KernelFlowStore(shared.assured.fd, shared.provisional.fd, POLICY.vips)
    return shared


def flow(number: int = 0, *, assured: bool = False, last_seen: float = 10.0, vip: Address = VIP_V4) -> Flow:
    client = Address(CLIENT_V4.host, 1024 + number) if vip.family == 4 else CLIENT_V6
    return Flow(FlowKey(client, vip), CALL.transceiver, CALL.tag, 9.0, 8.0, last_seen, assured=assured)


def values(one: Flow) -> dict[str, object]:
    return {field.name: getattr(one, field.name) for field in fields(one)}


PORTS = st.integers(0, 2**16 - 1)
ADDRESSES = st.builds(
    Address, st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), PORTS
).filter(
    lambda address: address.host[:12] != bytes(10) + b"\xff\xff"  # an IPv4 address, and read as one
)
VIPS = st.sampled_from([vip.address for vip in POLICY.vips])
# Seconds since boot: up to ten years, of which a float knows a tenth of a microsecond.
TIMES = st.floats(min_value=0, max_value=3e8)
COUNTS = st.integers(0, 2**64 - 1)
UFRAGS = st.text(string.ascii_letters + string.digits + "+/", min_size=1, max_size=8)
FLOWS = st.builds(
    Flow,
    st.builds(FlowKey, ADDRESSES, VIPS),
    ADDRESSES,
    UFRAGS,
    TIMES,
    TIMES,
    TIMES,
    assured=st.booleans(),
    media_up=st.booleans(),
    media_down=st.booleans(),
    released=st.booleans(),
    down_seen_at=TIMES.filter(lambda seconds: seconds >= 1e-9) | st.just(NEVER),
    packets_up=COUNTS,
    bytes_up=COUNTS,
    packets_down=COUNTS,
    bytes_down=COUNTS,
)
# a worker's own, which no other has a use for
NOT_STORED = {"refused", "stored", "stored_counts"}


@given(flow=FLOWS)
def test_every_field_comes_back(shared: Stored, flow: Flow) -> None:
    shared.clear()
    assert shared.store.write(flow)
    assert flow.stored
    read = shared.store.read(flow.key)
    assert read is not None
    assert read.stored
    for name, value in values(flow).items():
        if name in NOT_STORED:
            continue
        found = getattr(read, name)
        if isinstance(value, float) and math.isfinite(value):
            assert found == pytest.approx(value, rel=1e-12, abs=1.1e-9), name
        else:
            assert found == value, name
    assert shared.places(flow) == ("assured" if flow.assured else "provisional")


def test_the_kernel_reads_what_was_written(stored: Stored) -> None:
    written = flow(assured=True)
    written.media_up = written.released = True
    written.down_seen_at, written.packets_up, written.bytes_down = 7.5, 11, 12
    assert stored.store.write(written)
    ((key, value),) = stored.assured.items()
    assert (key.client(), key.group) == (written.key.client, 0)
    assert value.transceiver.address() == CALL.transceiver
    assert value.flags == FlowFlag.FLOW_IS_ASSURED | FlowFlag.FLOW_MEDIA_UP | FlowFlag.FLOW_IS_RELEASED
    times = value.created_ns, value.last_seen_ns, value.ufrag_seen_ns, value.down_seen_ns
    assert times == (8_000_000_000, 10_000_000_000, 9_000_000_000, 7_500_000_000)
    counts = value.packets_up, value.bytes_up, value.packets_down, value.bytes_down
    assert counts == (11, 0, 0, 12)
    assert value.ufrag_tag == CALL.tag.encode()


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_tag_is_stored_whole(stored: Stored, length: int) -> None:
    named = flow()
    named.ufrag_tag = "a" * length
    assert stored.store.write(named)
    read = stored.store.read(named.key)
    assert read is not None
    assert read.ufrag_tag == "a" * length


def test_flows_of_one_client_on_two_vips_are_two(stored: Stored) -> None:
    one, other = flow(), flow(vip=OTHER_VIP_V4)
    assert one.key.client == other.key.client
    other.ufrag_tag = "other"
    assert stored.store.write(one)
    assert stored.store.write(other)
    read = [stored.store.read(each.key) for each in (one, other)]
    assert [each and each.ufrag_tag for each in read] == [CALL.tag, "other"]


def test_an_unknown_flow_reads_as_none(stored: Stored) -> None:
    assert stored.store.write(flow(1))
    assert stored.store.read(flow(2).key) is None


@pytest.mark.parametrize("vip", [VIP_V4, VIP_V6], ids=["IPv4", "IPv6"])
def test_flow_moves_between_the_maps(stored: Stored, vip: Address) -> None:
    moving = flow(vip=vip)
    for assured, place in (
        (False, "provisional"),
        (True, "assured"),
        (True, "assured"),
        (False, "provisional"),
    ):
        moving.assured = assured
        assert stored.store.note(FlowNotice(moving, ended=False))
        assert stored.places(moving) == place
        read = stored.store.read(moving.key)
        assert read is not None
        assert read.assured is assured


@pytest.mark.parametrize("assured", [False, True], ids=["provisional", "assured"])
def test_flow_that_ended_is_in_no_map(stored: Stored, assured: bool) -> None:
    ending, staying = flow(1, assured=assured), flow(2, assured=assured)
    assert stored.store.write(ending)
    assert stored.store.write(staying)
    assert stored.store.note(FlowNotice(ending, ended=True))
    assert stored.places(ending) == ""
    assert stored.places(staying) != ""
    assert stored.store.note(FlowNotice(ending, ended=True)), "what is gone can end again"


def test_end_removes_what_is_left_in_either_map(stored: Stored) -> None:
    """Between the two writes of a move a worker may have died."""
    left = flow()
    for name in ("flows", "provisional"):
        other = KernelFlowStore(stored.assured.fd, stored.provisional.fd, POLICY.vips)
        left.assured = name == "flows"
        assert other.write(left)
    ((key, value),) = stored.provisional.items()
    stored.assured.put(key, value)
    assert stored.places(left) == "assured provisional"
    assert stored.store.note(FlowNotice(left, ended=True))
    assert stored.places(left) == ""


def test_full_map_refuses_and_loses_nothing(stored: Stored) -> None:
    for number in range(MAX_ASSURED):
        assert stored.store.write(flow(number, assured=True))
    late = flow(MAX_ASSURED)
    assert stored.store.write(late)
    late.assured = True
    assert not stored.store.write(late)
    assert not late.stored
    assert stored.places(late) == "provisional"
    assert stored.store.note(FlowNotice(flow(0, assured=True), ended=True))
    assert stored.store.note(FlowNotice(late, ended=False))
    assert stored.places(late) == "assured"


def table_of(*flows: Flow) -> FlowTable:
    """Provisional flows are in it as they are, of assured ones copies."""
    table = FlowTable(POLICY)
    for each in flows:
        assert table.insert(each) is not None
    return table


def last_seen_stored(stored: Stored, flows: list[Flow]) -> list[float]:
    read = [stored.store.read(each.key) for each in flows]
    return [each.last_seen if each else NEVER for each in read]


def carry_packet(carrying: Flow, now: float) -> None:
    carrying.packets_up += 1
    carrying.last_seen = now


def test_refresh_writes_stored_flows_that_carried_packets_since_the_last_round(stored: Stored) -> None:
    quiet, busy, unstored = flows = [flow(0), flow(1), flow(2)]
    table = table_of(*flows)
    for each in (quiet, busy):
        assert stored.store.write(each)
    stored.store.refresh(table, now=10.0)
    carry_packet(busy, 12.0)
    carry_packet(unstored, 12.0)
    quiet.packets_up, quiet.last_seen = 5, 9.9  # would show if it were written
    stored.store.refresh(table, now=13.0)
    assert last_seen_stored(stored, flows) == [10.0, 12.0, NEVER]
    busy.packets_up = 5
    stored.store.refresh(table, now=16.0)
    read = stored.store.read(busy.key)
    assert read is not None
    assert read.packets_up == 1
    quiet.last_seen = 17.0
    stored.store.refresh(table, now=19.0)
    assert last_seen_stored(stored, flows) == [17.0, 12.0, NEVER]


def test_refresh_stores_no_flow_that_ended_meanwhile(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_store, "_REFRESHED_AT_ONCE", 1)
    flows = [flow(0), flow(1)]
    for each in flows:
        assert stored.store.write(each)
    table = table_of(*flows)
    stored.store.refresh(table, now=11.0)
    table.remove(flows[1].key)
    assert stored.store.note(FlowNotice(flows[1], ended=True))
    stored.store.refresh(table, now=11.25)
    assert [stored.places(each) for each in flows] == ["provisional", ""]


def test_refresh_does_not_overwrite_what_another_worker_has_gone_on_with(stored: Stored) -> None:
    """The client was led from one worker to another between two rounds of the first."""
    ours = flow()
    assert stored.store.write(ours)
    table = table_of(ours)
    stored.store.refresh(table, now=10.0)
    carry_packet(ours, 10.9)
    other = KernelFlowStore(stored.assured.fd, stored.provisional.fd, POLICY.vips)
    theirs = other.read(ours.key)
    assert theirs is not None
    theirs.last_seen, theirs.assured, theirs.ufrag_tag = 11.5, True, "other"
    assert other.write(theirs)
    stored.store.refresh(table, now=13.0)
    assert stored.places(ours) == "assured"
    read = other.read(ours.key)
    assert read is not None
    assert (read.ufrag_tag, read.last_seen) == ("other", 11.5)


def test_counts_of_xdp_and_of_workers_add_up(stored: Stored) -> None:
    """Each of them counts what it forwards itself, in turns, and none writes over another's."""
    ours = flow(assured=True)
    assert stored.store.write(ours)
    other = KernelFlowStore(stored.assured.fd, stored.provisional.fd, POLICY.vips)
    theirs = other.read(ours.key)
    assert theirs is not None
    ((key, value),) = stored.assured.items()
    value.packets_up, value.bytes_down, value.last_seen_ns, value.client_path.ifindex = (
        100,
        1000,
        11 * 10**9,
        7,
    )
    stored.assured.put(key, value)
    ours.packets_up, ours.last_seen = 3, 10.5
    theirs.packets_up, theirs.bytes_down, theirs.last_seen = 20, 5, 10.8
    table = table_of(ours)
    stored.store.refresh(table, now=12.0)
    assert other.write(theirs)
    again = table.get(ours.key)
    assert again is not None
    ours = again
    ours.packets_up += 1
    assert stored.store.write(ours)
    ((_, after),) = stored.assured.items()
    assert (after.packets_up, after.bytes_down, after.last_seen_ns) == (124, 1005, 11 * 10**9)
    assert after.client_path.ifindex == 7, "what XDP has learned stays"
    assert ours.counts == (124, 0, 0, 1005)


def test_provisional_flow_of_another_ufrag_is_made_anew(stored: Stored) -> None:
    before, after = flow(), flow()
    before.media_down, before.packets_down, after.ufrag_tag = True, 5, "another"
    assert stored.store.write(before)
    assert stored.store.write(after)
    read = stored.store.read(after.key)
    assert read is not None
    assert (read.ufrag_tag, read.media_down, read.packets_down) == ("another", False, 0)


def test_ice_restart_keeps_what_xdp_has_counted(stored: Stored) -> None:
    ours = flow(assured=True)
    assert stored.store.write(ours)
    ((key, value),) = stored.assured.items()
    value.packets_down = 50
    stored.assured.put(key, value)
    ours.ufrag_tag = "restart"
    assert stored.store.write(ours)
    ((_, after),) = stored.assured.items()
    assert (after.ufrag_tag, after.packets_down) == (b"restart", 50)


def refreshed_at_each_tick(stored: Stored, count: int, ticks: int) -> list[int]:
    """How many of that many flows each tick has stored anew."""
    flows = [flow(number, assured=True) for number in range(count)]
    for each in flows:
        assert stored.store.write(each)
        carry_packet(each, 20.0)
    table = table_of(*flows)
    fresh = [0]
    for tick in range(ticks):
        stored.store.refresh(table, now=20.0 + tick / 4)
        fresh.append(sum(value.last_seen_ns == 20_000_000_000 for _, value in stored.assured.items()))
    return [after - before for before, after in pairwise(fresh)]


def test_refresh_takes_a_bounded_number_at_a_tick() -> None:
    bound = flow_store._REFRESHED_AT_ONCE
    count = 2 * bound + 10
    stored = make_store(max_assured=2 * count)
    try:
        assert refreshed_at_each_tick(stored, count, 5) == [bound, bound, 10, 0, 0]
    finally:
        stored.assured.close()
        stored.provisional.close()


def test_round_of_very_many_flows_ends_before_a_silent_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_store, "_REFRESHED_AT_ONCE", 5)
    ticks = flow_store._MAX_TICKS_A_ROUND
    # four ticks a second; a provisional flow is removed after so long without a packet
    assert ticks / 4 < POLICY.provisional_s
    stored = make_store(max_assured=2048)
    try:
        refreshed = refreshed_at_each_tick(stored, 40 * ticks, ticks + 1)
        assert refreshed == [40] * ticks + [0]
    finally:
        stored.assured.close()
        stored.provisional.close()
