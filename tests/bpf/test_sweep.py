"""The walk over all flows: what is silent goes, everything else stays, and whose transceivers are in use."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from relay.dataplane import sweep
from relay.dataplane.bpf import maps
from relay.dataplane.bpf.abi import MAPS, Endpoint, FlowC, FlowKeyC
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.sweep import Sweep
from tests.bpf.kernel_objects import make_map
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, POLICY
from wire.address import Address
from wire.flow_record import FlowRecord

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("bpf")]

HURRIED = replace(POLICY, assured_s=20.0, provisional_s=5.0)
MARGIN_S = 10.0
HOME, HOME_V6, AWAY = (Address.parse(text) for text in ("10.1.2.3:5000", "[fd00:1::3]:5000", "10.1.2.4:5000"))


@dataclass
class Tables:
    """Maps of flows, as XDP has them."""

    maps: dict[str, BpfMap]

    def add(
        self, name: str, number: int, silent_s: float, transceiver: Address = HOME, *, is_v6: bool = False
    ) -> FlowKeyC:
        client = Address.from_host("2001:db8:c::7" if is_v6 else "198.51.100.7", 1024 + number)
        key = FlowKeyC.of(client, 1 if is_v6 else 0)
        seen_ns = time.monotonic_ns() - int(silent_s * 1e9)
        assert seen_ns >= 0, "this machine has just been started"
        self.maps[name].put(key, FlowC(transceiver=Endpoint.of(transceiver), last_seen_ns=seen_ns))
        return key

    def has(self, name: str, key: FlowKeyC) -> bool:
        return self.maps[name].get(key) is not None

    def swept(self) -> tuple[Sweep, int]:
        """A whole walk, and in how many steps it was done."""
        walk = Sweep(HURRIED, self.maps)
        return walk, len(list(walk.steps()))


@pytest.fixture
def tables(bpf: None) -> Iterator[Tables]:
    made = {}
    for name in ("flows", "provisional"):
        layout = MAPS[name]
        sizes = BpfMap(-1, layout)
        fd = make_map(name, layout.kind.number, sizes.key_size, sizes.value_size, 8192)
        made[name] = BpfMap(fd, layout)
    yield Tables(made)
    for each in made.values():
        each.close()


def counts(walk: Sweep) -> tuple[int, int, int]:
    return walk.assured, walk.provisional, walk.expired


@pytest.mark.parametrize(("name", "life_s"), [("flows", 20.0), ("provisional", 5.0)])
@pytest.mark.parametrize("is_v6", [False, True], ids=["IPv4", "IPv6"])
def test_flow_lives_as_long_as_policy_and_margin_say(
    tables: Tables, name: str, life_s: float, is_v6: bool
) -> None:
    """What a worker forwards itself it stores some seconds later."""
    ends_s = life_s + MARGIN_S
    assert sweep._MARGIN_S == MARGIN_S
    stays = [tables.add(name, at, age, is_v6=is_v6) for at, age in enumerate((0, life_s, ends_s - 1))]
    goes = [tables.add(name, 10 + at, age, is_v6=is_v6) for at, age in enumerate((ends_s + 0.1, ends_s + 60))]
    walk, _ = tables.swept()
    assert [tables.has(name, key) for key in stays] == [True] * 3
    assert [tables.has(name, key) for key in goes] == [False] * 2
    assert counts(walk) == ((3, 0, 2) if name == "flows" else (0, 3, 2))


def test_no_flows(tables: Tables) -> None:
    walk, _ = tables.swept()
    assert (counts(walk), walk.hosts) == ((0, 0, 0), set())


@pytest.mark.parametrize("silent_s", [0.0, 60.0], ids=["all stay", "all go"])
def test_all_or_none(tables: Tables, silent_s: float) -> None:
    for number in range(100):
        tables.add("flows", number, silent_s)
    walk, _ = tables.swept()
    assert counts(walk) == ((0, 0, 100) if silent_s else (100, 0, 0))
    assert len(list(tables.maps["flows"].items())) == walk.assured


def test_one_client_in_both_maps_is_two_flows(tables: Tables) -> None:
    """Between the two writes of a move a worker may have died."""
    tables.add("flows", 0, 0)
    key = tables.add("provisional", 0, 60)
    walk, _ = tables.swept()
    assert counts(walk) == (1, 0, 1)
    assert tables.has("flows", key)


def test_hosts_are_those_of_flows_that_stay(tables: Tables) -> None:
    tables.add("flows", 0, 0, HOME)
    tables.add("flows", 1, 0, replace_port(HOME, 5001))
    tables.add("flows", 2, 60, AWAY)
    tables.add("provisional", 3, 0, HOME_V6)
    walk, _ = tables.swept()
    assert walk.hosts == {HOME.host, HOME_V6.host}


def test_living_flows_are_told_as_records(tables: Tables) -> None:
    """Each VIP is the one that clients are told, behind a 1:1 NAT or not."""
    told = []
    for number, (client, vip_index, call) in enumerate(
        [(CLIENT_V4, 0, CALL), (CLIENT_V6, 1, CALL), (CLIENT_V4, 2, CALL_V6), (CLIENT_V6, 1, CALL_V6)]
    ):
        client = replace_port(client, 40_000 + number)
        value = FlowC(
            transceiver=Endpoint.of(call.transceiver),
            last_seen_ns=time.monotonic_ns() - int(9e9),
            ufrag_tag=call.tag.encode(),
        )
        tables.maps["flows"].put(FlowKeyC.of(client, vip_index), value)
        told.append(FlowRecord(client, POLICY.vips[vip_index].address, call.transceiver, call.tag).pack())
    tables.add("flows", 100, 11)
    tables.add("provisional", 101, 0)
    # No worker of ours writes such a group.
    tables.maps["flows"].put(FlowKeyC.of(CLIENT_V4, 3), FlowC(last_seen_ns=time.monotonic_ns()))
    walk = Sweep(HURRIED, tables.maps, told_s=10.0)
    assert sorted(record for step in walk.steps() for record in step) == sorted(told)
    assert counts(walk) == (6, 1, 0)
    assert not any(Sweep(HURRIED, tables.maps).steps())


def replace_port(address: Address, port: int) -> Address:
    return address._replace(port=port)


def test_time_of_another_cpu_may_be_ahead(tables: Tables) -> None:
    key = tables.add("flows", 0, -5)
    walk, _ = tables.swept()
    assert (counts(walk), tables.has("flows", key)) == ((1, 0, 0), True)


def test_very_many_flows_take_many_steps(tables: Tables) -> None:
    """Others have their turn between two of them."""
    silent = {number for number in range(5000) if number % 3 == 0}
    keys = [tables.add("flows", number, 60 if number in silent else 0) for number in range(5000)]
    walk, steps = tables.swept()
    assert counts(walk) == (5000 - len(silent), 0, len(silent))
    assert steps >= 5
    assert [tables.has("flows", key) for key in keys] == [number not in silent for number in range(5000)]


def test_flow_that_a_worker_ended_meanwhile_is_not_counted(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [tables.add("flows", number, 60) for number in range(10)]
    delete_all = BpfMap.delete_all

    def delete_late(bpf_map: BpfMap, silent: bytes, count: int) -> int:
        for key in keys[2:5]:
            assert bpf_map.delete(key)
        return delete_all(bpf_map, silent, count)

    monkeypatch.setattr(BpfMap, "delete_all", delete_late)
    walk, _ = tables.swept()
    assert walk.expired == 7
    assert list(tables.maps["flows"].items()) == []


def test_flow_that_is_made_between_two_steps_is_left_alone(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_BATCH", 64)
    for number in range(1000):
        tables.add("flows", number, 60)
    walk = Sweep(HURRIED, tables.maps)
    made = []
    for step, _ in enumerate(walk.steps()):
        if step < 5:
            made.append(tables.add("flows", 2000 + step, 0))
    assert len(made) == 5
    assert all(tables.has("flows", key) for key in made)
    assert walk.expired <= 1000
    again, _ = tables.swept()
    assert (again.assured, again.expired + walk.expired) == (5, 1000)


def test_error_of_the_kernel_is_told(tables: Tables) -> None:
    with pytest.raises(OSError, match=r"."):
        list(Sweep(HURRIED, {name: BpfMap(-1, each.layout) for name, each in tables.maps.items()}).steps())
