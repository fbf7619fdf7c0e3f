"""Whole calls of a stock aiortc client, through a miniature relay, and aiortc's stand-ins by themselves."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from aiortc import RTCCertificate
from aiortc.rtcdtlstransport import (
    SRTP_AEAD_AES_128_GCM,
    SRTP_AES128_CM_SHA1_80,
    SRTPProtectionProfile,
    generate_certificate,
)
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from tests.transceiver.caller import Caller, RelayShim, SkewedClock, calling
from tests.transceiver.checks import RELAY, client, write_check
from tests.transceiver.offers import VOICE
from tests.transceiver.processes import Process, serving
from tests.transceiver.waiting import until
from transceiver import hub
from transceiver.ice import Path
from transceiver.media.settings import SPEECH, MediaPath
from transceiver.session import Session
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.spp import encode_header
from wire.stun import parse_stun_untrusted

pytestmark = pytest.mark.usefixtures("no_task_left", "loopback_only")

ATTACKER = Address.parse("127.0.0.99:9")  # nobody listens there
MOBILE = Address.parse("127.0.0.98:9")
APPLICATION_DATA = 23


@pytest.fixture
def clock() -> SkewedClock:
    return SkewedClock()


@pytest_asyncio.fixture
async def shim() -> AsyncIterator[RelayShim]:
    shim = RelayShim()
    shim.start()
    yield shim
    shim.stop()


@pytest_asyncio.fixture
async def process(shim: RelayShim, clock: SkewedClock) -> AsyncIterator[Process]:
    async with serving(vips=(shim.vip,), clock=clock) as process:
        shim.transceiver = process.address
        yield process


# whole calls


@pytest.mark.parametrize("kinds", [("audio",), ("audio", "video"), ("video", "audio")], ids="-".join)
async def test_call_echoes_audio_and_messages_and_hangs_up(process: Process, kinds: tuple[str, ...]) -> None:
    async with calling(kinds) as caller:
        session = await caller.connect(process)
        await caller.say("hello")
        await until(lambda: caller.loud_frames >= 10)
        assert session.describe()["paths"] == 1
        assert {"answered", "latched", "connected"} <= session.phases.keys()
        assert not session.counters
        assert (await process.public.delete(caller.location)).status == 200
        assert len(process.sessions) == 0
        assert process.sessions.ended == {"hung up": 1}
        await until(lambda: caller.peer.connectionState == "closed")


async def test_client_that_closes_ends_its_session(process: Process) -> None:
    async with calling() as caller:
        await caller.connect(process)
    await until(lambda: len(process.sessions) == 0)
    assert process.sessions.ended == {"peer connection closed": 1}


async def test_two_calls_at_once_do_not_hear_each_other(process: Process) -> None:
    async with calling() as first, calling(talks=False) as second:
        await first.dial(process)
        await second.dial(process)
        await until(lambda: first.channel.readyState == second.channel.readyState == "open")
        await first.say("one")
        await second.say("two")
        await until(lambda: first.loud_frames >= 10)
        assert (first.echoes, second.echoes) == (["one"], ["two"])
        assert second.loud_frames == 0


class RsaCertificate(RTCCertificate):
    """What GStreamer and some embedded stacks come with."""

    def _create_ssl_context(self, srtp_profiles: list[Any]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(b"ECDHE-RSA-AES128-GCM-SHA256")
        return context


async def test_client_with_an_rsa_certificate_connects(process: Process) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = RsaCertificate(key, generate_certificate(key))  # type: ignore[arg-type]  # EC, by aiortc's book
    async with calling() as caller:
        for transport in caller.peer._RTCPeerConnection__dtlsTransports:  # type: ignore[attr-defined]
            transport._RTCDtlsTransport__local_certificate = certificate
        await caller.connect(process)
        await caller.say("hello")


@pytest.mark.parametrize("setup", ["active", "passive"])
async def test_client_that_insists_on_a_dtls_role_connects(process: Process, setup: str) -> None:
    async with calling() as caller:
        await caller.dial(process, lambda sdp: sdp.replace("setup:actpass", f"setup:{setup}"))
        await until(lambda: caller.channel.readyState == "open")
        await caller.say("hello")


async def test_certificate_that_was_not_offered_ends_the_session(process: Process) -> None:
    def other_fingerprints(sdp: str) -> str:
        return "".join(
            line[:-4] + ("00\r\n" if line[-4:-2] != "00" else "11\r\n")
            if line.startswith("a=fingerprint:")
            else line
            for line in sdp.splitlines(keepends=True)
        )

    async with calling() as caller:
        await caller.dial(process, other_fingerprints)
        await until(lambda: len(process.sessions) == 0)
        assert process.sessions.ended == {"peer connection failed": 1}
        assert caller.loud_frames == 0


async def test_hang_up_during_the_handshake_raises_nothing_in_the_background(process: Process) -> None:
    """aiortc's connect task goes on after the end of its transport: its error must not end up in the log."""
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
    response = await process.public.post("/whip", data=VOICE, headers={"Content-Type": "application/sdp"})
    [session] = process.sessions._sessions.values()
    process.mux.receive_untrusted(encode_header(*client(1)) + write_check(session.agent.credential), RELAY)
    await until(lambda: session.describe()["state"] == "connecting")
    assert (await process.public.delete(response.headers["Location"])).status == 200
    assert len(process.sessions) == 0
    await asyncio.sleep(0.05)
    gc.collect()
    assert [str(context.get("exception")) for context in raised] == []


