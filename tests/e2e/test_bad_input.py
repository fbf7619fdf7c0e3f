"""Whatever arrives at the ports of a running instance costs a counter or an error message, never a call."""

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from cli.call import EchoCall
from host.keystore import load_or_create_keys
from tests.e2e.instance import Instance, free_port, print_report, running
from wire.address import Address
from wire.keys import FleetKey, KeyRing
from wire.spp import encode_header
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_NOW = int(time.clock_gettime(time.CLOCK_REALTIME))


def check_with(
    keys: KeyRing, transceiver: str, *, age_s: int = 0, cluster_id: int = 1, ice_pwd: str = ""
) -> bytes:
    hint = RouteHint(cluster_id, Address.parse(transceiver), _NOW - age_s, os.urandom(5))
    ufrag = seal_ufrag(keys, hint)
    return write_binding_request(
        os.urandom(12), f"{ufrag}:abcd", (ice_pwd or derive_ice_pwd(keys, ufrag)).encode()
    )


def public_datagrams(keys: KeyRing) -> dict[str, bytes]:
    """Datagrams for the relay's public port, by the verdict that each must get."""
    foreign = KeyRing([FleetKey(keys.sealing.key_id, bytes(32))], keys.sealing.key_id)
    unknown = KeyRing([FleetKey(200, bytes(32))], 200)
    good = check_with(keys, "127.0.0.1:9")
    return {
        "drop_malformed": b"",
        "drop_oversize": bytes(3000),
        "drop_not_webrtc": b"\x45" + bytes(50),
        "drop_stun_malformed": good[:4] + b"\0\0\0\0" + good[8:],
        "drop_stun_username": write_binding_request(os.urandom(12), "", b"k"),
        "drop_stun_integrity": check_with(keys, "127.0.0.1:9", ice_pwd="wrong"),
        "drop_stun_unknown_flow": struct.pack("!HHI12s", 0x0011, 0, 0x2112A442, os.urandom(12)),
        "drop_ufrag_forged": check_with(foreign, "127.0.0.1:9"),
        "drop_ufrag_unknown_key": check_with(unknown, "127.0.0.1:9"),
        "drop_ufrag_expired": check_with(keys, "127.0.0.1:9", age_s=90_000),
        "drop_ufrag_cluster": check_with(keys, "127.0.0.1:9", cluster_id=9),
        "drop_ufrag_network": check_with(keys, "192.0.2.1:9"),
        "drop_unknown_flow": b"\x80" + bytes(40),
    }


def fleet_datagrams() -> dict[str, bytes]:
    """Datagrams for a fleet port, from a transceiver network."""
    client, vip = Address.parse("198.51.100.77:5000"), Address.parse("198.51.100.99:1")
    return {"drop_spp_malformed": b"\x56\xec\0", "drop_spp_proxy": encode_header(client, vip) + b"x"}


async def post_bad_offers(url: str) -> dict[str, int]:
    """Status of each bad request; the texts name what to change."""
    statuses = {}
    bodies = {
        "empty": "",
        "not SDP": "hello",
        "binary": "\x00\xff" * 50,
        "1 MB": "v=0\r\n" * 200_000,
        "no audio": "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n",
    }
    async with aiohttp.ClientSession() as http:
        for name, body in bodies.items():
            async with http.post(
                f"{url}whip", data=body, headers={"Content-Type": "application/sdp"}
            ) as response:
                statuses[name] = response.status
                assert (await response.text()).strip()
        async with http.patch(f"{url}whip/sessions/{'x' * 59}") as response:
            statuses["forged token"] = response.status
    return statuses


def send_junk(send: Callable[[bytes], object]) -> None:
    """Random and mutated datagrams, from a fixed seed."""
    source = random.Random(1)
    template = write_binding_request(bytes(12), "a:b", b"k", use_candidate=True)
    for _ in range(2000):
        mutated = bytearray(template)
        mutated[source.randrange(len(mutated))] = source.randrange(256)
        send(bytes(mutated[: source.randrange(len(mutated) + 1)]))
        send(source.randbytes(source.randrange(200)))


async def test_bad_input_costs_counters_and_no_packet_of_a_call(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "s", "--listen", f"127.0.0.1:{port}") as instance:
        keys = load_or_create_keys(instance.state_dir.keys_file)
        async with EchoCall(instance.url) as call:
            await asyncio.sleep(0.5)
            before = instance.verdicts()
            fleet = Address.parse(instance.status()["relay"]["workers"][0]["fleet"][0])
            transceiver = Address.parse(instance.status()["transceivers"]["processes"][0]["address"])
            expected = public_datagrams(keys) | fleet_datagrams()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for datagram in public_datagrams(keys).values():
                    sock.sendto(datagram, ("127.0.0.1", port))
                for datagram in fleet_datagrams().values():
                    sock.sendto(datagram, ("127.0.0.1", fleet.port))
                for target in (port, fleet.port, transceiver.port):
                    sock.connect(("127.0.0.1", target))
                    await asyncio.to_thread(send_junk, sock.send)
            statuses = await post_bad_offers(instance.url)
            await asyncio.to_thread(_break_admin_socket, instance)
            await asyncio.sleep(2)
            after = instance.verdicts()
            counted = {name: after[name] - before[name] for name in expected}
            assert {name for name, count in counted.items() if not count} == set()
            assert statuses == {
                "empty": 400,
                "not SDP": 400,
                "binary": 400,
                "1 MB": 413,
                "no audio": 422,
                "forged token": 415,
            }
            status = instance.status()
            processes = status["relay"]["workers"] + status["transceivers"]["processes"]
            assert [process["restarts"] for process in processes] == [0] * len(processes)
            assert [session["state"] for session in instance.sessions()] == ["connected"]
            report = await call.report()
            assert report.heard
            assert report.packets_lost == 0
            print_report("bad input during a call", {"lost": report.packets_lost, "counted": counted})


def _break_admin_socket(instance: Instance) -> None:
    for line in (
        b"\xff\xfe\n",
        b"[]\n",
        b'{"id":1}\n',
        b"x" * 100_000,
        json.dumps({"id": 1, "method": "flows"}).encode(),
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(instance.state_dir.admin_socket))
            sock.sendall(line)
