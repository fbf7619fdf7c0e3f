"""The receiver and its track: what is decoded, what is bounded, what is dropped."""

import asyncio
import random
from collections.abc import AsyncIterator
from fractions import Fraction

import numpy as np
import pytest
import pytest_asyncio
from aiortc import MediaStreamTrack
from aiortc.contrib.media import MediaRelay
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from av import AudioFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transceiver.media.fakes import (
    G722_TYPE,
    OPUS_TYPE,
    PCMA_TYPE,
    PCMU_TYPE,
    Media,
    speech_packets,
)
from transceiver.media.settings import OPUS_RATES, SPEECH, AudioSettings
from transceiver.media.track import VoiceTrack
from wire.rtcp import SenderReport
from wire.rtp import RtpPacket

pytestmark = pytest.mark.usefixtures("no_task_left")

_TYPES = {"opus": OPUS_TYPE, "pcmu": PCMU_TYPE, "pcma": PCMA_TYPE, "g722": G722_TYPE}


@pytest_asyncio.fixture
async def media() -> AsyncIterator[Media]:
    media = Media()
    yield media
    await media.stop()


def make_track(media: Media) -> MediaStreamTrack:
    """As aiortc makes one when it applies a description."""
    media.receiver._track = RemoteStreamTrack("audio", "the-id")
    return media.receiver.track


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def read(track: MediaStreamTrack) -> AudioFrame:
    frame = await asyncio.wait_for(track.recv(), 1)
    assert isinstance(frame, AudioFrame)
    return frame


@pytest.mark.parametrize(
    "audio", [AudioSettings(), SPEECH, AudioSettings(sample_rate=8_000)], ids=["48 kHz", "speech", "8 kHz"]
)
@pytest.mark.parametrize("name", ["opus", "pcmu", "pcma", "g722"])
async def test_each_codec_is_decoded_to_what_was_asked_for(name: str, audio: AudioSettings) -> None:
    media = Media(audio)
    await media.receive("opus", "pcmu", "pcma", "g722")
    samples = 960 if name == "opus" else 160
    for number, packet in enumerate(speech_packets(name, 30)):
        media.arrive(number, packet, payload_type=_TYPES[name], samples=samples)
        media.pass_time(0.02)
    wanted = 30 * audio.sample_rate // 50 * audio.channels * 2
    pcm = b"".join(media.pcm)
    assert wanted * 0.95 <= len(pcm) <= wanted
    assert np.abs(np.frombuffer(pcm, np.int16)).max() > 4000
    assert not media.tally.counters
    await media.stop()


async def test_loss_is_concealed_and_told(media: Media) -> None:
    await media.receive()
    packets = speech_packets("opus", 20)
    for number, packet in enumerate(packets):
        if number not in (10, 11):
            media.arrive(number, packet)
        media.pass_time(0.02)
    media.pass_time(0.1)
    assert len(media.pcm) == 20
    assert min(np.abs(np.frombuffer(pcm, np.int16)).max() for pcm in media.pcm[3:]) > 1000
    described = media.receiver.describe()
    assert (described["packets"], described["lost"], described["concealed"]) == (18, 2, 2)


async def test_codec_that_changes_in_the_middle_is_heard_at_its_own_clock(media: Media) -> None:
    await media.receive("opus", "pcmu")
    for number, packet in enumerate(speech_packets("opus", 10)):
        media.arrive(number, packet)
        media.pass_time(0.02)
    before = len(media.pcm)
    for number, packet in enumerate(speech_packets("pcmu", 12), 10):
        if number != 15:
            media.arrive(number, packet, payload_type=PCMU_TYPE, samples=160)
        media.pass_time(0.02)
    assert len(media.pcm) - before == 12
    assert {len(pcm) for pcm in media.pcm[before + 2 :]} == {20 * 48 * 4}
    media.pass_time(1)
    assert 60 <= len(media.pcm) - before <= 62


async def test_unknown_payload_type_is_counted(media: Media) -> None:
    await media.receive()
    media.arrive(1, b"x", payload_type=101)
    assert media.tally.counters == {"rtp_payload_type": 1}
    assert media.receiver.statistics is None


