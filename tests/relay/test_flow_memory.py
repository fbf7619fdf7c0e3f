"""What a supervisor remembers of a worker's flows."""

import pytest

from relay.flow_memory import FlowMemory
from wire.address import Address
from wire.flow_record import FlowRecord


def record(client: str, transceiver: str = "10.0.0.1:5000") -> FlowRecord:
    return FlowRecord(
        Address.parse(client), Address.parse("203.0.113.10:3478"), Address.parse(transceiver), "ufrag"
    )


@pytest.mark.parametrize("client", ["198.51.100.7:40000", "[2001:db8::7]:40000"])
def test_record_survives_the_channel(client: str) -> None:
    assert FlowRecord.from_json(record(client).to_json()) == record(client)


def test_later_record_of_a_client_replaces_the_earlier() -> None:
    cache = FlowMemory(capacity=10)
    cache.remember(record("198.51.100.7:1"))
    cache.remember(record("198.51.100.7:1", "10.0.0.2:5000"))
    assert cache.records() == [record("198.51.100.7:1", "10.0.0.2:5000")]


def test_oldest_gives_way_at_capacity() -> None:
    cache = FlowMemory(capacity=2)
    for client in ("198.51.100.7:1", "198.51.100.7:2", "198.51.100.7:3"):
        cache.remember(record(client))
    assert [r.client.port for r in cache.records()] == [2, 3]


def test_flow_of_another_worker_takes_no_place_of_ours() -> None:
    cache = FlowMemory(capacity=2)
    cache.remember(record("198.51.100.7:1"))
    for client in ("198.51.100.7:1", "198.51.100.7:2", "198.51.100.7:3"):
        cache.learn(record(client, "10.0.0.2:5000"))
    assert cache.records() == [record("198.51.100.7:1"), record("198.51.100.7:2", "10.0.0.2:5000")]


def test_forgotten_flow_is_gone_and_an_unknown_one_costs_nothing() -> None:
    cache = FlowMemory(capacity=2)
    cache.remember(record("198.51.100.7:1"))
    cache.forget(Address.parse("198.51.100.7:2"), record("198.51.100.7:1").vip)
    assert len(cache) == 1
    cache.forget(Address.parse("198.51.100.7:1"), record("198.51.100.7:1").vip)
    assert len(cache) == 0
