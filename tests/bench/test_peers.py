"""What peers are told of flows: whose they are, and which transceiver's."""

import ctypes

import pytest

from bench.frames import flow_client
from bench.peers.flow_maker import transceiver_of
from bench.peers.relayctl import flow_records
from bench.topology import TRANSCEIVERS
from relay.dataplane.bpf.abi import FlowC, FlowKeyC


@pytest.mark.parametrize("first", [0, 17, 999_990])
def test_records_of_the_map_are_those_of_the_flows(first: int) -> None:
    value = FlowC()
    value.transceiver.port = 5000
    value.packets_up = 7
    keys, values = flow_records(FlowKeyC(group=3), value, first, 9)
    assert (len(keys), len(values)) == (9, 9)
    for number, (key_record, record) in enumerate(zip(keys, values, strict=True)):
        flow = first + number
        key, made = FlowKeyC.from_buffer_copy(key_record.tobytes()), FlowC.from_buffer_copy(record.tobytes())
        client, transceiver = flow_client(flow), transceiver_of(flow)
        assert bytes(key.client_host)[12:] == client.host
        assert (key.client_port, key.group) == (client.port, 3)
        assert bytes(made.transceiver.host) == transceiver.mapped
        assert (made.transceiver.port, made.packets_up) == (5000, 7)
        assert len(record.tobytes()) == ctypes.sizeof(FlowC)


def test_the_go_reference_spreads_flows_as_the_sink_expects() -> None:
    # it goes by the client's port
    count = len(TRANSCEIVERS)
    assert all(flow_client(flow).port % count == flow % count for flow in range(1000))