async def test_what_is_no_opus_is_counted_and_concealed(media: Media) -> None:
    await media.receive()
    good = speech_packets("opus", 4)
    for number, packet in enumerate([good[0], b"\x03", good[2], b"\xff\xff\xff", good[3]]):
        media.arrive(number, packet)
        media.pass_time(0.02)
    media.pass_time(0.06)
    assert len(media.pcm) == 5
    assert media.tally.counters["audio_malformed"] >= 2


async def test_disabled_receiver_hears_nothing_and_makes_nothing_up_afterwards(media: Media) -> None:
    await media.receive()
    forwarded: list[RtpPacket] = []
    media.receiver.on_rtp = forwarded.append
    packets = speech_packets("opus", 20)
    media.arrive(0, packets[0])
    media.receiver._enabled = False  # as aiortc does for a section that is on hold
    media.arrive(1, packets[1])
    media.pass_time(60)
    assert (len(media.pcm), len(forwarded)) == (1, 1)
    media.receiver._enabled = True
    media.pass_time(1)
    assert len(media.pcm) == 1  # not the minute of silence
    media.arrive(3_000, packets[2])
    assert (len(media.pcm), len(forwarded)) == (2, 2)


async def test_nothing_is_decoded_without_a_listener(media: Media) -> None:
    await media.receive(listen=False)
    make_track(media)
    media.arrive(0, speech_packets("opus", 1)[0])
    assert media.receiver._decoder is None
    assert len(media.ticker) == 0


async def test_client_that_falls_silent_is_heard_as_silence_at_the_pace_of_time(media: Media) -> None:
    await media.receive()
    for number, packet in enumerate(speech_packets("opus", 10)):
        media.arrive(number, packet)
        media.pass_time(0.02)
    media.pass_time(2)
    assert 108 <= len(media.pcm) <= 110
    assert not any(media.pcm[-1])


async def test_other_source_takes_over_when_the_first_is_silent(media: Media) -> None:
    await media.receive()
    packets = speech_packets("opus", 4)
    media.arrive(0, packets[0], ssrc=1)
    media.arrive(500, packets[1], ssrc=2)
    assert media.tally.counters == {"rtp_other_source": 1}
    media.pass_time(0.52)
    heard = len(media.pcm)
    media.arrive(500, packets[2], ssrc=2)
    assert len(media.pcm) == heard + 1
    described = media.receiver.describe()
    assert (described["packets"], described["lost"]) == (2, 0)
    assert [source.source for source in media.receiver.getSynchronizationSources()] == [2]


async def test_source_that_sdp_named_takes_over_at_once(media: Media) -> None:
    await media.receive(ssrcs=(2,))
    packets = speech_packets("opus", 3)
    media.arrive(0, packets[0], ssrc=1)
    media.arrive(0, packets[1], ssrc=2)
    media.arrive(1, packets[2], ssrc=1)
    assert media.receiver.statistics is not None
    assert media.receiver.statistics.ssrc == 2
    assert media.tally.counters == {"rtp_other_source": 1}


