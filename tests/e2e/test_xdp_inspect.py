"""`maps`, `drops`, `workers`, `bpf status` on a live call: what they print is what the relay and the call know."""

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cli.call import EchoCall
from relay.dataplane.bpf.abi import MAPS, STEERING_SIZE
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, running
from tests.e2e.xdp import VIP, need_network, xdp_relay
from wire.ufrag import ufrag_tag

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]


async def rows(instance: Instance, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints with --json."""
    shown = await asyncio.to_thread(instance.run, *arguments, "--json")
    assert shown.returncode == 0, shown.stderr
    return list(json.loads(shown.stdout))


async def said(instance: Instance, *arguments: str) -> str:
    """What a command prints for people."""
    shown = await asyncio.to_thread(instance.run, *arguments)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def measured_status(network: Network, instance: Instance) -> dict[str, Any]:
    """``bpf status`` after a second in which the kernel counted runs, seen from the relay's host."""
    with network.there:
        shown = instance.run("bpf", "status", "--stats", "1", "--json")
    return dict(json.loads(shown.stdout))


async def test_status_before_the_first_byte(own_network: Network | None, tmp_path: Path) -> None:
    with xdp_relay(need_network(own_network), tmp_path / "s") as instance:
        assert "packets and flows (0 B up, 0 B down)" in await said(instance, "status")


async def test_maps_of_a_live_call(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2") as instance:
        async with EchoCall(instance.url, bearer_token=instance.token) as call:
            await asyncio.sleep(1)
            (session,) = instance.sessions()
            for name in MAPS:
                await rows(instance, "maps", "show", name)
                assert await said(instance, "maps", "show", name)
            listed = await asyncio.to_thread(instance.run, "maps", "list", "--json")
            described = {row["name"]: row for row in json.loads(listed.stdout)["maps"]}
            assert set(described) == set(MAPS)
            assert described["flows"]["used"] >= 1
            assert described["steering"]["max_entries"] == STEERING_SIZE

            (flow,) = await rows(instance, "maps", "show", "flows", "--client", session["client"])
            assert (flow["client"], flow["listen"], flow["ufrag_tag"], flow["state"]) == (
                session["client"],
                VIP,
                ufrag_tag(session["server_ufrag"]),
                "assured",
            )
            assert flow["packets_up"] > 50 < flow["packets_down"]
            assert flow["idle_s"] < 2
            (got,) = await rows(instance, "maps", "get", "flows", flow["client"])
            assert got["ufrag_tag"] == flow["ufrag_tag"]
            assert await rows(instance, "maps", "show", "flows", "--client", "192.0.2.1") == []
            assert await rows(instance, "maps", "show", "flows", "--where", "packets_up<1") == []

            for wrong in (
                ("workers", "4294967296"),
                ("sockets", "0", "64"),
                ("steering", "-1"),
                ("flows", "x"),
            ):
                refused = await asyncio.to_thread(instance.run, "maps", "get", *wrong)
                assert refused.returncode == 2, refused.stdout

            settings = (await rows(instance, "maps", "show", "settings"))[0]
            assert settings["hash_key"] == "set", "the secret itself is never shown"
            addresses = {row["address"]: row for row in await rows(instance, "maps", "show", "listeners")}
            assert addresses[VIP]["side"] == "public"
            shares = await rows(instance, "maps", "show", "steering")
            assert sum(row["places"] for row in shares) == STEERING_SIZE
            workers = {row["slot"]: row["pid"] for row in await rows(instance, "maps", "show", "workers")}
            assert workers == {w["slot"]: w["pid"] for w in instance.status()["relay"]["workers"]}
            (hand_up,) = await rows(instance, "maps", "show", "verdicts", "--where", "verdict=hand_up")
            assert hand_up["packets"] >= flow["packets_up"]

            watched = await said(instance, "maps", "watch", "flows", "--count", "3", "--interval", "1")
            rates = [
                float(line.split()[1]) for line in watched.splitlines() if line.startswith("packets_up/s")
            ]
            assert len(rates) == 3
            # 50 packets of audio a second, and the data channel's pings
            assert all(30 < rate < 120 for rate in rates[1:]), rates
            assert (await call.report()).packets_lost == 0


async def test_drops_are_told_by_reason_and_place(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    host, port = VIP.split(":")
    with xdp_relay(network, tmp_path / "s", "--workers", "1") as instance:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(7):
                sock.sendto(b"\x45" + os.urandom(20), (host, int(port)))  # XDP's to drop
            for _ in range(5):
                sock.sendto(b"\x80" + os.urandom(40), (host, int(port)))  # a worker's: RTP without a flow
        await asyncio.sleep(0.5)
        told = {row["reason"]: row for row in await rows(instance, "drops")}
        assert {reason: (row["in_xdp"], row["in_workers"]) for reason, row in told.items()} == {
            "not_webrtc": (7, 0),
            "unknown_flow": (0, 5),
        }
        assert all(row["meaning"] for row in told.values())
        table = await said(instance, "drops", "--all", "--interval", "0.1")
        assert "rate_limited" in table
        assert "dropped: 12 packets" in table
        (dropped,) = await rows(instance, "maps", "show", "verdicts", "--where", "drop_reason=not_webrtc")
        assert (dropped["packets"], sum(dropped["by_cpu"])) == (7, 7)


async def test_workers_and_programs(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2") as instance:
        async with EchoCall(instance.url, bearer_token=instance.token):
            await asyncio.sleep(1)
            workers = await rows(instance, "workers")
            assert [worker["slot"] for worker in workers] == [0, 1]
            assert all(worker["cpu_percent"] < 50 for worker in workers)
            # 50 packets of audio each way
            assert 60 < sum(worker["packets/s"] for worker in workers) < 250
            status = await asyncio.to_thread(measured_status, network, instance)
            (interface,) = status["interfaces"]
            assert (interface["interface"], interface["mode"]) == ("eth0", "native")
            programs = {program["program"]: program for program in status["programs"]}
            assert interface["program_id"] == programs["xdp_ingress"]["id"]
            for program in programs.values():
                assert program["runs"] > 20
                assert 20 < program["ns_a_run"] < 20_000
                assert program["pin"].startswith("/sys/fs/bpf/relayctl/")
            assert status["supervisor"] == "running"
            scaled = await said(instance, "scale", "--workers", "3")
            assert scaled == "3 workers (before: 2)\n"
            assert len(await rows(instance, "workers", "--interval", "0.1")) == 3


def test_userspace_has_no_maps_and_says_so(own_network: Network | None, tmp_path: Path) -> None:
    with running(tmp_path / "s", "--workers", "1", "--transceivers", "1") as instance:
        for command in (("maps", "list"), ("maps", "show", "flows"), ("bpf", "status")):
            refused = instance.run(*command)
            assert refused.returncode == 3
            assert "userspace data path (no --interface is named for XDP)" in refused.stderr
        assert instance.run("drops", "--interval", "0.1").returncode == 0
        assert instance.run("workers", "--interval", "0.1").stdout.startswith("1 worker\n")
        scaled = instance.run("scale", "--workers", "2")
        assert scaled.returncode == 0, scaled.stderr
        assert len(instance.status()["relay"]["workers"]) == 2
