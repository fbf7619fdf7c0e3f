"""Descriptions of a running call: payload types that stay, sections that are rejected or stopped."""

import asyncio
import gc
import re
from copy import deepcopy

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.codecs import CODECS

from tests.transceiver.library import Application, Tone, connected, negotiate
from tests.transceiver.waiting import until
from transceiver.peer import RelayedPeerConnection

pytestmark = pytest.mark.usefixtures("no_task_left", "loopback_only")


def _renumbered(sdp: str, before: int, after: int) -> str:
    """With another payload type."""
    sdp = re.sub(rf"(m=.* SAVPF.*) {before}\b", rf"\1 {after}", sdp.replace("/SAVPF", "/ SAVPF"))
    sdp = re.sub(rf"(a=(?:rtpmap|fmtp|rtcp-fb)):{before} ", rf"\1:{after} ", sdp)
    return sdp.replace("/ SAVPF", "/SAVPF").replace(f"apt={before}\r", f"apt={after}\r")


async def _call_with_opus_as(
    payload_type: int, client: RTCPeerConnection, ours: RelayedPeerConnection
) -> None:
    """The client has Opus under a number of its own, as Chromium does."""
    await client.setLocalDescription(await client.createOffer())
    offer = _renumbered(client.localDescription.sdp, 96, payload_type)
    await ours.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    answer = _renumbered(ours.localDescription.sdp, payload_type, 96)
    await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await connected(ours, client)
    await until(lambda: ours.voice is not None and ours.voice.sender._payload_type == payload_type)


async def test_offer_of_ours_keeps_the_payload_types_that_were_negotiated(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "video")
    await _call_with_opus_as(111, client, ours)
    ours.addTrack(Tone(20))
    voice, shared = ours.voice, deepcopy(CODECS)
    assert voice is not None
    encoder = voice.sender._encoder
    for _ in range(2):
        offer = await ours.createOffer()
        described = [re.findall(r"a=(?:rtpmap|fmtp):\S+ .*", media) for media in offer.sdp.split("m=")[1:]]
        assert re.findall(r"m=audio \d+ (.*)\r", offer.sdp) == ["UDP/TLS/RTP/SAVPF 111 9 0 8"] * 2
        assert [line for line in described[0] if "111 " in line] == [
            "a=rtpmap:111 opus/48000/2\r",
            "a=fmtp:111 minptime=10;useinbandfec=1\r",
        ]
        assert described[2] == described[0]
    await ours.setLocalDescription(offer)
    offer = ours.localDescription
    await client.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
    await client.setLocalDescription(await client.createAnswer())
    sent = voice.sender.packets
    await ours.setRemoteDescription(RTCSessionDescription(client.localDescription.sdp, "answer"))
    await until(lambda: voice.sender.packets >= sent + 5)
    assert voice.sender._payload_type == 111
    assert 111 in voice.receiver._codecs
    assert voice.sender._encoder is encoder
    assert shared == CODECS