async def test_message_that_is_sent_while_dtls_closes_is_lost_and_raises_nothing(process: Process) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        [transport] = session.peer._RTCPeerConnection__dtlsTransports
        assert transport._ssl is not None
        transport._ssl.shutdown()
        await transport._send_data(b"a retransmission")


# consent


async def test_call_ends_30_s_after_its_client_was_heard_last(
    process: Process, shim: RelayShim, clock: SkewedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_SWEEP_INTERVAL_S", 0.02)
    sweeping = asyncio.create_task(process.sessions.hub.sweep())
    async with calling() as caller:
        await caller.connect(process)
        shim.delivering = False
        clock.ahead_s += 20
        await asyncio.sleep(0.1)
        assert len(process.sessions) == 1
        clock.ahead_s += 10
        await until(lambda: len(process.sessions) == 0)
        assert process.sessions.ended == {"consent expired": 1}
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def test_session_that_nobody_joins_ends_after_30_s(
    process: Process, shim: RelayShim, clock: SkewedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_SWEEP_INTERVAL_S", 0.01)
    sweeping = asyncio.create_task(process.sessions.hub.sweep())
    shim.delivering = False
    async with calling() as caller:
        await caller.dial(process)
        clock.ahead_s += 30
        await until(lambda: len(process.sessions) == 0)
    assert process.sessions.ended == {"consent expired": 1}
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


# attackers


async def test_check_replayed_50_times_diverts_no_packet(
    process: Process, shim: RelayShim, clock: SkewedClock
) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        home = session.agent.selected
        captured = shim.checks()
        assert any(parse_stun_untrusted(check).use_candidate for check in captured)
        since = len(shim.down)
        for round_number in range(50):
            shim.inject(captured[round_number % len(captured)], ATTACKER)
            await asyncio.sleep(0.01)
        clock.ahead_s += 10  # the selected address seems silent
        for check in captured:
            shim.inject(check, ATTACKER)
        caller.loud_frames = 0
        await until(lambda: caller.loud_frames >= 10)
        assert shim.sent_to(ATTACKER, since=since) == [PacketClass.STUN] * (50 + len(captured))
        assert session.agent.selected == home
        assert session.agent.moves == 0


async def test_media_replayed_from_a_validated_address_does_not_move_the_call(
    process: Process, shim: RelayShim
) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        home = session.agent.selected
        await until(lambda: caller.loud_frames >= 1)
        shim.inject(write_check(session.agent.credential), MOBILE)
        await until(lambda: len(session.agent.paths) == 2)
        packets = [d for d, _ in shim.up if classify(d) in (PacketClass.RTP, PacketClass.DTLS)]
        for packet in packets:
            shim.inject(packet, MOBILE)
        shim.inject(b"\x80\x6f" + bytes(100), MOBILE)
        caller.loud_frames = 0
        await until(lambda: caller.loud_frames >= 10)
        await caller.say("still here")
        assert session.agent.selected == home


async def test_client_that_moves_is_followed_with_its_media(process: Process, shim: RelayShim) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        await until(lambda: caller.loud_frames >= 1)
        shim.inject(write_check(session.agent.credential), MOBILE)
        await until(lambda: len(session.agent.paths) == 2)
        shim.uplink = lambda datagram, source: [(datagram, MOBILE)]
        await until(lambda: session.agent.selected == Path(MOBILE, shim.vip))
        await until(lambda: PacketClass.RTP in shim.sent_to(MOBILE))


async def test_late_packet_from_where_the_client_was_does_not_bring_it_back(
    process: Process, shim: RelayShim
) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        shim.inject(write_check(session.agent.credential), MOBILE)
        await until(lambda: len(session.agent.paths) == 2)
        late: list[tuple[bytes, Address]] = []

        def hold_one_and_move(datagram: bytes, source: Address) -> list[tuple[bytes, Address]]:
            if not late and classify(datagram) is PacketClass.RTP:
                late.append((datagram, source))
                return []
            return [(datagram, MOBILE)]

        shim.uplink = hold_one_and_move
        await until(lambda: late and session.agent.selected == Path(MOBILE, shim.vip))
        shim.delivering = False
        await asyncio.sleep(0.05)
        shim.inject(*late[0])
        await asyncio.sleep(0.05)
        assert session.agent.selected == Path(MOBILE, shim.vip)
        assert session.agent.moves == 1


def _is_selected(session: Session, path: Path) -> bool:
    return session.agent.selected == path


async def _connect_silent(caller: Caller, process: Process, shim: RelayShim) -> Session:
    """A call whose client sends no media, with a second address validated."""
    session = await caller.connect(process)
    shim.inject(write_check(session.agent.credential), MOBILE)
    await until(lambda: len(session.agent.paths) == 2)
    return session


async def test_silent_client_that_moves_is_followed_with_its_messages(
    process: Process, shim: RelayShim
) -> None:
    async with calling(talks=False) as caller:
        session = await _connect_silent(caller, process, shim)
        shim.uplink = lambda datagram, source: [(datagram, MOBILE)]
        caller.channel.send("from elsewhere")
        await until(lambda: session.agent.selected == Path(MOBILE, shim.vip))


@pytest.mark.parametrize(
    "profile", [SRTP_AEAD_AES_128_GCM, SRTP_AES128_CM_SHA1_80], ids=["AES-GCM", "AES-CM"]
)
async def test_silent_client_is_followed_with_its_reports_in_their_order(
    process: Process, shim: RelayShim, profile: SRTPProtectionProfile
) -> None:
    async with calling(talks=False) as caller:
        for transport in caller.peer._RTCPeerConnection__dtlsTransports:  # type: ignore[attr-defined]
            transport._srtp_profiles = [profile]
        session = await _connect_silent(caller, process, shim)
        [transport] = caller.peer._RTCPeerConnection__dtlsTransports  # type: ignore[attr-defined]
        home, report = session.agent.selected, bytes.fromhex("80c90001 12345678")
        sent: list[bytes] = []

        def hold(datagram: bytes, source: Address) -> list[tuple[bytes, Address]]:
            if classify(datagram) is PacketClass.STUN:
                return [(datagram, source)]
            sent.append(datagram)
            return []

        shim.uplink = hold
        for _ in range(12):
            await transport._send_rtp(report)
        await until(lambda: len(sent) >= 12)
        assert home is not None
        for number, path in [(0, MOBILE), (1, home.client), (2, MOBILE), (4, home.client), (11, MOBILE)]:
            shim.inject(sent[number], path)
            await until(partial(_is_selected, session, Path(path, shim.vip)))
        for late in (3, 10):
            shim.inject(sent[late], home.client)
        await asyncio.sleep(0.05)
        assert session.agent.selected == Path(MOBILE, shim.vip)


def _record(sequence: int, body: bytes = b"\x00" * 40) -> bytes:
    """An application data record (RFC 6347 section 4.1) that no key made; ``sequence`` counts epoch and number."""
    return b"\x17\xfe\xfd" + sequence.to_bytes(8, "big") + len(body).to_bytes(2, "big") + body


async def test_forged_record_in_front_of_an_authentic_one_does_not_stop_the_following(
    process: Process, shim: RelayShim
) -> None:
    """An on-path attacker lengthens one datagram; later moves of the client must still be followed."""
    async with calling(talks=False) as caller:
        session = await _connect_silent(caller, process, shim)
        shim.uplink = lambda datagram, source: [
            (_record(0xFFFF_FFFFFFFFFFFF) + datagram if datagram[0] == APPLICATION_DATA else datagram, source)
        ]
        await caller.say("lengthened on its way")
        shim.uplink = lambda datagram, source: [(datagram, MOBILE)]
        caller.channel.send("from elsewhere")
        await until(lambda: session.agent.selected == Path(MOBILE, shim.vip))


async def test_forged_record_does_not_move_the_call_when_an_authentic_one_waits(
    process: Process, shim: RelayShim
) -> None:
    """Two records in one datagram are allowed (RFC 6347 section 4.1); what follows from elsewhere is not theirs."""
    async with calling(talks=False) as caller:
        session = await _connect_silent(caller, process, shim)
        home = session.agent.selected
        held: list[bytes] = []

        def join(datagram: bytes, source: Address) -> list[tuple[bytes, Address]]:
            if datagram[0] != APPLICATION_DATA:
                return [(datagram, source)]
            held.append(datagram)
            return [(b"".join(held), source)] if len(held) == 2 else []

        shim.uplink = join
        caller.channel.send("one")
        await until(lambda: len(held) >= 1)
        caller.channel.send("two")
        await until(lambda: len(held) >= 2)
        await asyncio.sleep(0.1)
        shim.inject(_record(1 << 48 | 0xFFFF), MOBILE)
        await asyncio.sleep(0.1)
        assert session.agent.selected == home


# malformed packets of an authentic peer

_RTP = bytes.fromhex("90 60 0001 00000000 12345678")  # with header extension


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(bytes.fromhex("9fc90001 12345678"), id="RR without its 31 reports"),
        pytest.param(bytes.fromhex("81c80001 12345678"), id="SR without its body"),
        pytest.param(bytes.fromhex("81ca0001 12345678"), id="SDES without its items"),
        pytest.param(bytes.fromhex("9fcb0001 12345678"), id="BYE without its sources"),
        pytest.param(bytes.fromhex("8fce0002 12345678 00000000"), id="AFB without a body"),
        pytest.param(bytes.fromhex("8fce0003 12345678 00000000 52454d42"), id="REMB cut short"),
        pytest.param(bytes.fromhex("81cd0002 12345678 00000000"), id="NACK of nothing"),
        pytest.param(bytes.fromhex("80c8ffff 12345678"), id="RTCP length of 256 KB"),
        pytest.param(_RTP + bytes.fromhex("bede0001 1f000000"), id="extension overruns"),
        pytest.param(_RTP + bytes.fromhex("10000001 01ff0000"), id="two-byte extension overruns"),
        pytest.param(_RTP + bytes.fromhex("bede0001 10ff00ff"), id="extension of unknown size"),
        pytest.param(bytes.fromhex("a060 0002 00000000 12345678 00"), id="padding of no bytes"),
        pytest.param(bytes.fromhex("a060 0003 00000000 12345678 ff"), id="padding overruns"),
        pytest.param(bytes.fromhex("8060 0004 00000000 12345678") + b"\xff" * 50, id="payload of no codec"),
        pytest.param(bytes.fromhex("8060 0005 00000000 12345678"), id="no payload"),
    ],
)
async def test_malformed_rtp_of_the_client_does_not_end_its_call(process: Process, packet: bytes) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        [transport] = caller.peer._RTCPeerConnection__dtlsTransports  # type: ignore[attr-defined]
        for _ in range(3):
            await transport._send_rtp(packet)
        await caller.say("still here")
        caller.loud_frames = 0
        await until(lambda: caller.loud_frames >= 10)
        assert session.is_connected


