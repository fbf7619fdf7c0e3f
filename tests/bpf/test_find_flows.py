"""What an operator is shown of flows: those of one client, as they are in the maps."""

import ctypes
import time
from collections.abc import Iterator

import pytest

from relay.core.flow import Flow, FlowKey
from relay.core.steering import hash_address, maglev_table
from relay.dataplane.bpf.abi import STEERING_SIZE, FlowC, FlowFlag, FlowKeyC, LinkPath
from relay.dataplane.bpf.describe import MapReader
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.assured import Link, Relay
from tests.bpf.relay_host import VIPS, Start, store_of
from tests.bpf.relay_host import Relay as HostRelay
from tests.relay.network import CALL, CALL_V6, CLIENT_V4, CLIENT_V6, LISTEN_V4, OTHER_LISTEN_V4, VIP_V6
from wire.address import Address

pytestmark = pytest.mark.bpf

V4, V6 = str(CLIENT_V4.ip), str(CLIENT_V6.ip)
NEIGHBOUR = Address(CLIENT_V4.host[:3] + b"\x17", CLIENT_V4.port)
OTHER_PORT = Address(CLIENT_V4.host, 40_001)
FLOWS = [
    (CLIENT_V4, 0),
    (CLIENT_V4, 2),
    (OTHER_PORT, 0),
    (NEIGHBOUR, 0),
    (CLIENT_V6, 1),
    (Address(CLIENT_V6.host, 1), 1),
]


@pytest.fixture
def known(assured: Relay) -> Iterator[Relay]:
    """A relay with flows of several clients; a provisional one is among them."""
    for client, vip_index in FLOWS:
        assured.know_flow(client, vip_index)
    assured.know_flow(Address(CLIENT_V4.host, 50_000), name="provisional")
    yield assured
    assured.begin()


def found(relay: Relay, name: str = "flows", client: str | None = None) -> set[tuple[str, str]]:
    rows = list(MapReader(relay.programs).find_flows(name, client))
    flows = {(row["client"], row["listen"]) for row in rows}
    assert len(flows) == len(rows), "one came twice"
    return flows


def shown(*flows: tuple[Address, int]) -> set[tuple[str, str]]:
    listen = (LISTEN_V4, VIP_V6, OTHER_LISTEN_V4)
    return {(str(client), str(listen[vip_index])) for client, vip_index in flows}


@pytest.mark.parametrize(
    ("client", "flows"),
    [
        pytest.param(None, FLOWS, id="all"),
        pytest.param(V4, FLOWS[:3], id="every port of an IPv4 client"),
        pytest.param(f"{V4}:40000", FLOWS[:2], id="one port, on two VIPs"),
        pytest.param(f"{V4}:40001", FLOWS[2:3], id="another port"),
        pytest.param(f"{V4}:40002", [], id="a port that has none"),
        # 40000 is 9c40: the port is in network order in the map
        pytest.param(f"{V4}:16540", [], id="the bytes of the port exchanged"),
        pytest.param(str(NEIGHBOUR.ip), FLOWS[3:4], id="a neighbour"),
        pytest.param("198.51.100.99", [], id="a client that has none"),
        pytest.param(V6, FLOWS[4:], id="every port of an IPv6 client"),
        pytest.param(f"[{V6}]:40000", FLOWS[4:5], id="IPv6, one port"),
        pytest.param(f"[{V6}]:2", [], id="IPv6, a port that has none"),
        pytest.param("2001:db8:c:0:0:0:0:7", FLOWS[4:], id="IPv6 in full"),
        pytest.param("2001:db8:c::8", [], id="IPv6, a client that has none"),
        pytest.param(f"::ffff:{V4}", FLOWS[:3], id="IPv4 mapped"),
    ],
)
def test_flows_of_one_client(known: Relay, client: str | None, flows: list[tuple[Address, int]]) -> None:
    assert found(known, "flows", client) == shown(*flows)


def test_each_map_has_its_own(known: Relay) -> None:
    late = Address(CLIENT_V4.host, 50_000)
    assert found(known, "provisional", V4) == found(known, "provisional") == shown((late, 0))
    assert found(known, "provisional", V6) == set()


@pytest.mark.parametrize("client", [None, V4, f"{V4}:40000", V6])
def test_no_flows(assured: Relay, client: str | None) -> None:
    assert found(assured, "flows", client) == found(assured, "provisional", client) == set()


