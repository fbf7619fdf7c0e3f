"""RelayedPeerConnection as an application of aiortc uses it, with stock clients: offering, answering, and again."""

import asyncio
import contextlib
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
from aiortc import (
    InvalidStateError,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from aiortc.contrib.media import MediaBlackhole, MediaRelay
from aiortc.exceptions import OperationError
from aiortc.sdp import candidate_from_sdp

from tests.transceiver.library import Application, Tone, application, connected, negotiate
from tests.transceiver.waiting import until
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.sender import VoiceSender
from transceiver.media.settings import AudioSettings, MediaPath
from transceiver.peer import RelayedPeerConnection
from wire.address import Address
from wire.rtcp import is_rtcp

pytestmark = pytest.mark.usefixtures("no_task_left", "loopback_only")


def echo_messages(peer: RTCPeerConnection) -> None:
    """Answer each message with itself."""

    def take(channel: RTCDataChannel) -> None:
        channel.on("message", channel.send)

    peer.on("datachannel", take)


async def say(channel: RTCDataChannel, message: str) -> None:
    """Send and wait for the echo."""
    heard: list[str | bytes] = []
    channel.on("message", heard.append)
    await until(lambda: channel.readyState == "open")
    channel.send(message)
    await until(lambda: message in heard)


@pytest.mark.parametrize("role", ["answers", "offers"])
async def test_connection_carries_audio_both_ways(app: Application, role: str) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    hears, heard = app.listen(ours), app.listen(client)
    await (negotiate(ours, client) if role == "offers" else negotiate(client, ours))
    await connected(ours, client)
    await until(lambda: hears.loud[0] >= 10 and heard.loud[0] >= 10)
    assert isinstance(ours.getSenders()[0], VoiceSender)
    assert isinstance(ours.getReceivers()[0], VoiceReceiver)
    assert not ours.counters
    sdp = ours.localDescription.sdp
    assert sdp.count("a=candidate:") == sdp.count("m=")
    assert f" {app.shim.vip.port} typ host" in sdp
    assert "a=ice-lite" in sdp


async def test_offer_asks_for_redundancy_as_an_answer_does(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    await negotiate(ours, client)
    assert "useinbandfec=1" in ours.localDescription.sdp
    await connected(ours, client)


@pytest.mark.parametrize(
    "kinds", [("data",), ("data", "tone"), ("tone", "data"), ("data", "tone", "video")], ids="-".join
)
@pytest.mark.parametrize("role", ["answers", "offers"])
async def test_sections_in_any_order_share_the_one_transport(
    app: Application, kinds: tuple[str, ...], role: str
) -> None:
    ours, client = await app.make(*(kinds if role == "offers" else kinds[:0])), await app.make_client()
    if role == "offers":
        echo_messages(client)
        await negotiate(ours, client)
    else:
        client = await app.make_client(*kinds)
        echo_messages(ours)
        await negotiate(client, ours)
    await connected(ours, client)
    offerer: Any = ours if role == "offers" else client
    channels = list(offerer.sctp._data_channels.values()) or [c[0] for c in offerer.sctp._data_channel_queue]
    await say(channels[0], "hello")
    assert len(ours._RTCPeerConnection__dtlsTransports) == 1


async def test_data_channel_that_was_made_before_the_audio_of_the_answerer(app: Application) -> None:
    ours, client = await app.make("data", "tone"), await app.make_client("tone", "data")
    heard = app.listen(client)
    await negotiate(client, ours)
    await connected(ours, client)
    await until(lambda: heard.loud[0] >= 5)


@pytest.mark.parametrize("again", ["client", "ours"])
async def test_section_is_added_to_a_running_call(app: Application, again: str) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    hears, heard = app.listen(ours), app.listen(client)
    await negotiate(client, ours)
    await until(lambda: hears.loud and hears.loud[0] >= 5)
    for peer in (ours, client):
        peer.addTrack(Tone(20))
    await (negotiate(client, ours) if again == "client" else negotiate(ours, client))
    await until(lambda: len(heard.loud) == len(hears.loud) == 2)
    await until(lambda: min(*heard.loud, *hears.loud) >= 10)
    assert ours.connectionState == "connected"


async def test_section_is_put_on_hold_and_taken_up_again(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    hears, heard = app.listen(ours), app.listen(client)
    await negotiate(client, ours)
    await until(lambda: hears.loud and heard.loud and hears.loud[0] >= 5)
    client.getTransceivers()[0].direction = "inactive"
    await negotiate(client, ours)
    [sender], [receiver] = ours.getSenders(), ours.getReceivers()
    assert isinstance(sender, VoiceSender)
    assert isinstance(receiver, VoiceReceiver)
    assert (sender._enabled, receiver._enabled) == (False, False)
    sent = sender.packets
    await asyncio.sleep(0.1)
    assert sender.packets == sent
    client.getTransceivers()[0].direction = "sendrecv"
    before = hears.loud[0], heard.loud[0]
    await negotiate(client, ours)
    await until(lambda: hears.loud[0] > before[0] + 5 and heard.loud[0] > before[1] + 5)


async def test_offer_with_another_ufrag_restarts_ice_and_the_call_goes_on(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    hears = app.listen(ours)
    await negotiate(client, ours)
    await until(lambda: hears.loud and hears.loud[0] >= 5)
    before = ours.agent.credential
    offer = await client.createOffer()
    await client.setLocalDescription(offer)
    restarted = re.sub(r"a=ice-ufrag:\S+", "a=ice-ufrag:another1", client.localDescription.sdp)
    await ours.setRemoteDescription(RTCSessionDescription(restarted, "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    after = ours.agent.credential
    assert after.client_ufrag == "another1"
    assert after.server_ufrag != before.server_ufrag
    assert f"a=ice-ufrag:{after.server_ufrag}\r\n" in ours.localDescription.sdp
    heard = hears.loud[0]
    await until(lambda: hears.loud[0] >= heard + 10)
    assert ours.connectionState == "connected"


async def test_offer_that_is_refused_changes_nothing_of_a_running_call(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    await negotiate(client, ours)
    await connected(ours, client)
    before = ours.agent.credential
    await client.setLocalDescription(await client.createOffer())
    restarted = re.sub(r"a=ice-ufrag:\S+", "a=ice-ufrag:another1", client.localDescription.sdp)
    unknown = re.sub(r"(opus|PCMU|PCMA|G722)/", "unheard/", restarted)
    with pytest.raises(OperationError):
        await ours.setRemoteDescription(RTCSessionDescription(unknown, "offer"))
    assert ours.agent.credential == before


async def test_description_for_a_closed_connection_is_refused(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    await ours.close()
    with pytest.raises(InvalidStateError):
        await negotiate(client, ours)
    assert len(app.hub) == 0


async def test_stock_media_goes_over_our_transport_where_it_is_chosen(tmp_path: Path) -> None:
    async with application(tmp_path, audio=AudioSettings(path=MediaPath.AIORTC)) as app:
        ours, client = await app.make("tone"), await app.make_client("tone")
        hears, heard = app.listen(ours), app.listen(client)
        await negotiate(client, ours)
        await until(lambda: hears.loud and heard.loud and hears.loud[0] >= 5 and heard.loud[0] >= 5)
        assert ours.voice is None


@pytest.mark.parametrize("told", ["by a=ssrc", "by MID"])
async def test_sections_are_told_apart(app: Application, told: str) -> None:
    ours, client = await app.make(), await app.make_client("tone")
    client.addTransceiver("audio", direction="sendrecv")
    hears = app.listen(ours)
    client.getSenders()[0].replaceTrack(None)
    client.getSenders()[1].replaceTrack(Tone())
    await client.setLocalDescription(await client.createOffer())
    sdp = client.localDescription.sdp
    if told == "by MID":
        sdp = re.sub(r"a=ssrc:.*\r\n", "", sdp)
    await ours.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    await client.setRemoteDescription(RTCSessionDescription(ours.localDescription.sdp, "answer"))
    await until(lambda: len(hears.loud) == 2 and hears.loud[1] >= 10)
    if told == "by MID":  # and the same once more
        [_, receiver] = ours.getReceivers()
        assert isinstance(receiver, VoiceReceiver)
        named = receiver.signalled_ssrcs
        await ours.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        await ours.setLocalDescription(await ours.createAnswer())
        before = hears.loud[1]
        await until(lambda: hears.loud[1] >= before + 10)
        assert receiver.signalled_ssrcs == named
    assert hears.loud[0] == 0
    assert not ours.counters


async def test_candidates_are_taken_and_none_is_looked_up(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    looked_up: list[Any] = []
    monkeypatch.setattr("aioice.mdns.create_mdns_protocol", looked_up.append)
    candidate = candidate_from_sdp(
        "1 1 udp 2113937151 0a1b2c3d-0000-4000-8000-123456789abc.local 50000 typ host generation 0"
    )
    candidate.sdpMid, candidate.sdpMLineIndex = "0", 0
    await client.setLocalDescription(await client.createOffer())
    offer = client.localDescription
    mdns = re.sub(
        r" 127\.0\.0\.1 (\d+) typ", r" 0a1b2c3d-0000-4000-8000-123456789abc.local \1 typ", offer.sdp
    )
    await ours.setRemoteDescription(RTCSessionDescription(mdns, "offer"))
    await ours.addIceCandidate(candidate)
    await ours.setLocalDescription(await ours.createAnswer())
    await ours.addIceCandidate(RTCIceCandidate(1, "1", "192.0.2.1", 9, 1, "udp", "host", sdpMid="0"))
    await ours.addIceCandidate(None)
    await client.setRemoteDescription(RTCSessionDescription(ours.localDescription.sdp, "answer"))
    await connected(ours, client)
    await ours.addIceCandidate(candidate)
    await ours.addIceCandidate(None)
    assert looked_up == []


async def test_configuration_is_taken_and_its_servers_are_not_asked(app: Application) -> None:
    servers = [RTCIceServer("turn:192.0.2.1:3478", "user", "password"), RTCIceServer("stun:192.0.2.1")]
    ours = RelayedPeerConnection(RTCConfiguration(iceServers=servers))
    client = await app.make_client("tone")
    await negotiate(client, ours)
    await connected(ours, client)
    await ours.close()


async def test_closing_twice_and_at_once_is_no_error(app: Application) -> None:
    ours, client = await app.make("tone", "data"), await app.make_client("tone", "data")
    await negotiate(client, ours)
    await connected(ours, client)
    await asyncio.gather(ours.close(), ours.close())
    await ours.close()
    assert ours.connectionState == ours.signalingState == ours.iceConnectionState == "closed"
    assert len(app.hub) == 0
    with pytest.raises(InvalidStateError):
        await ours.createOffer()
    await until(lambda: client.connectionState == "closed")


@pytest.mark.parametrize("moment", ["made", "offered", "answered", "handshaking"])
async def test_connection_closes_at_any_moment(app: Application, moment: str) -> None:
    ours, client = await app.make("tone", "data"), await app.make_client("tone", "data")
    if moment == "handshaking":
        # DTLS from the client is lost, so that the handshake cannot end.
        app.shim.uplink = lambda datagram, source: [] if 20 <= datagram[0] <= 63 else [(datagram, source)]
    if moment == "offered":
        await ours.setLocalDescription(await ours.createOffer())
    elif moment != "made":
        await negotiate(client, ours)
    if moment == "handshaking":
        await until(lambda: any(20 <= datagram[0] <= 63 for datagram, _ in app.shim.down))
        await until(lambda: client.iceConnectionState == "completed")
    async with asyncio.timeout(3):
        await ours.close()
    assert ours.connectionState == "closed"
    assert len(app.hub) == 0


async def test_hub_that_closes_ends_its_connections(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        ours, client = await app.make("tone"), await app.make_client("tone")
        await negotiate(client, ours)
        await connected(ours, client)
    assert ours.connectionState == "closed"


async def test_client_that_vanishes_ends_the_connection(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    hears = app.listen(ours)
    await negotiate(client, ours)
    await connected(ours, client)
    states: list[str] = []
    ours.on("connectionstatechange", lambda: states.append(ours.connectionState))
    await client.close()
    await until(lambda: ours.connectionState == "closed")
    assert states[-1] == "closed"
    assert hears.tracks[0].readyState == "ended"
    await until(lambda: len(app.hub) == 0)


async def test_video_goes_aiortcs_way_over_our_transport(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    client.addTrack(VideoStreamTrack())
    hears = app.listen(ours)
    await negotiate(client, ours)
    await until(lambda: hears.pictures >= 3 and max(hears.loud) >= 5)
    stats = {stats.type for stats in (await ours.getStats()).values()}
    assert {"inbound-rtp", "outbound-rtp", "transport"} <= stats
    assert not {name for name in ours.counters if name != "queue_overflow"}


async def test_video_of_ours_is_seen_by_the_client(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "video")
    ours.addTrack(VideoStreamTrack())
    sees = app.listen(client)
    await negotiate(client, ours)
    await until(lambda: sees.pictures >= 3 and max(sees.loud) >= 5)


async def test_two_audio_sections_are_told_apart(app: Application) -> None:
    ours, client = await app.make(), await app.make_client("tone")
    client.addTransceiver("audio", direction="sendonly")  # its track is silence: none
    hears = app.listen(ours)
    await negotiate(client, ours)
    await until(lambda: len(hears.loud) == 2 and hears.loud[0] >= 10)
    assert hears.loud[1] == 0
    assert not ours.counters


async def test_track_of_the_client_is_relayed_to_several_connections(app: Application) -> None:
    relay = MediaRelay()
    speaks, speaker = await app.make("audio"), await app.make_client("tone")
    received: list[Any] = []
    speaks.on("track", received.append)
    await negotiate(speaker, speaks)
    await until(lambda: received)
    listeners = []
    for _ in range(2):
        ours, client = await app.make(), await app.make_client("audio")
        listeners.append(app.listen(client))
        ours.addTrack(relay.subscribe(received[0]))
        await negotiate(client, ours)
    await until(lambda: all(listener.loud and listener.loud[0] >= 10 for listener in listeners))


async def test_one_section_is_stopped_and_the_call_goes_on(app: Application) -> None:
    ours, client = await app.make("tone", "audio"), await app.make_client("tone", "tone", "data")
    hears, heard = app.listen(ours), app.listen(client)
    echo_messages(ours)
    await negotiate(client, ours)
    await until(lambda: len(hears.loud) == 2 and min(hears.loud) >= 3 and heard.loud[0] >= 3)
    await ours.getTransceivers()[0].stop()
    await until(lambda: "ended" in [track.readyState for track in hears.tracks])
    going_on = 1 - [track.readyState for track in hears.tracks].index("ended")
    before = hears.loud[going_on]
    await until(lambda: hears.loud[going_on] >= before + 5)
    assert client.sctp is not None
    [channel] = client.sctp._data_channels.values()
    await say(channel, "still here")


async def test_what_the_network_loses_and_reorders_is_heard_in_order_and_told(app: Application) -> None:
    ours, client = await app.make("audio"), await app.make_client("tone")
    hears = app.listen(ours)
    kept: list[tuple[bytes, Address]] = []
    count = 0

    def lose_and_reorder(datagram: bytes, source: Address) -> list[tuple[bytes, Address]]:
        nonlocal count
        if not 128 <= datagram[0] <= 191 or is_rtcp(datagram):
            return [(datagram, source)]
        count += 1
        if count % 10 == 3:
            return []
        if count % 10 == 7:
            kept.append((datagram, source))
            return []
        delivered = [(datagram, source), *kept]
        kept.clear()
        return delivered

    app.shim.uplink = lose_and_reorder
    await negotiate(client, ours)
    await until(lambda: hears.loud and hears.loud[0] >= 100)
    up = ours.describe()["up"]
    assert up["lost"] >= 8
    # What a stall of this machine made us fill is not made up again.
    assert up["concealed"] + up["late"] >= up["lost"] - up["filled"] - 2
    assert up["reordered"] >= 8
    sent = up["packets"] + up["lost"]
    assert sent - 10 <= hears.loud[0] <= sent + up["filled"] + 1


async def test_blackhole_and_statistics_as_applications_use_them(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    blackhole = MediaBlackhole()
    ours.on("track", blackhole.addTrack)
    await negotiate(client, ours)
    await blackhole.start()
    await connected(ours, client)
    types: set[str] = set()

    async def all_types() -> None:
        while not {"remote-inbound-rtp", "remote-outbound-rtp"} <= types:
            types.update(stats.type for stats in (await ours.getStats()).values())
            await asyncio.sleep(0.01)

    await asyncio.wait_for(all_types(), 8)
    by_type = {stats.type: stats for stats in (await ours.getStats()).values()}
    assert by_type["inbound-rtp"].packetsReceived > 10
    assert by_type["outbound-rtp"].packetsSent > 10
    assert by_type["transport"].bytesReceived > 1000
    theirs = {stats.type: stats for stats in (await client.getStats()).values()}
    assert theirs["inbound-rtp"].packetsLost == 0
    with contextlib.suppress(asyncio.CancelledError):
        await blackhole.stop()


async def test_connection_that_was_closed_is_no_longer_in_memory(app: Application) -> None:
    async def call() -> list[weakref.ref[Any]]:
        ours, client = RelayedPeerConnection(), await app.make_client("tone")
        ours.addTrack(Tone())
        hears = app.listen(ours)
        await negotiate(client, ours)
        await until(lambda: hears.loud and hears.loud[0] >= 2)
        made = [weakref.ref(thing) for thing in (ours, *ours.getReceivers(), *ours.getSenders())]
        await ours.close()
        await hears.close()
        hears.tracks.clear()
        return made

    gone = [ref for _ in range(3) for ref in await call()]

    def is_gone() -> bool:
        gc.collect()
        return not any(ref() is not None for ref in gone)

    await until(is_gone)


async def test_track_is_replaced_while_the_call_runs(app: Application) -> None:
    ours, client = await app.make("audio"), await app.make_client("tone")
    heard = app.listen(client)
    await negotiate(client, ours)
    await connected(ours, client)
    [sender] = ours.getSenders()
    for _ in range(2):
        heard.loud[0] = 0
        sender.replaceTrack(Tone())
        await until(lambda: heard.loud[0] >= 5)
        sender.replaceTrack(None)
