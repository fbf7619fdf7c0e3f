"""A live call whose packets an attacker hears, replays from elsewhere, and interferes with in its client's name."""

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from bench.path import Kind
from cli.call import EchoCall
from tests.e2e.attacker import Attacker, RawSession, raw_session
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, free_port, print_report, running
from tests.e2e.nat import Nat
from tests.e2e.survival import clients_at, echo_call, only_session
from tests.e2e.xdp import CLIENT_IP, SIGNALING, VIP, need_network, xdp_relay
from tests.host.deadline import until
from tests.transceiver.checks import error_code, write_check
from transceiver.ice import CONSENT_S, Credential
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.stun import StunClass, parse_stun_untrusted, verify_integrity, write_binding_request

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_ATTACK_S = 8.0
_INTERVAL_S = 0.02
_AMPLIFICATION = 3


@contextmanager
def relay_on(dataplane: str, network: Network, state_dir: Path) -> Iterator[Instance]:
    """Relay and two transceivers on the host ``there``."""
    if dataplane == "xdp":
        with xdp_relay(network, state_dir, "--transceivers", "2") as instance:
            yield instance
        return
    arguments = ("--listen", VIP, "--insecure", "--transceivers", "2")
    with ExitStack() as stack:
        with network.there:
            instance = stack.enter_context(running(state_dir, *arguments, http=SIGNALING))
        yield instance


async def victim_address(instance: Instance, call: EchoCall) -> Address:
    """Of the only session that is connected."""
    [client] = {s["client"] for s in instance.sessions() if s["state"] == "connected"}
    return Address.parse(client)


def own_check(session: RawSession) -> bytes:
    """Valid, fresh, and with USE-CANDIDATE."""
    key = session.ice_pwd.encode()
    return write_binding_request(
        os.urandom(12), session.username, key, controlling_tie_breaker=9, use_candidate=True
    )


async def both_transceivers(instance: Instance) -> list[RawSession]:
    """A session of the attacker's on each."""
    sessions: dict[str, RawSession] = {}
    async with asyncio.timeout(30):
        while len(sessions) < 2:
            session = await raw_session(instance)
            sessions[session.transceiver] = session
    return list(sessions.values())


@pytest.mark.parametrize("dataplane", ["userspace", "xdp"])
async def test_attacker_moves_and_gets_nothing(
    own_network: Network | None, tmp_path: Path, dataplane: str
) -> None:
    network = need_network(own_network)
    with (
        relay_on(dataplane, network, tmp_path / "s") as instance,
        Attacker.on(network, VIP) as attacker,
        clients_at(CLIENT_IP),
    ):
        async with echo_call(instance) as call:
            victim = await victim_address(instance, call)

            def has_heard_enough() -> bool:
                attacker.listen(victim)
                return len(attacker.captured[Kind.STUN]) >= 2 and len(attacker.captured[Kind.RTP]) >= 100

            await until(has_heard_enough, "checks and media of the victim")
            before, sessions = await call.report(), await both_transceivers(instance)
            received, answered = before.downlink["received"], len(before.round_trips_ms)
            replayed = [
                packet
                for kind in (Kind.STUN, Kind.RTP, Kind.RTCP, Kind.DTLS)
                for packet in attacker.captured[kind]
            ]
            turns = zip(itertools.cycle(replayed), itertools.cycle(sessions), strict=False)
            until_s = time.monotonic() + _ATTACK_S
            sent = 0
            for packet, session in turns:
                if time.monotonic() > until_s:
                    break
                attacker.send(packet)
                attacker.send_as(victim, own_check(session))
                attacker.send_as(victim, packet)
                attacker.listen(victim)
                sent += 1
                await asyncio.sleep(_INTERVAL_S)
            assert sent > len(replayed)
            report = await call.report()
            [seen] = [
                s for s in instance.sessions() if s["client"] == str(victim) and s["state"] == "connected"
            ]
            assert (seen["moves"], seen["paths"]) == (0, 1)
            assert report.state == "connected"
            assert report.packets_lost == 0
            assert report.silent_s < 2
            assert report.downlink["received"] - received > 0.5 * _ATTACK_S * 50
            assert len(report.round_trips_ms) - answered > 0.5 * _ATTACK_S * 10
            assert attacker.received, "a replayed check is answered"
            assert set(attacker.received_kinds()) == {Kind.STUN}
            received_bytes = sum(map(len, attacker.received))
            assert received_bytes <= _AMPLIFICATION * attacker.bytes_sent
            print_report(
                f"attacked call, {dataplane}",
                {
                    "replayed": sent,
                    "spoofed": 2 * sent,
                    "lost": report.packets_lost,
                    "moves": seen["moves"],
                    "sent to the attacker, of what it sent": round(received_bytes / attacker.bytes_sent, 3),
                    "longest gap up_ms": seen["longest_gap_ms"],
                    "contested": instance.status()["relay"]["events"].get("flow_contested", 0),
                },
            )


