"""Real calls of stock aiortc clients through relayctl."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.call import EchoCall
from host.keystore import load_keys
from tests.e2e.instance import (
    Instance,
    bound_ports,
    free_port,
    pids_here,
    print_report,
    running,
    udp_socket_inodes,
)
from tests.e2e.nat import Nat
from wire.demux import PacketClass, classify
from wire.stun import parse_stun_untrusted
from wire.ufrag import open_ufrag_untrusted

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@contextlib.contextmanager
def clients_at(*hosts: str) -> Iterator[None]:
    """Clients of this process have no other addresses.

    Of a host with several, a client checks from the next one if the first check is not answered within 20 ms: a path more.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: list(hosts))
        yield


@contextlib.contextmanager
def behind_nat(tmp_path: Path, *arguments: str) -> Iterator[tuple[Instance, Nat]]:
    """An instance whose VIP is a NAT between its clients and where it listens; a client has one address."""
    listen, vip = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    addresses = ("--listen", f"{listen[0]}:{listen[1]}", "--vip", f"{vip[0]}:{vip[1]}")
    with (
        running(tmp_path / "s", *addresses, *arguments) as instance,
        Nat(vip, listen) as nat,
        clients_at("127.0.0.1"),
    ):
        yield instance, nat


def ufrag_of(call: EchoCall) -> str:
    return next(line[12:] for line in call.answer.splitlines() if line.startswith("a=ice-ufrag:"))


async def test_twenty_clients_reach_the_transceivers_that_their_ufrags_name(tmp_path: Path) -> None:
    with running(tmp_path / "s", "--workers", "2", "--transceivers", "3") as instance:
        async with contextlib.AsyncExitStack() as stack:
            calls = [EchoCall(instance.url, setup_timeout_s=40) for _ in range(20)]
            await asyncio.gather(*(stack.enter_async_context(call) for call in calls))
            await asyncio.sleep(2)
            owners = {p["name"]: p["address"] for p in instance.status()["transceivers"]["processes"]}
            sessions = {s["server_ufrag"]: s for s in instance.sessions()}
            keys = load_keys(instance.state_dir.keys_file)
            named = {
                ufrag: str(open_ufrag_untrusted(keys, ufrag).transceiver) for ufrag in map(ufrag_of, calls)
            }
            assert len(sessions) == len(named) == 20
            for ufrag, transceiver in named.items():
                # asserted at the transceiver: the session of that ufrag is connected in the process that the hint names
                assert sessions[ufrag]["state"] == "connected"
                assert owners[sessions[ufrag]["transceiver"]] == transceiver
            flows = instance.ask("flows")
            by_client = {session["client"]: owners[session["transceiver"]] for session in sessions.values()}
            assert {
                flow["client"]: flow["transceiver"] for flow in flows if flow["state"] == "assured"
            } == by_client
            assert len({flow["worker"] for flow in flows}) == 2
            per_process = Counter(session["transceiver"] for session in sessions.values())
            assert max(per_process.values()) - min(per_process.values()) <= 4
            assert len(per_process) == 3
            for process in instance.status()["transceivers"]["processes"]:
                assert len(udp_socket_inodes(process["pid"])) == 1
                assert process["connected"] == process["sessions"] == per_process[process["name"]]
            reports = [await call.report() for call in calls]
            assert all(report.heard for report in reports)
            print_report(
                "20 calls",
                {
                    "sessions a transceiver": dict(per_process),
                    "UDP sockets a transceiver": 1,
                    "lost": sum(report.packets_lost for report in reports),
                    "received": sum(report.downlink["received"] for report in reports),
                },
            )


async def test_calls_go_on_when_a_worker_is_killed(tmp_path: Path) -> None:
    with behind_nat(tmp_path, "--workers", "1") as (instance, nat):
        async with contextlib.AsyncExitStack() as stack:
            calls = [await stack.enter_async_context(EchoCall(instance.url)) for _ in range(4)]
            await asyncio.sleep(2)
            gaps_before = {s["session"]: s["longest_gap_ms"] for s in instance.sessions()}
            counted_before = instance.verdicts()["forward_flow"]
            killed_at = time.monotonic()
            os.kill(instance.status()["relay"]["workers"][0]["pid"], signal.SIGKILL)
            await asyncio.sleep(3)
            worker = instance.status()["relay"]["workers"][0]
            assert (worker["restarts"], worker["last_exit"], worker["state"]) == (
                1,
                "killed by SIGKILL",
                "ready",
            )
            shown = (await asyncio.to_thread(instance.run, "status")).stdout
            assert "killed by SIGKILL" in shown
            assert instance.status()["relay"]["events"]["flow_adopted"] == 4
            assert instance.verdicts()["forward_flow"] > counted_before, "counters survive the worker"
            uplink_ms = max(s["longest_gap_ms"] for s in instance.sessions())
            downlink_ms = max(
                (later - earlier) * 1000
                for times in nat.media_down_at.values()
                for earlier, later in itertools.pairwise(times)
                if later > killed_at
            )
            assert {s["state"] for s in instance.sessions()} == {"connected"}
            for call in calls:
                answered = len((await call.report()).round_trips_ms)
                await asyncio.sleep(0.5)
                assert len((await call.report()).round_trips_ms) > answered
            # Without the flows that the supervisor remembers, this would be the next consent check: 4 to 6 s.
            assert uplink_ms < 3000
            assert downlink_ms < 3000
            reports = [await call.report() for call in calls]
            print_report(
                "worker killed -9, 4 calls",
                {
                    "uplink_gap_ms": uplink_ms,
                    "downlink_gap_ms": round(downlink_ms, 1),
                    "longest gap before_ms": max(gaps_before.values()),
                    "lost": sum(report.packets_lost for report in reports),
                },
            )


