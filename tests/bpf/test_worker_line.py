"""A worker with flows in the kernel's maps and a line to the fleet's cache."""

import os
import time
from collections.abc import Iterator
from functools import partial

import pytest

from host.sockets import bound_address
from relay.dataplane.bpf.abi import MAPS, FlowFlag, FlowKeyC
from relay.dataplane.bpf.maps import BpfMap
from tests.bpf.kernel_objects import make_map
from tests.host.deadline import wait_until
from tests.relay.network import RTP, SERVER_HELLO
from tests.relay.test_worker_line import QUIET_S, AskingWorker

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("bpf")]

SIZES = {"flows": 64, "provisional": 64, "workers": 64, "heartbeat": 1}


@pytest.fixture
def maps(bpf: None) -> Iterator[dict[str, BpfMap]]:
    made = {}
    for name, size in SIZES.items():
        layout = MAPS[name]
        empty = BpfMap(-1, layout)
        fd = make_map(name, layout.kind.number, empty.key_size, empty.value_size, size)
        made[name] = BpfMap(fd, layout)
    yield made
    for each in made.values():
        os.close(each.fd)


@pytest.fixture
def worker(maps: dict[str, BpfMap]) -> Iterator[AskingWorker]:
    running = AskingWorker({name: each.fd for name, each in maps.items()})
    yield running
    running.close()


def test_recalled_flow_is_in_the_map_for_xdp_to_forward(
    worker: AskingWorker, maps: dict[str, BpfMap]
) -> None:
    worker.serve()
    worker.client_sends(RTP)
    assert worker.asked() == worker.record().name
    worker.finds(worker.call.transceiver)
    assert worker.arrived() == b""
    worker.transceiver_sends(b"")
    assert worker.arrived() == RTP
    assert worker.hear("transceiver")["host"] == worker.call.transceiver.host.hex(), "whose way XDP needs"
    flow = maps["flows"].get(FlowKeyC.of(bound_address(worker.client), 0))
    assert flow is not None
    assert flow.flags & FlowFlag.FLOW_IS_ASSURED
    assert (flow.transceiver.address(), flow.ufrag_tag.decode()) == (worker.call.transceiver, worker.call.tag)
    assert flow.down_seen_ns == 0
    assert flow.last_seen_ns - flow.ufrag_seen_ns == pytest.approx(6e9, abs=1e6)
    worker.transceiver_sends(SERVER_HELLO)
    assert worker.client.recv(2048) == SERVER_HELLO


def test_worker_tells_of_new_flows_alone(worker: AskingWorker) -> None:
    """Of those in the maps the supervisor tells again."""
    worker.configure(refresh_s=0.2)
    worker.tell("serve")
    worker.hear("ready")
    worker.connect()
    assert worker.told(1) == [worker.record()]
    worker.agent.want_everything()
    time.sleep(2 * QUIET_S)
    worker.read_line()
    assert worker._told == []


def test_worker_that_outlives_supervisor_and_agent_goes_on_without_a_cache(worker: AskingWorker) -> None:
    worker.serve()
    worker.connect()
    worker.close_channel()
    worker.close_line()
    for sent in range(1, 4):
        worker.client_sends(RTP)
        assert worker.arrived() == RTP
        wait_until(partial(lambda count: worker.counted()["forward_flow"] >= count, 1 + sent), "the count")
    assert worker.process.poll() is None
