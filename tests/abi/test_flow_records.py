"""The packed forms in which workers write flows, against the ctypes mirror of abi.h: same size, same place of everything."""

import ctypes
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.flow import Flow, FlowKey
from relay.core.policy import Vip
from relay.dataplane.bpf import flow_store
from relay.dataplane.bpf.abi import UFRAG_TAG_BYTES, FlowC, FlowFlag, FlowKeyC, LinkPath
from relay.dataplane.bpf.flow_store import KernelFlowStore
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, POLICY
from tests.wire.network import ADDRESSES
from wire.address import Address

_NO_MAP = -1
VIP = POLICY.vips[0]
PATH = LinkPath(7, (ctypes.c_uint8 * 6)(*range(6)), (ctypes.c_uint8 * 6)(*range(6, 12)), (0x8100, 0), (5, 0))
KEY = FlowKey(CLIENT_V4, VIP.address)


def offsets(layout: str) -> list[tuple[int, int]]:
    """(offset, size) of each value of a layout of one alignment, padding left out."""
    sizes = {"H": 2, "I": 4, "Q": 8}
    places, at = [], 0
    for count, kind in re.findall(r"(\d*)([sxHIQ])", layout):
        number = int(count or 1)
        if kind == "s":
            places.append((at, number))
        elif kind != "x":
            places += [(at + n * sizes[kind], sizes[kind]) for n in range(number)]
        at += number * sizes.get(kind, 1)
    return places


def places_of(struct: Any, base: int = 0) -> list[tuple[int, int]]:
    """The same of a ctypes structure, its nested ones opened but for the path, which Python only passes on."""
    found: list[tuple[int, int]] = []
    for name, kind, *_ in struct._fields_:
        field = getattr(struct, name)
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind is not LinkPath:
            found += places_of(kind, base + field.offset)
        elif name != "pad":
            found.append((base + field.offset, field.size))
    return found


@pytest.mark.parametrize(
    ("packed", "struct"),
    [pytest.param(flow_store._KEY, FlowKeyC, id="key"), pytest.param(flow_store._FLOW, FlowC, id="flow")],
)
def test_every_value_has_its_place(packed: Any, struct: type[ctypes.Structure]) -> None:
    assert packed.size == ctypes.sizeof(struct)
    assert offsets(packed.format) == places_of(struct)


def store_of(*vips: Vip) -> tuple[KernelFlowStore, FlowKeyC, FlowC]:
    """A store on no map, and the memory that its system calls would be given."""
    store = KernelFlowStore(_NO_MAP, _NO_MAP, vips)
    return store, store._key, store._value


@given(ADDRESSES, ADDRESSES, ADDRESSES)
def test_key_is_the_client_and_the_place_of_its_vip(client: Address, listen: Address, told: Address) -> None:
    store, key, _ = store_of(Vip(client, listen), Vip(listen, told))
    store._name(FlowKey(client, told))
    assert (key.client(), key.group) == (client, 1)
    assert bytes(key) == bytes(FlowKeyC.of(client, 1))


COUNTS = st.integers(0, 2**64 - 1)
# Seconds of a machine that is up for 30 years, as far as a float keeps nanoseconds of it.
TIMES = st.integers(1, 10**9).map(float)
FLOWS = st.builds(
    Flow,
    key=st.sampled_from([KEY, FlowKey(CLIENT_V6, POLICY.vips[1].address)]),
    transceiver=ADDRESSES,
    ufrag_tag=st.sampled_from([CALL.tag, CALL_V6.tag]),
    ufrag_seen_at=TIMES,
    created_at=TIMES,
    last_seen=TIMES,
    assured=st.booleans(),
    media_up=st.booleans(),
    media_down=st.booleans(),
    released=st.booleans(),
    stored=st.just(True),
    down_seen_at=st.one_of(st.just(float("-inf")), TIMES),
    packets_up=COUNTS,
    bytes_up=COUNTS,
    packets_down=COUNTS,
    bytes_down=COUNTS,
)


@given(FLOWS)
def test_flow_is_read_as_it_was_written(flow: Flow) -> None:
    store, _, _ = store_of(*POLICY.vips)
    store._pack(flow, bytes(PATH))
    read = store._unpack(flow.key)
    assert read.stored_counts == flow.counts
    flow.stored_counts = flow.counts
    assert {name: getattr(read, name) for name in Flow.__slots__} == {
        name: getattr(flow, name) for name in Flow.__slots__
    }


@given(FLOWS)
def test_kernel_reads_what_python_wrote(flow: Flow) -> None:
    store, _, value = store_of(*POLICY.vips)
    store._pack(flow, bytes(PATH))
    assert value.transceiver.address() == flow.transceiver
    assert bytes(value.transceiver.pad) == bytes(2)
    assert FlowFlag(value.flags) == (
        (FlowFlag.FLOW_IS_ASSURED if flow.assured else FlowFlag(0))
        | (FlowFlag.FLOW_MEDIA_UP if flow.media_up else FlowFlag(0))
        | (FlowFlag.FLOW_MEDIA_DOWN if flow.media_down else FlowFlag(0))
        | (FlowFlag.FLOW_IS_RELEASED if flow.released else FlowFlag(0))
    )
    second = 1_000_000_000
    assert (value.created_ns, value.last_seen_ns, value.ufrag_seen_ns) == (
        flow.created_at * second,
        flow.last_seen * second,
        flow.ufrag_seen_at * second,
    )
    assert value.down_seen_ns == (flow.down_seen_at * second if flow.down_seen_at > 0 else 0)
    counts = (flow.packets_up, flow.bytes_up, flow.packets_down, flow.bytes_down)
    assert (value.packets_up, value.bytes_up, value.packets_down, value.bytes_down) == counts
    assert value.ufrag_tag == flow.ufrag_tag.encode()
    assert bytes(value.client_path) == bytes(PATH)


@pytest.mark.parametrize("call", [CALL, CALL_V6], ids=["IPv4", "IPv6"])
def test_tag_of_our_ufrags_fills_its_field(call: Any) -> None:
    assert len(call.tag) == UFRAG_TAG_BYTES
