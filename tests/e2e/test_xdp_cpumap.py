"""Packets led to their worker's core: none is lost, whether its sender has completed the checksum or not."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.call import EchoCall
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.namespaces import Host
from tests.e2e.xdp import need_network, send_flood, xdp_relay

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

# Of a client that nobody knows: the worker counts each packet and drops it.
RTP = b"\x80\x6f" + os.urandom(98)
RATE, SECONDS = 2_000, 2


@dataclass(frozen=True)
class Cores:
    """Where the only worker is, and where everything arrives."""

    worker: int
    arrival: int


@pytest.fixture
def cores() -> Cores:
    """A relay pins its workers to the allowed cores in their order."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        assert os.environ.get("REQUIRE_BPF") != "1", "cpumap is expected here, and needs two cores"
        pytest.skip("there is no other core to lead packets to")
    return Cores(*allowed[:2])


@pytest.fixture
def completed_checksums(own_network: Network | None) -> None:
    """The client's host completes checksums itself, as what comes over a wire has them."""
    need_network(own_network).here.set_offload("eth0", "tx-checksum-ip-generic", False)


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and so what it sends over a veth up to the other host's XDP, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextlib.contextmanager
def relay_with(network: Network, tmp_path: Path, *settings: str, workers: int = 1) -> Iterator[Instance]:
    config = tmp_path / "relayctl.toml"
    config.write_text("\n".join(["[relay]", "unknown_per_s = 1000000", "unknown_burst = 1000000", *settings]))
    arguments = ("--config", str(config), "--workers", str(workers), "--transceivers", "1")
    with xdp_relay(network, tmp_path / "s", *arguments) as instance:
        yield instance


def choices(instance: Instance) -> dict[str, int]:
    """What became of packets that were handed up, as an operator asks."""
    shown = instance.run("maps", "show", "core_choices", "--json")
    assert shown.returncode == 0, shown.stderr
    return {row["choice"]: row["packets"] for row in json.loads(shown.stdout)}


def queues(instance: Instance) -> list[int]:
    shown = instance.run("maps", "show", "cores", "--json")
    assert shown.returncode == 0, shown.stderr
    return [row["core"] for row in json.loads(shown.stdout)]


def full_sockets(host: Host) -> int:
    """Datagrams of a host that found no room at their socket."""
    with host:
        text = Path("/proc/thread-self/net/snmp").read_text()
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["RcvbufErrors"])


async def call_for(instance: Instance, seconds: float) -> int:
    """A call's packets that were lost; it must have heard its echo."""
    async with EchoCall(instance.url, bearer_token=instance.token) as call:
        await asyncio.sleep(seconds)
        report = await call.report()
    assert report.heard
    return report.packets_lost


@pytest.mark.parametrize("mode", ["native", "generic"])
async def test_partial_checksums_pass_as_without_the_option(
    own_network: Network | None, tmp_path: Path, cores: Cores, mode: str
) -> None:
    network = need_network(own_network)
    settings = ("cpumap = true", f'xdp_mode = "{mode}"')
    with relay_with(network, tmp_path, *settings) as instance, on_core(cores.arrival):
        assert queues(instance) == [cores.worker]
        lost = await call_for(instance, 3)
        counted = choices(instance)
        relay = instance.status()["relay"]
    print_report(f"call with partial checksums, cpumap on ({mode} XDP)", {"lost": lost, **counted})
    assert lost == 0
    assert counted["checksum_incomplete"] > 100
    # One frame in 65,536 proves itself by chance; then its checksum is the right one, whoever left it.
    assert counted["redirected"] <= 2
    # every packet that was handed up is in one cell
    assert sum(counted.values()) == relay["xdp_verdicts"]["hand_up"]
    assert relay["xdp_verdicts"]["hand_up"] >= relay["verdicts"]["forward_flow"] > 100


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.usefixtures("completed_checksums")
async def test_call_with_complete_checksums_is_led_to_its_worker(
    own_network: Network | None, tmp_path: Path, cores: Cores, mode: str
) -> None:
    network = need_network(own_network)
    settings = ("cpumap = true", f'xdp_mode = "{mode}"')
    with relay_with(network, tmp_path, *settings) as instance, on_core(cores.arrival):
        lost = await call_for(instance, 3)
        counted = choices(instance)
    print_report(f"call with complete checksums, cpumap on ({mode} XDP)", {"lost": lost, **counted})
    assert lost == 0
    assert counted["redirected"] > 100
    assert counted["checksum_incomplete"] == 0


@pytest.mark.alone
async def test_what_is_led_arrives_at_the_worker(
    own_network: Network | None, tmp_path: Path, cores: Cores
) -> None:
    network = need_network(own_network)
    with relay_with(network, tmp_path, "cpumap = true") as instance:
        report = await send_flood(
            network, rate=RATE, seconds=SECONDS, payload=RTP, core=cores.arrival, niceness=0
        )
        offered = report["offered"]

        def arrived() -> int:
            (worker,) = instance.status()["relay"]["workers"]
            return int(worker["packets"])

        with contextlib.suppress(AssertionError):
            wait_until(lambda: arrived() == offered, 5, "arrival of every packet at the worker")
        counted = choices(instance)
        seen = {
            "offered": offered,
            "handed up": instance.status()["relay"]["xdp_verdicts"]["hand_up"],
            "arrived": arrived(),
            "no room at the socket": full_sockets(network.there),
        }
    print_report("flood with complete checksums, cpumap on (XDP)", seen | counted)
    assert seen == {"offered": offered, "handed up": offered, "arrived": offered, "no room at the socket": 0}
    # a packet of the worker's core's own (IPv6 neighbour discovery) can take some of the flood along to there
    assert counted["redirected"] >= 0.95 * offered
    assert counted == dict.fromkeys(counted, 0) | {
        "redirected": counted["redirected"],
        "local": offered - counted["redirected"],
    }
    assert offered >= 100


@pytest.mark.usefixtures("completed_checksums")
async def test_off_is_off(own_network: Network | None, tmp_path: Path, cores: Cores) -> None:
    network = need_network(own_network)
    with relay_with(network, tmp_path) as instance, on_core(cores.arrival):
        lost = await call_for(instance, 1)
        assert queues(instance) == []
        assert not any(choices(instance).values())
    assert lost == 0


def test_queues_follow_the_workers(own_network: Network | None, tmp_path: Path, cores: Cores) -> None:
    network = need_network(own_network)
    with relay_with(network, tmp_path, "cpumap = true", workers=2) as instance:
        assert queues(instance) == [cores.worker, cores.arrival]
        assert instance.run("scale", "--workers", "1").returncode == 0
        assert queues(instance) == [cores.worker]
        assert instance.run("scale", "--workers", "2").returncode == 0
        assert queues(instance) == [cores.worker, cores.arrival]