async def test_nat_rebind_recovers(tmp_path: Path) -> None:
    with behind_nat(tmp_path) as (instance, nat):
        async with EchoCall(instance.url) as call:
            await asyncio.sleep(1)
            before, rebound_at = nat.outer_port, time.monotonic()
            nat.rebind()
            (media_down_at,) = nat.media_down_at.values()
            # aioice checks consent every 4 to 6 s; the relay learns of the new address by the next check
            while media_down_at[-1] <= rebound_at + 0.1:
                assert time.monotonic() - rebound_at < 8
                await asyncio.sleep(0.02)
            gap_s = media_down_at[-1] - rebound_at
            session = instance.sessions()[0]
            assert session["client"] == f"127.0.0.1:{nat.outer_port}" != f"127.0.0.1:{before}"
            assert session["moves"] == 1
            answered = len((await call.report()).round_trips_ms)
            await asyncio.sleep(1)
            assert len((await call.report()).round_trips_ms) > answered
            print_report("NAT rebind", {"gap_s": round(gap_s, 2), "bound_s": "next consent check, 6"})


async def test_vanished_client_is_gone_within_35_s(tmp_path: Path) -> None:
    with behind_nat(tmp_path) as (instance, nat):
        async with EchoCall(instance.url):
            vanished_at = time.monotonic()
            nat.passes_up = lambda datagram: False
            while instance.sessions():
                assert time.monotonic() - vanished_at < 35
                await asyncio.sleep(0.2)
            took_s = time.monotonic() - vanished_at
            ended = [p["ended"] for p in instance.status()["transceivers"]["processes"] if p["ended"]]
            assert ended == [{"consent expired": 1}]
            print_report("vanished client", {"session ended after_s": round(took_s, 1)})


# Media in real time: on a busy machine both ends send less of it.
@pytest.mark.alone
async def test_replayed_check_diverts_nothing(tmp_path: Path) -> None:
    with behind_nat(tmp_path) as (instance, nat):
        async with EchoCall(instance.url) as call:
            await asyncio.sleep(1)
            captured = nat.checks[-1]
            diverted: list[bytes] = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
                attacker.bind(("127.0.0.1", 0))
                attacker.setblocking(False)
                received = (await call.report()).downlink["received"]
                started = time.monotonic()
                for index in range(250):
                    attacker.sendto(captured, nat.listen)
                    await asyncio.sleep(max(0.0, started + (index + 1) / 50 - time.monotonic()))
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            diverted.append(attacker.recv(4096))
            took_s = time.monotonic() - started
            answers = [d for d in diverted if classify(d) is PacketClass.STUN]
            assert [d for d in diverted if classify(d) is not PacketClass.STUN] == []
            assert answers, "a replayed check is answered: it costs the attacker's own bandwidth only"
            assert all(parse_stun_untrusted(a).transaction_id == captured[8:20] for a in answers)
            session = instance.sessions()[0]
            assert (session["moves"], session["paths"], session["state"]) == (0, 1, "connected")
            report = await call.report()
            expected = took_s * 50
            assert report.downlink["received"] - received >= 0.95 * expected
            assert report.packets_lost == 0
            print_report(
                "replayed check", {"replays": 250, "answered": len(answers), "diverted": 0, "lost": 0}
            )


async def test_client_whose_first_check_comes_from_the_losing_pair_connects(tmp_path: Path) -> None:
    listens = {"127.0.0.1": free_port(), "::1": free_port(host="::1")}
    vips = {"127.0.0.1": free_port(), "::1": free_port(host="::1")}
    arguments = ["--listen", f"127.0.0.1:{listens['127.0.0.1']}", "--vip", f"127.0.0.1:{vips['127.0.0.1']}"]
    arguments += ["--listen", f"[::1]:{listens['::1']}", "--vip", f"[::1]:{vips['::1']}"]
    with running(tmp_path / "s", *arguments) as instance, contextlib.ExitStack() as stack:
        v4, v6 = (stack.enter_context(Nat((ip, vips[ip]), (ip, listens[ip]))) for ip in ("127.0.0.1", "::1"))
        # IPv6 is the losing pair: its first check arrives, alone; nothing ever comes back on it.
        v6.passes_down = lambda datagram: False
        stack.enter_context(clients_at("127.0.0.1", "::1"))
        v4.passes_up = lambda datagram: bool(v6.checks)
        async with EchoCall(instance.url) as call:
            assert v6.delivered_up
            session = instance.sessions()[0]
            assert session["client"] == f"127.0.0.1:{v4.outer_port}"
            assert session["paths"] == 2
            await asyncio.sleep(1)
            assert (await call.report()).heard


async def test_sigterm_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    with running(tmp_path / "s") as instance:
        async with EchoCall(instance.url) as call:
            pids = instance.pids()
            assert len(pids) >= 4
            ports = bound_ports(pids)
            assert len(ports) >= 5
            instance.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(instance.process.wait, 20) == 0
            assert [pid for pid in pids if psutil.pid_exists(pid)] == []
            assert bound_ports(pids_here()) & ports == set()
            assert sorted(p.name for p in instance.state_dir.path.iterdir()) == [
                "keys.json",
                "launch.json",
                "lock",
                "test.log",
            ]
            # the transceiver said goodbye by DTLS, so the client knows at once
            for _ in range(50):
                if call.peer.connectionState == "closed":
                    break
                await asyncio.sleep(0.1)
            assert call.peer.connectionState == "closed"