async def test_first_packet_is_told_once(media: Media) -> None:
    await media.receive(ssrcs=(2,))
    told: list[int] = []
    media.receiver.on_first_packet = lambda: told.append(1)
    for number, packet in enumerate(speech_packets("opus", 4)):
        media.arrive(number, packet, ssrc=1 + number // 2)
    assert told == [1]


async def test_statistics_have_what_applications_read(media: Media) -> None:
    await media.receive()
    assert len(await media.receiver.getStats()) == 0
    for number, packet in enumerate(speech_packets("opus", 5)):
        if number != 2:
            media.arrive(number, packet)
    media.receiver.note_sender_report(SenderReport(7, 1 << 40, 0, 5, 400), media.clock.now)
    media.receiver.note_sender_report(SenderReport(8, 1 << 40, 0, 99, 9_900), media.clock.now)
    by_type = {stats.type: stats for stats in (await media.receiver.getStats()).values()}
    inbound, outbound = by_type["inbound-rtp"], by_type["remote-outbound-rtp"]
    assert (inbound.ssrc, inbound.kind, inbound.packetsReceived, inbound.packetsLost) == (7, "audio", 4, 1)
    assert inbound.transportId == outbound.transportId == "transport_1"
    assert (outbound.ssrc, outbound.packetsSent, outbound.bytesSent) == (7, 5, 400)


async def test_listener_that_fails_is_told_of_and_hears_on(
    media: Media, caplog: pytest.LogCaptureFixture
) -> None:
    await media.receive()
    heard: list[bytes] = []

    def fail_at_times(pcm: bytes) -> None:
        heard.append(pcm)
        if len(heard) in (2, 15):
            raise RuntimeError("of the application")

    def fail(packet: RtpPacket) -> None:
        raise RuntimeError("of the application")

    media.receiver.on_pcm, media.receiver.on_rtp = fail_at_times, fail
    packets = speech_packets("opus", 12)
    for number, packet in enumerate(packets):
        if number != 5:
            media.arrive(number, packet)
        media.pass_time(0.02)
    media.pass_time(1)
    assert 58 <= len(heard) <= 62
    assert media.tally.counters == {"listener_failed": 13}
    assert len(media.ticker) == 1
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_source_that_a_new_description_names_takes_over_at_once(media: Media) -> None:
    await media.receive(ssrcs=(1,))
    packets = speech_packets("opus", 3)
    media.arrive(0, packets[0], ssrc=1)
    media.arrive(0, packets[1], ssrc=2)
    assert len(media.pcm) == 1
    await media.receive("opus", "pcmu", ssrcs=(2,))
    media.arrive(1, packets[2], ssrc=2)
    assert len(media.pcm) == 2
    media.pass_time(0.52)
    media.arrive(0, bytes(160), payload_type=PCMU_TYPE, ssrc=3)
    assert media.tally.counters == {"rtp_other_source": 1}


async def test_new_description_without_the_codec_that_was_heard(media: Media) -> None:
    await media.receive()
    for number, packet in enumerate(speech_packets("opus", 3)):
        media.arrive(number, packet)
    media.pass_time(1)
    await media.receive("pcmu")
    heard = len(media.pcm)
    media.pass_time(1)
    for number, packet in enumerate(speech_packets("pcmu", 10), 3):
        media.arrive(number, packet, payload_type=PCMU_TYPE, samples=160)
    assert len(media.pcm) == heard + 10


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_hostile_packets_end_nothing(seed: int) -> None:
    async def run() -> None:
        chance = random.Random(seed)
        media = Media(AudioSettings(sample_rate=chance.choice(OPUS_RATES), channels=chance.choice((1, 2))))
        await media.receive("opus", "pcmu", "pcma", "g722")
        sample_bytes = 2 * media.context.settings.channels
        number, timestamp, good = 0, 0, speech_packets("opus", 2)
        for _ in range(60):
            number += chance.choice((1, 1, 1, 0, -1, 3, 60, 40_000, -2_000))
            timestamp += chance.choice((960, 960, 160, 0, -960, 50_000, 2**31))
            payload = chance.choice((*good, chance.randbytes(chance.randrange(20)), chance.randbytes(1_100)))
            kind = chance.choice((OPUS_TYPE, OPUS_TYPE, PCMU_TYPE, PCMA_TYPE, G722_TYPE, 33))
            packet = RtpPacket(kind, False, number & 0xFFFF, timestamp & 0xFFFF_FFFF, 7, payload)
            media.receiver.receive_rtp(packet, media.clock.now)
            media.pass_time(chance.choice((0, 0.02, 0.3)))
        assert all(len(pcm) % sample_bytes == 0 for pcm in media.pcm)
        assert "listener_failed" not in media.tally.counters
        await media.stop()

    asyncio.run(run())


# the track


async def test_track_gives_frames_with_their_times(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    assert (track.id, track.kind) == ("the-id", "audio")
    reading = asyncio.create_task(track.recv())
    await settle()
    for number, packet in enumerate(speech_packets("opus", 3)):
        media.arrive(number, packet)
    frames = [await reading, await read(track), await read(track)]
    assert [frame.pts for frame in frames] == [0, 960, 1920]
    for frame in frames:
        assert isinstance(frame, AudioFrame)
        assert (frame.sample_rate, frame.samples, frame.layout.name, frame.format.name) == (
            48_000,
            960,
            "stereo",
            "s16",
        )
        assert frame.time_base == Fraction(1, 48_000)


async def test_track_that_is_read_no_more_keeps_the_newest_second(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(track.recv(), 0.001)
    packet = speech_packets("opus", 1)[0]
    for number in range(500):
        media.clock.now += 0.02
        media.arrive(number, packet)
    assert media.tally.counters == {"track_overflow": 450}
    assert isinstance(track, VoiceTrack)
    assert len(track._queue) == 50
    assert (await read(track)).pts == 450 * 960  # what was dropped has passed


async def test_reading_that_is_cancelled_loses_no_frame(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    packets = speech_packets("opus", 20)
    got: list[int] = []
    for number, packet in enumerate(packets):
        reading = asyncio.create_task(track.recv())
        await settle()
        media.arrive(number, packet)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if not reading.cancelled():
            got.append(reading.result().pts or 0)
    while len(got) < len(packets):
        got.append((await read(track)).pts or 0)
    assert got == [960 * number for number in range(len(packets))]


async def test_two_readers_share_the_frames(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    readings = [asyncio.create_task(track.recv()) for _ in range(4)]
    await settle()
    for number, packet in enumerate(speech_packets("opus", 4)):
        media.arrive(number, packet)
    frames = await asyncio.wait_for(asyncio.gather(*readings), 1)
    assert sorted(frame.pts or 0 for frame in frames) == [0, 960, 1920, 2880]


async def test_track_that_is_stopped_ends_at_once_and_is_decoded_no_more(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    ended: list[str] = []
    track.on("ended", lambda: ended.append("ended"))
    packets = speech_packets("opus", 120)
    reading = asyncio.create_task(track.recv())
    await settle()
    media.arrive(0, packets[0])
    await reading
    media.arrive(1, packets[1])
    waiting = [asyncio.create_task(track.recv()) for _ in range(3)]
    await settle()
    track.stop()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(result) for result in results] == [AudioFrame, MediaStreamError, MediaStreamError]
    for number, packet in enumerate(packets[2:], 2):
        media.arrive(number, packet)
    media.pass_time(1)
    with pytest.raises(MediaStreamError):
        await track.recv()
    assert ended == ["ended"]
    assert not media.tally.counters
    assert media.receiver.on_pcm is None
    assert len(media.ticker) == 0


async def test_track_ends_with_the_receiver_after_its_last_frame(media: Media) -> None:
    await media.receive(listen=False)
    track = make_track(media)
    readings = [asyncio.create_task(track.recv()) for _ in range(2)]
    await settle()
    media.arrive(0, speech_packets("opus", 1)[0])
    await media.receiver.stop()
    results = await asyncio.wait_for(asyncio.gather(*readings, return_exceptions=True), 1)
    assert {type(result) for result in results} == {AudioFrame, MediaStreamError}
    assert track.readyState == "ended"


async def test_track_of_a_receiver_that_was_never_started_ends_too(media: Media) -> None:
    track = make_track(media)
    ended: list[str] = []
    track.on("ended", lambda: ended.append("ended"))
    await media.receiver.stop()
    assert ended == ["ended"]  # also if nobody reads it
    with pytest.raises(MediaStreamError):
        await read(track)


async def test_track_is_relayed_to_several(media: Media) -> None:
    await media.receive(listen=False)
    relay, track = MediaRelay(), make_track(media)
    proxies = [relay.subscribe(track) for _ in range(2)]
    readings = [asyncio.create_task(proxy.recv()) for proxy in proxies]
    await settle()
    media.arrive(0, speech_packets("opus", 1)[0])
    assert [frame.pts for frame in await asyncio.wait_for(asyncio.gather(*readings), 1)] == [0, 0]
    await media.receiver.stop()
    for proxy in proxies:
        with pytest.raises(MediaStreamError):
            await read(proxy)