async def test_payload_types_of_a_new_section_are_none_that_another_has(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    await _call_with_opus_as(97, client, ours)  # aiortc's number of VP8
    for kind in ("video", "audio", "video"):
        ours.addTransceiver(kind)
    sdp = (await ours.createOffer()).sdp
    assert re.findall(r"a=rtpmap:(\d+) opus", sdp) == ["97", "97"]
    for section in sdp.split("m=")[1:]:
        types = re.findall(r"a=rtpmap:(\d+) ", section)
        assert len(types) == len(set(types))
        if section.startswith("video"):
            assert "97" not in types
            [vp8] = re.findall(r"a=rtpmap:(\d+) VP8", section)
            assert f" apt={vp8}\r\n" in section


async def test_codecs_of_sections_that_are_not_in_the_offer_stay_as_they_are(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone")
    ours.addTrack(Tone(20))
    await ours.createOffer()  # gives each section its codecs
    shared = deepcopy(CODECS)
    await client.setLocalDescription(await client.createOffer())
    await ours.setRemoteDescription(RTCSessionDescription(client.localDescription.sdp, "offer"))
    assert shared == CODECS
    other = await app.make("tone")
    sdp = (await other.createOffer()).sdp
    assert re.findall(r"a=fmtp:96 .*", sdp) == ["a=fmtp:96 minptime=10;useinbandfec=1\r"]


def _with_video_rejected(sdp: str) -> str:
    """As a browser writes a section whose transceiver was stopped: port 0, no transport, outside of BUNDLE."""
    head, *sections = sdp.split("m=")
    for index, section in enumerate(sections):
        if section.startswith("video"):
            [mid] = re.findall(r"a=mid:(\S+)", section)
            sections[index] = (
                f"video 0 UDP/TLS/RTP/SAVPF 0\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\na=mid:{mid}\r\n"
            )
            head = re.sub(rf"(a=group:BUNDLE.*?) {mid}\b", r"\1", head)
    return "m=".join([head, *sections])


def _assert_rejects_video(sdp: str) -> None:
    assert re.findall(r"m=(\w+) 0 ", sdp) == ["video"]
    [mid] = re.findall(r"m=video.*?a=mid:(\S+)", sdp, re.DOTALL)
    [bundle] = re.findall(r"a=group:BUNDLE (.*)\r", sdp)
    assert mid not in bundle.split()
    assert len(bundle.split()) == sdp.count("m=") - 1


@pytest.mark.parametrize("first", [True, False], ids=["at first", "in a running call"])
async def test_offer_may_reject_a_section(app: Application, first: bool) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "video", "data")
    hears = app.listen(ours)
    if not first:
        await negotiate(client, ours)
        await until(lambda: hears.loud and max(hears.loud) >= 3)
    await client.setLocalDescription(await client.createOffer())
    offer = _with_video_rejected(client.localDescription.sdp)
    await ours.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    created = await ours.createAnswer()
    await ours.setLocalDescription(created)
    for sdp in (created.sdp, ours.localDescription.sdp):
        _assert_rejects_video(sdp)
    [video] = [transceiver for transceiver in ours.getTransceivers() if transceiver.kind == "video"]
    assert video.stopped
    assert [track.readyState for track in hears.tracks if track.kind == "video"] == ["ended"] * (not first)
    await client.setRemoteDescription(RTCSessionDescription(ours.localDescription.sdp, "answer"))
    heard = max(hears.loud)
    await until(lambda: max(hears.loud) >= heard + 5)
    _assert_rejects_video((await ours.createOffer()).sdp)


async def test_answer_may_reject_a_section_that_we_offered(app: Application) -> None:
    ours, client = await app.make("tone", "video", "data"), await app.make_client("tone")
    hears = app.listen(ours)
    await ours.setLocalDescription(await ours.createOffer())
    await client.setRemoteDescription(RTCSessionDescription(ours.localDescription.sdp, "offer"))
    await client.setLocalDescription(await client.createAnswer())
    answer = _with_video_rejected(client.localDescription.sdp)
    await ours.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await connected(ours, client)
    await until(lambda: hears.loud and max(hears.loud) >= 5)
    _assert_rejects_video((await ours.createOffer()).sdp)
    _assert_rejects_video(ours.remoteDescription.sdp)


async def test_section_that_is_bundle_only_is_not_rejected(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "video")
    await client.setLocalDescription(await client.createOffer())
    offer = re.sub(r"m=video \d+ (.*\r\n)", r"m=video 0 \1a=bundle-only\r\n", client.localDescription.sdp)
    await ours.setRemoteDescription(RTCSessionDescription(offer, "offer"))
    answer = (await ours.createAnswer()).sdp
    assert re.findall(r"m=\w+ 0 ", answer) == []
    assert "a=group:BUNDLE 0 1\r\n" in answer


async def test_place_of_a_rejected_section_is_used_again(app: Application) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "video", "data")
    await negotiate(client, ours)
    await connected(ours, client)
    await client.setLocalDescription(await client.createOffer())
    before = client.localDescription.sdp
    await ours.setRemoteDescription(RTCSessionDescription(_with_video_rejected(before), "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    recycled = re.sub(r"a=mid:1\r", "a=mid:7\r", before).replace("BUNDLE 0 1 2", "BUNDLE 0 7 2")
    assert recycled != before
    await ours.setRemoteDescription(RTCSessionDescription(recycled, "offer"))
    await ours.setLocalDescription(await ours.createAnswer())
    sdp = ours.localDescription.sdp
    assert "a=group:BUNDLE 0 7 2\r\n" in sdp
    assert re.findall(r"m=\w+ 0 ", sdp) == []
    sdp = (await ours.createOffer()).sdp
    assert re.findall(r"a=mid:(\S+)", sdp) == ["0", "7", "2"]
    assert "rtpmap" not in sdp.partition("m=application")[2]
    old, new = [transceiver for transceiver in ours.getTransceivers() if transceiver.kind == "video"]
    assert (old.mid, old.stopped, new.mid, new.stopped) == ("1", True, "7", False)


async def test_connection_closes_though_its_track_cannot_be_stopped(app: Application) -> None:
    class Stuck(Tone):
        def stop(self) -> None:
            raise KeyError("of the application")

    ours, client = await app.make(), await app.make_client("tone")
    ours.addTrack(Stuck())
    heard = app.listen(client)
    await negotiate(client, ours)
    await until(lambda: heard.loud and heard.loud[0] >= 2)
    async with asyncio.timeout(5):
        await ours.close()
        await ours.close()
    await until(lambda: client.connectionState == "closed")


async def test_section_that_was_stopped_is_negotiated_again(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    ours, client = await app.make("tone"), await app.make_client("tone", "tone")
    hears = app.listen(ours)
    await negotiate(client, ours)
    await until(lambda: len(hears.loud) == 2 and min(hears.loud) >= 2)
    await ours.getTransceivers()[0].stop()
    await negotiate(client, ours)
    heard = hears.loud[1]
    await until(lambda: hears.loud[1] >= heard + 5)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