@pytest.mark.parametrize("client", ["nobody", "198.51.100.7:", "198.51.100.7:99999", "[2001:db8::1]", ""])
def test_what_is_no_client_is_told(known: Relay, client: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        found(known, "flows", client)


def test_row_says_what_is_in_the_map(known: Relay) -> None:
    known.programs.steer([3])
    key = FlowKeyC.of(CLIENT_V6, 1)
    now = time.monotonic_ns()
    link = Link(b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", ((0x8100, 0x2007),), 4_000_000)
    known.change_flow(
        key,
        flags=FlowFlag.FLOW_IS_ASSURED | FlowFlag.FLOW_IS_RELEASED,
        client_path=link.path(),
        packets_up=1,
        bytes_up=2,
        packets_down=3,
        bytes_down=2**63,
        last_seen_ns=now - 2 * 10**9,
        ufrag_seen_ns=now - 3 * 10**9,
        created_ns=now - 9 * 10**9,
    )
    (row,) = MapReader(known.programs).find_flows("flows", f"[{V6}]:40000")
    ages = [row.pop(name) for name in ("idle_s", "check_age_s", "age_s")]
    assert [round(age) for age in ages] == [2, 3, 9]
    assert row == {
        "client": str(CLIENT_V6),
        "listen": str(VIP_V6),
        "transceiver": str(CALL.transceiver),
        "slot": 3,
        "state": "released",
        "packets_up": 1,
        "bytes_up": 2,
        "packets_down": 3,
        "bytes_down": 2**63,
        "client_path": "4000000 02:00:00:00:00:02 8100:7",
        "ufrag_tag": CALL.tag,
    }


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (FlowFlag(0), "provisional"),
        (FlowFlag.FLOW_MEDIA_UP, "provisional"),
        (FlowFlag.FLOW_IS_ASSURED, "assured"),
        (FlowFlag.FLOW_IS_ASSURED | FlowFlag.FLOW_MEDIA_DOWN, "assured"),
        (FlowFlag.FLOW_IS_ASSURED | FlowFlag.FLOW_IS_RELEASED, "released"),
    ],
)
def test_state_is_told_by_its_name(assured: Relay, flags: FlowFlag, state: str) -> None:
    key = assured.know_flow(CLIENT_V4)
    assured.change_flow(key, flags=flags)
    (row,) = MapReader(assured.programs).find_flows("flows")
    assert (row["state"], row["client_path"]) == (state, "")


def test_one_client_among_thousands(programs: RelayPrograms) -> None:
    """More than one batch; ``programs`` has room for 64 assured flows, and LRU for some of these."""
    provisional = programs.maps["provisional"]
    for number in range(60):
        provisional.put(FlowKeyC.of(Address.from_host("192.0.2.77", 1 + number), 0), FlowC())
    rows = list(MapReader(programs).find_flows("provisional", "192.0.2.77"))
    assert {row["client"] for row in rows} == {str(key.client()) for key, _ in provisional.items()}
    assert len(rows) > 30


def listed_clients(relay: HostRelay, limit: int, client: str | None) -> list[str]:
    return [row["client"] for row in relay.path.list_flows(limit, client)]


def test_supervisor_lists_flows_of_both_maps_with_their_vips(start: Start) -> None:
    relay = start(slots=2)
    relay.begin()
    store, now = store_of(relay), time.monotonic()
    rows = [("198.51.100.2", 5000, 0, True), ("198.51.100.2", 5001, 1, False), ("203.0.113.2", 5000, 1, True)]
    for host, port, vip, assured in rows:
        key = FlowKey(Address.from_host(host, port), VIPS[vip])
        call = CALL if assured else CALL_V6
        flow = Flow(key, call.transceiver, call.tag, now, now - 7, now - 3, assured=assured)
        flow.packets_up, flow.bytes_up, flow.packets_down, flow.bytes_down = 1, 20, 3, 40
        assert store.write(flow)
    hash_key = tuple(relay.path.programs.settings().hash_key)
    table = maglev_table(range(2), STEERING_SIZE)
    listed = {row["client"]: row for row in relay.path.list_flows(100, None)}
    assert len(listed) == 3
    for host, port, vip, assured in rows:
        client = Address.from_host(host, port)
        row = listed[str(client)]
        assert (round(row.pop("age_s")), round(row.pop("idle_s"))) == (7, 3)
        assert row == {
            "client": str(client),
            "transceiver": str((CALL if assured else CALL_V6).transceiver),
            "state": "assured" if assured else "provisional",
            "packets_up": 1,
            "bytes_up": 20,
            "packets_down": 3,
            "bytes_down": 40,
            "vip": str(VIPS[vip]),
            "worker": table[hash_address(client, (hash_key[0], hash_key[1])) % STEERING_SIZE],
        }
    assert sorted(listed_clients(relay, 100, "198.51.100.2")) == ["198.51.100.2:5000", "198.51.100.2:5001"]
    assert listed_clients(relay, 100, "198.51.100.2:5001") == ["198.51.100.2:5001"]
    assert listed_clients(relay, 100, "2001:db8::1") == []
    assert [len(listed_clients(relay, limit, None)) for limit in (0, 1, 2, 3, 4)] == [0, 1, 2, 3, 3]
    # assured ones come first
    assert listed_clients(relay, 2, None) == [
        client for client in listed_clients(relay, 3, None) if client != "198.51.100.2:5001"
    ]
    relay.close()


def test_vip_behind_a_nat_is_listed_as_clients_know_it(start: Start) -> None:
    relay = start(slots=1)
    relay.begin()
    programs = relay.path.programs
    (key, listener), *_ = [
        (key, value) for key, value in programs.maps["listeners"].items() if value.listen.address() == VIPS[0]
    ]
    told = Address.parse("192.0.2.99:443")
    listener.told.host, listener.told.port = (ctypes.c_uint8 * 16)(*told.mapped), told.port
    programs.maps["listeners"].put(key, listener)
    programs.maps["flows"].put(FlowKeyC.of(CLIENT_V4, 0), FlowC(client_path=LinkPath()))
    assert [row["vip"] for row in relay.path.list_flows(9, None)] == [str(told)]
    relay.close()
