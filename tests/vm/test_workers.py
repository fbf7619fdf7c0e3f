"""The relay's workers: how many there are, and which packets come to which."""

import json
import re
from typing import Any

import pytest

from tests.measured import note_measured
from tests.vm.calls import LineProcess, calling, line_process
from tests.vm.site import Site, on_host, wait_for

pytestmark = pytest.mark.vm

_PACKETS = 100
# Few enough that each of them has some of the clients: 72 fall on 4 workers, none on one of them once in 250 million runs.
_WORKERS = 4
# At most 8 addresses may use one ufrag.
_SESSIONS, _PORTS_EACH = 12, 6
# What drivers call the packets of one receive queue: virtio_net and Intel's, mlx5, i40e, ena.
_QUEUE = re.compile(r"rx_queue_(\d+)_packets|rx(\d+)_packets|rx-(\d+)\.packets|queue_(\d+)_rx_cnt")


def test_scale_up_and_down_in_a_call(site: Site) -> None:
    """First while XDP carries the call, then while the workers do."""
    with calling(site) as call:
        for fastpath in ("on", "off"):
            try:
                site.relay.relayctl("bpf", "fastpath", fastpath)
                for workers in (site.workers + 2, 1, site.workers):
                    site.relay.relayctl("scale", "--workers", str(workers))
                    listed = site.relay.status()["relay"]["workers"]
                    assert [worker["state"] for worker in listed] == ["ready"] * workers
                    call.wait_for_packets(_PACKETS)
            finally:
                site.relay.relayctl("scale", "--workers", str(site.workers))
                site.relay.relayctl("bpf", "fastpath", "on")
        call.hang_up_without_loss(
            f"{site.workers} to {site.workers + 2} to 1 to {site.workers} workers, twice"
        )


def test_every_worker_has_clients_and_each_client_has_one_worker(site: Site) -> None:
    """Binding requests from many ports: a port's packets are all counted by the worker that has its flow."""
    site.relay.relayctl("scale", "--workers", str(_WORKERS))
    try:
        _check_steering(site)
    finally:
        site.relay.relayctl("scale", "--workers", str(site.workers))


def _check_steering(site: Site) -> None:
    relay, interface = site.relay, site.relay.entry.public_interface
    vip = site.inventory.vips[0]
    [source, *_] = sorted(
        a for a in site.client.addresses() if (":" in a) == (vip.family == 6) and a[:4] != "fe80"
    )
    order = {"vip": str(vip), "source": source, "ports_each": _PORTS_EACH, "sessions": _seal(site)}
    queues_before = _queue_packets(relay.ethtool_counters(interface))
    packets_before = _worker_packets(site)
    with line_process(site.client.host, site.client.script("binding_requests"), order) as sending:
        _wait_for_rounds(site, sending, 2)
        workers = _workers_of_ports(site, source)
        _wait_for_rounds(site, sending, 2)
        assert _workers_of_ports(site, source) == workers
        sent = {int(port): count for port, count in sending.must_end()["sent"].items()}
    assert sent.keys() == workers.keys()
    expected = dict.fromkeys(packets_before, 0)
    for port, worker in workers.items():
        expected[worker] += sent[port]

    def counted() -> dict[int, int]:
        return {worker: packets - packets_before[worker] for worker, packets in _worker_packets(site).items()}

    wait_for(lambda: sum(counted().values()) >= sum(sent.values()), 30, "all packets at the workers")
    assert counted() == expected
    assert min(expected.values()) > 0
    shares = {f"worker-{worker}": list(workers.values()).count(worker) for worker in expected}
    queues = _queue_packets(relay.ethtool_counters(interface))
    grown = {queue: queues[queue] - queues_before[queue] for queue in queues}
    note_measured(
        f"{len(sent)} clients, {sum(sent.values())} requests: {shares}; packets by receive queue: {grown or 'not told'}"
    )


def _seal(site: Site) -> Any:
    """Ufrags of sessions that are not there, at a transceiver that is."""
    [process, *_] = site.transceivers[0].status()["transceivers"]["processes"]
    command = [
        f"{site.inventory.venv}/bin/python",
        "-",
        site.inventory.config,
        process["address"],
        str(_SESSIONS),
    ]
    return json.loads(site.relay.host.run(*command, root=True, given=on_host("seal_ufrags").read_text()))


def _wait_for_rounds(site: Site, sending: LineProcess, count: int) -> None:
    sending.latest()
    least = len(sending.lines) + count
    wait_for(
        lambda: sending.latest() and len(sending.lines) >= least,
        site.inventory.command_s,
        f"{count} rounds of requests",
    )


def _workers_of_ports(site: Site, source: str) -> dict[int, int]:
    flows = site.relay.relayctl_json("flows", "--client", source)
    return {
        int(flow["client"].rpartition(":")[2]): flow["worker"]
        for flow in flows
        if flow["state"] == "provisional"
    }


def _worker_packets(site: Site) -> dict[int, int]:
    return {worker["slot"]: worker["packets"] for worker in site.relay.status()["relay"]["workers"]}


def _queue_packets(counters: dict[str, int]) -> dict[int, int]:
    found = ((_QUEUE.fullmatch(name), count) for name, count in counters.items())
    return {int(next(filter(None, match.groups()))): count for match, count in found if match}