async def test_client_that_claims_to_be_controlled_is_told_487(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with relay_on("userspace", network, tmp_path / "s") as instance:
        session = await raw_session(instance)
        credential = Credential(session.server_ufrag, session.ice_pwd, session.client_ufrag)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("203.0.113.10", 3478))
            sock.setblocking(False)
            check, answer = write_check(credential, controlled=True), b""
            async with asyncio.timeout(20):
                while not answer:
                    sock.send(check)
                    with suppress(TimeoutError):
                        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2048), 1)
            message = parse_stun_untrusted(answer)
            assert (message.message_class, error_code(message)) == (StunClass.ERROR, 487)
            assert message.transaction_id == check[8:20]
            assert verify_integrity(answer, message, session.ice_pwd.encode())
            assert only_session(instance)["paths"] == 0
            # as the right one it is welcome
            sock.send(write_check(credential))
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2048), 20)
            assert parse_stun_untrusted(answer).message_class is StunClass.SUCCESS
            assert only_session(instance)["paths"] == 1


async def test_media_without_checks_is_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # aioice itself gives up when six checks in succession are not answered
    monkeypatch.setattr("aioice.ice.CONSENT_FAILURES", 1000)
    listen, vip = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    addresses = ("--listen", f"{listen[0]}:{listen[1]}", "--vip", f"{vip[0]}:{vip[1]}")
    with running(tmp_path / "s", *addresses) as instance, Nat(vip, listen) as nat, clients_at("127.0.0.1"):
        async with EchoCall(instance.url, setup_timeout_s=40) as call:
            checked_at = time.monotonic()
            nat.passes_up = lambda datagram: classify(datagram) is not PacketClass.STUN
            silences_s = []
            async with asyncio.timeout(CONSENT_S + 20):
                while instance.sessions():
                    silences_s.append((await call.report()).silent_s)
                    await asyncio.sleep(0.2)
            took_s = time.monotonic() - checked_at
            # the last check came at most 6 s before
            assert took_s >= CONSENT_S - 6
            assert max(silences_s[:-5]) < 2, "media went on all the time"
            ended = [p["ended"] for p in instance.status()["transceivers"]["processes"] if p["ended"]]
            assert ended == [{"consent expired": 1}]
            print_report("media without checks", {"session ended after_s": round(took_s, 1)})


async def test_attacker_who_is_first_with_a_check_gets_its_answer_only(tmp_path: Path) -> None:
    """It keeps a check of the client from arriving and sends it from elsewhere: fresh, so its address is validated."""
    listen, vip = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    addresses = ("--listen", f"{listen[0]}:{listen[1]}", "--vip", f"{vip[0]}:{vip[1]}")
    with running(tmp_path / "s", *addresses) as instance, Nat(vip, listen) as nat, clients_at("127.0.0.1"):
        async with EchoCall(instance.url, setup_timeout_s=40) as call:
            taken: list[bytes] = []
            diverted: list[bytes] = []

            def takes(datagram: bytes) -> bool:
                if taken or classify(datagram) is not PacketClass.STUN:
                    return False
                taken.append(datagram)
                return True

            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
                attacker.bind(("127.0.0.1", 0))
                attacker.setblocking(False)
                nat.passes_up = lambda datagram: not takes(datagram)
                await until(lambda: taken, "a check of the client")
                before = (await call.report()).downlink["received"]
                for _ in range(20):
                    attacker.sendto(taken[0], listen)
                    await asyncio.sleep(0.1)
                await until(lambda: only_session(instance)["paths"] == 2, "the attacker's path")
                # until the client has checked again, and for a while of media
                await asyncio.sleep(7)
                with suppress(BlockingIOError):
                    while True:
                        diverted.append(attacker.recv(65_535))
            report, session = await call.report(), only_session(instance)
            assert {classify(datagram) for datagram in diverted} == {PacketClass.STUN}
            assert sum(map(len, diverted)) <= _AMPLIFICATION * 20 * len(taken[0])
            assert (session["moves"], session["client"]) == (0, f"127.0.0.1:{nat.outer_port}")
            assert report.downlink["received"] - before > 0.5 * 9 * 50
            assert (report.state, report.packets_lost) == ("connected", 0)
            assert report.silent_s < 2