async def test_header_extension_of_a_wrong_size_is_counted_by_aiortcs_receiver(
    shim: RelayShim, clock: SkewedClock
) -> None:
    stock = replace(SPEECH, path=MediaPath.AIORTC)
    async with serving(vips=(shim.vip,), clock=clock, audio=stock) as process, calling() as caller:
        shim.transceiver = process.address
        session = await caller.connect(process)
        [transport] = caller.peer._RTCPeerConnection__dtlsTransports  # type: ignore[attr-defined]
        extensions = caller.peer.getTransceivers()[0]._headerExtensions
        [level] = [extension.id for extension in extensions if extension.uri.endswith("ssrc-audio-level")]
        await transport._send_rtp(_RTP + b"\xbe\xde\x00\x01" + bytes((level << 4 | 2, 1, 2, 3)))
        await caller.say("still here")
        assert session.counters == {"rtp_malformed": 1}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x00", id="one byte"),
        pytest.param(bytes(12), id="zeros"),
        pytest.param(b"\xff" * 1000, id="ones"),
    ],
)
async def test_malformed_sctp_of_the_client_does_not_end_its_call(process: Process, message: bytes) -> None:
    async with calling() as caller:
        session = await caller.connect(process)
        [transport] = caller.peer._RTCPeerConnection__dtlsTransports  # type: ignore[attr-defined]
        await transport._send_data(message)
        await caller.say("still here")
        assert session.is_connected
