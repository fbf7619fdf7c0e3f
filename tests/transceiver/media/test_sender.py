"""The sender: what a track may give, numbers and times of what is sent, and what is passed on as it came."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pylibsrtp
import pytest
import pytest_asyncio
from aiortc import AudioStreamTrack, MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from av.packet import Packet
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pylibsrtp import Policy, Session

from tests.transceiver.media.fakes import OPUS_TYPE, FakeTransport, Media, codec, speech_packets
from tests.transceiver.waiting import until
from transceiver.media.codecs import make_decoder
from transceiver.media.opus import OpusEncoder, samples_of_untrusted
from transceiver.media.settings import AudioSettings
from wire.rtcp import ReportBlock
from wire.rtp import RtpPacket, write_rtp_header

pytestmark = pytest.mark.usefixtures("no_task_left")

_FORWARDED = 0x1234


@pytest_asyncio.fixture
async def media() -> AsyncIterator[Media]:
    media = Media()
    yield media
    await media.stop()


def frame(
    sample_rate: int = 48_000, layout: str = "mono", sample_format: str = "s16", ms: int = 20
) -> AudioFrame:
    """A loud square wave."""
    samples = sample_rate * ms // 1000
    made = AudioFrame(format=sample_format, layout=layout, samples=samples)
    width = made.format.bytes
    loud = np.where(np.arange(made.planes[0].buffer_size // width) // 40 % 2, 8192, -8192)
    kind = {"s16": np.int16, "s32": np.int32, "flt": np.float32}[sample_format.rstrip("p")]
    scale = {"s16": 1, "s32": 65_536, "flt": 1 / 32_768}[sample_format.rstrip("p")]
    for plane in made.planes:
        plane.update((loud * scale).astype(kind).tobytes()[: plane.buffer_size])
    made.sample_rate = sample_rate
    made.pts = 0
    made.time_base = Fraction(1, sample_rate)
    return made


class Tape(MediaStreamTrack):
    """Gives what it was made of, then ends; or, ``endless``, waits for what never comes."""

    kind = "audio"

    def __init__(self, given: Iterable[Any], *, endless: bool = False) -> None:
        super().__init__()
        self._given: Iterator[Any] = iter(given)
        self._endless = endless
        self.is_awaited = False

    async def recv(self) -> Any:
        for thing in self._given:
            if isinstance(thing, BaseException):
                raise thing
            return thing
        if self._endless:
            self.is_awaited = True
            await asyncio.Event().wait()
        raise MediaStreamError


def decoded(media: Media, name: str = "opus") -> np.ndarray[Any, Any]:
    """What the client hears, at 48 kHz mono."""
    decoder = make_decoder(codec(name), AudioSettings(channels=1))
    pcm = [decoder.decode(p.payload, decoder.samples_of_untrusted(p.payload)) for p in media.transport.rtp]
    return np.frombuffer(b"".join(pcm), np.int16)


async def play(media: Media, track: MediaStreamTrack) -> None:
    """Until the track has ended."""
    media.sender.replaceTrack(track)
    await until(lambda: media.sender.track is not track)


# what a track may give


@pytest.mark.parametrize("name", ["opus", "pcmu", "pcma", "g722"])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 24_000, 44_100, 48_000])
async def test_each_rate_and_layout_is_sent_in_20_ms(
    media: Media, sample_rate: int, layout: str, name: str
) -> None:
    await media.send(name)
    await play(media, Tape(frame(sample_rate, layout) for _ in range(25)))
    assert 23 <= len(media.transport.rtp) <= 25
    samples = 960 if name == "opus" else 160
    assert all(len(packet.payload) > 0 for packet in media.transport.rtp)
    if name != "opus":
        assert {len(packet.payload) for packet in media.transport.rtp} == {samples}
    steps = {
        (b.timestamp - a.timestamp) & 0xFFFF_FFFF
        for a, b in zip(media.transport.rtp, media.transport.rtp[1:], strict=False)
    }
    assert steps == {samples}
    assert np.abs(decoded(media, name)).max() > 3000


@pytest.mark.parametrize("sample_format", ["s16", "s16p", "s32", "flt", "fltp"])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
async def test_each_sample_format_is_sent(media: Media, sample_format: str, layout: str) -> None:
    await media.send()
    await play(media, Tape(frame(48_000, layout, sample_format) for _ in range(10)))
    assert 9 <= len(media.transport.rtp) <= 10
    assert np.abs(decoded(media)).max() > 3000


@pytest.mark.parametrize("ms", [5, 10, 20, 30, 60, 100])
async def test_frames_of_any_length_are_cut_to_20_ms(media: Media, ms: int) -> None:
    await media.send()
    await play(media, Tape(frame(ms=ms) for _ in range(600 // ms)))
    assert [samples_of_untrusted(packet.payload) for packet in media.transport.rtp] == [960] * 30


async def test_frames_that_change_their_format_in_the_middle_are_all_sent(media: Media) -> None:
    kinds = [
        (44_100, "mono", "s16"),
        (48_000, "stereo", "fltp"),
        (22_050, "stereo", "s16"),
        (44_100, "stereo", "s16p"),
    ]
    await media.send()
    await play(media, Tape(frame(*kind) for kind in kinds for _ in range(10)))
    assert 36 <= len(media.transport.rtp) <= 40
    assert np.abs(decoded(media)[-1920:]).max() > 3000


@pytest.mark.parametrize("sample_rate", [16_000, 44_100, 48_000])
async def test_track_is_replaced_by_one_of_another_rate(media: Media, sample_rate: int) -> None:
    media.sender.replaceTrack(Tape([frame(44_100)] * 10))
    await media.send()
    await until(lambda: media.sender.track is None)
    sent = len(media.transport.rtp)
    assert sent >= 9
    await play(media, Tape(frame(sample_rate, "stereo") for _ in range(10)))
    assert len(media.transport.rtp) - sent >= 9


async def test_packets_are_sent_as_they_are_and_last_as_long_as_they_do(media: Media) -> None:
    await media.send()
    packets = [*speech_packets("opus", 2), b"\x18" + bytes(20), speech_packets("opus", 1)[0]]  # one of 60 ms
    assert [samples_of_untrusted(packet) for packet in packets] == [960, 960, 2880, 960]
    await play(media, Tape(Packet(packet) for packet in packets))
    assert [packet.payload for packet in media.transport.rtp] == packets
    first = media.transport.rtp[0].timestamp
    assert [(p.timestamp - first) & 0xFFFF_FFFF for p in media.transport.rtp] == [0, 960, 1920, 4800]


async def test_track_replaces_one_that_gives_nothing(media: Media) -> None:
    await media.send()
    stuck = Tape([], endless=True)
    media.sender.replaceTrack(stuck)
    await until(lambda: stuck.is_awaited)
    await play(media, Tape([frame()] * 3))
    assert len(media.transport.rtp) == 3
    assert stuck.readyState == "live"


@pytest.mark.parametrize(
    "thing",
    [
        None,
        ValueError("its own"),
        RuntimeError("its own"),
        KeyError("its own"),
        OSError("its own"),
        b"bytes",
        AudioFrame(format="s16", layout="mono", samples=960),  # of no rate
    ],
    ids=lambda thing: type(thing).__name__,
)
async def test_track_that_fails_is_dropped_and_the_next_is_played(
    media: Media, thing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await media.send()
    failing = Tape([frame(), thing, frame()])
    await play(media, failing)
    assert len(media.transport.rtp) == 1
    assert failing.readyState == "ended"
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == (0 if thing is None else 1)
    await play(media, Tape([frame()]))
    assert len(media.transport.rtp) == 2


async def test_track_that_is_always_ready_leaves_time_to_others(media: Media) -> None:
    await media.send()

    def forever() -> Iterator[AudioFrame]:
        while True:
            yield frame()

    media.sender.replaceTrack(Tape(forever()))
    turns = 0
    for _ in range(10):
        await asyncio.sleep(0)
        turns += 1
    assert turns == 10
    assert 0 < len(media.transport.rtp) < 100
    media.sender.replaceTrack(None)


async def test_disabled_sender_drains_its_track_and_sends_nothing(media: Media) -> None:
    await media.send()
    media.sender._enabled = False
    await play(media, Tape([frame()] * 20))
    media.sender.send_pcm(bytes(9_600))
    media.sender.send_encoded(b"x")
    media.sender.forward(RtpPacket(OPUS_TYPE, False, 1, 1, 1, b"x"))
    assert media.transport.rtp == []


async def test_track_is_stopped_with_the_sender_that_played_it() -> None:
    media = Media()
    await media.send()
    track = AudioStreamTrack()
    media.sender.replaceTrack(track)
    await media.stop()
    assert track.readyState == "ended"


async def test_track_of_a_sender_that_was_never_started_stays() -> None:
    media = Media()
    track = AudioStreamTrack()
    media.sender.replaceTrack(track)
    await media.stop()
    assert track.readyState == "live"


# numbers and times


async def test_pcm_waits_until_20_ms_are_full(media: Media) -> None:
    await media.send()
    for _ in range(10):
        media.sender.send_pcm(bytes(2 * 2 * 432))  # 9 ms
    assert len(media.transport.rtp) == 4
    media.sender.send_pcm(bytes(2 * 480), 24_000, 1)  # another format begins anew
    assert len(media.transport.rtp) == 5


async def test_rest_of_an_earlier_speech_does_not_begin_the_next(media: Media) -> None:
    await media.send()
    media.sender.send_pcm(bytes(2 * 2 * 1_440))  # 30 ms
    media.clock.now += 1
    media.sender.send_pcm(bytes(2 * 2 * 960))
    media.sender.send_pcm(bytes(2 * 2 * 480))
    assert len(media.transport.rtp) == 2
    media.sender.send_pcm(bytes(2 * 2 * 480))
    assert len(media.transport.rtp) == 3


async def test_talk_spurt_is_marked_and_its_timestamp_tells_of_the_silence(media: Media) -> None:
    await media.send()
    for _ in range(3):
        media.sender.send_encoded(b"opus")
        media.clock.now += 0.02
    media.clock.now += 0.94  # the fourth comes a second after the third
    media.sender.send_encoded(b"opus")
    first, second, third, fourth = media.transport.rtp
    assert [p.marker for p in media.transport.rtp] == [True, False, False, True]
    assert [(p.sequence_number - first.sequence_number) & 0xFFFF for p in (second, third, fourth)] == [
        1,
        2,
        3,
    ]
    assert (fourth.timestamp - third.timestamp) & 0xFFFF_FFFF == pytest.approx(46_080, abs=960)
    assert (fourth.timestamp - third.timestamp) % 960 == 0
    assert media.sender.timestamp_at(media.clock.now + 1) == (fourth.timestamp + 48_000) & 0xFFFF_FFFF


async def test_speech_that_is_sent_faster_than_it_lasts_has_no_gap_behind_it(media: Media) -> None:
    """As text to speech gives it: two seconds at once, and the next two when those have been heard."""
    await media.send()
    for _ in range(2):
        media.sender.send_pcm(bytes(2 * 48_000 * 4))
        media.clock.now += 2
    media.clock.now += 1
    media.sender.send_pcm(bytes(960 * 4))
    first, *_, last = media.transport.rtp
    assert len(media.transport.rtp) == 201
    times = [((p.timestamp - first.timestamp) & 0xFFFF_FFFF) // 960 for p in media.transport.rtp]
    assert times[:200] == list(range(200))
    assert times[200] == 250
    assert [p.marker for p in media.transport.rtp] == [True, *[False] * 199, True]
    assert last.marker


async def test_numbers_and_timestamps_wrap(media: Media) -> None:
    await media.send()
    media.sender._next, media.sender._timestamp = 65_535, 2**32 - 960
    for _ in range(2):
        media.sender.send_encoded(b"opus")
    assert [(p.sequence_number, p.timestamp) for p in media.transport.rtp] == [(65_535, 2**32 - 960), (0, 0)]


async def test_what_cannot_be_sent_is_not_counted(media: Media) -> None:
    await media.send()
    media.transport.connected = False
    media.sender.send_encoded(b"opus")
    assert (media.sender.packets, media.sender.octets) == (0, 0)


async def test_client_that_loses_packets_gets_redundancy(
    media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    await media.send()
    media.sender.send_pcm(bytes(3_840))
    expected: list[int] = []
    assert media.sender._encoder is not None
    monkeypatch.setattr(media.sender._encoder, "expect_loss", expected.append)
    for fraction in (0, 1, 1, 26, 255, 0):
        media.sender.note_report(ReportBlock(media.sender._ssrc, fraction, 0, 0, 0, 0, 0))
    assert expected == [1, 11, 100, 0]


async def test_redundancy_goes_on_with_another_format(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[int] = []
    monkeypatch.setattr(OpusEncoder, "expect_loss", lambda encoder, percent: expected.append(percent))
    await media.send()
    media.sender.note_report(ReportBlock(media.sender._ssrc, 26, 0, 0, 0, 0, 0))
    for sample_rate in (48_000, 24_000):
        media.sender.send_pcm(bytes(3_840), sample_rate, 1)
    assert expected == [11, 11]


async def test_statistics_have_what_applications_read(media: Media) -> None:
    await media.send()
    media.sender.send_encoded(bytes(100))
    media.sender.send_encoded(bytes(60))
    [outbound] = (await media.sender.getStats()).values()
    assert (outbound.type, outbound.ssrc, outbound.kind) == ("outbound-rtp", media.sender._ssrc, "audio")
    assert (outbound.packetsSent, outbound.bytesSent) == (2, 160)
    media.sender.note_report(ReportBlock(media.sender._ssrc, 64, 1, 0, 480, 0, 0))
    media.sender.round_trip_s = 0.05
    by_type = {stats.type: stats for stats in (await media.sender.getStats()).values()}
    remote = by_type["remote-inbound-rtp"]
    assert (remote.packetsReceived, remote.packetsLost, remote.jitter) == (1, 1, 480)
    assert (remote.fractionLost, remote.roundTripTime) == (64, 0.05)


# what is passed on


def source(number: int, ssrc: int = _FORWARDED, *, base: int = 0) -> RtpPacket:
    """A packet of a client, whose numbers and timestamps begin at ``base``."""
    return RtpPacket(
        OPUS_TYPE, False, (base + number) & 0xFFFF, (base + number * 960) & 0xFFFF_FFFF, ssrc, b"%d" % number
    )


def relative(media: Media, since: int = 0) -> list[tuple[int, int, int]]:
    """(number, timestamp in packets, payload) of what was sent, from the first of them."""
    sent = media.transport.rtp[since:]
    return [
        (
            (p.sequence_number - sent[0].sequence_number) & 0xFFFF,
            ((p.timestamp - sent[0].timestamp) & 0xFFFF_FFFF) // 960,
            int(p.payload),
        )
        for p in sent
    ]


@pytest.mark.parametrize("base", [0, 65_530, 40_000])
async def test_gaps_and_reordering_are_passed_on(media: Media, base: int) -> None:
    await media.send()
    order = [0, 1, 2, 5, 4, 6, 9, 10, 8, 3]
    for number in order:
        media.sender.forward(source(number, base=base))
        media.clock.now += 0.02
    assert relative(media) == [(number, number, number) for number in order]


async def test_another_source_goes_on_where_the_first_was(media: Media) -> None:
    await media.send()
    for number in range(3):
        media.sender.forward(source(number))
    for number in range(3):
        media.sender.forward(source(number, 99, base=30_000))
    assert relative(media) == [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 0), (4, 4, 1), (5, 5, 2)]
    assert {packet.ssrc for packet in media.transport.rtp} == {media.sender._ssrc}


async def test_source_that_begins_after_a_silence_does_not_come_out_late(media: Media) -> None:
    await media.send()
    media.sender.forward(source(0))
    media.clock.now += 1
    media.sender.forward(source(0, 99))
    assert relative(media) == [(0, 0, 0), (1, 50, 0)]


def srtp(ssrc_type: int, *, repeats: bool = False) -> Session:
    """libsrtp as aiortc sets it, but for repeats."""
    policy = Policy(key=bytes(30), ssrc_type=ssrc_type)
    policy.window_size, policy.allow_repeat_tx = 1024, repeats
    return Session(policy)


class Client:
    """Sends what libsrtp lets through, however it numbers its packets."""

    def __init__(self) -> None:
        self._ours = srtp(Policy.SSRC_ANY_OUTBOUND, repeats=True)
        self._theirs = srtp(Policy.SSRC_ANY_INBOUND)

    def is_heard(self, packet: RtpPacket) -> bool:
        plain = write_rtp_header(OPUS_TYPE, packet.sequence_number, packet.timestamp, packet.ssrc) + b"x"
        try:
            self._theirs.unprotect(self._ours.protect(plain))
        except pylibsrtp.Error:
            return False
        return True


class Encrypting(FakeTransport):
    """Has libsrtp refuse what aiortc lets it send: a number that went out before, or one it takes for another round's."""

    def __init__(self) -> None:
        super().__init__()
        self._srtp = srtp(Policy.SSRC_ANY_OUTBOUND)

    def send_rtp(self, packet: bytes) -> bool:
        if len(packet) > 1_000:  # as what is too long for a datagram
            return False
        self._srtp.protect(packet)
        return super().send_rtp(packet)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["forward", "late", "other", "own", "oversized", "held"]),
        st.integers(0, 6) | st.integers(0, 0xFFFF) | st.sampled_from([0x6FFF, 0x7FFF, 0x8000, 0x8001]),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(_steps)
@example([("forward", 0), ("forward", 0x7FFF), ("forward", 0x7FFE), ("forward", 1)])
@example([("forward", 0), ("late", 102), ("late", 0)])
@example([("forward", 0), ("oversized", 0x6FFF), ("forward", 0x7000), ("forward", 0x2000)])
def test_no_number_is_ever_used_twice(steps: list[tuple[str, int]]) -> None:
    """SRTP encrypts by them, and aiortc lets libsrtp repeat: twice the same is twice the same keystream."""

    async def run() -> None:
        media = Media(transport=Encrypting())
        await media.send()
        client, newest, ssrc = Client(), 100, 1
        for step, by in steps:
            if step == "own":
                media.sender.send_encoded(b"0")
                continue
            if step == "other":
                ssrc, newest = ssrc + 1, 100
            number = newest - by if step == "late" else newest + 1 + by
            newest = max(newest, number)
            packet = source(number, ssrc)
            if client.is_heard(packet):
                media.sender._enabled = step != "held"
                media.sender.forward(packet._replace(payload=bytes(1_400)) if step == "oversized" else packet)
                media.sender._enabled = True
        await media.stop()

    asyncio.run(run())


async def test_source_that_was_held_for_long_is_heard_at_once(media: Media) -> None:
    await media.send()
    media.sender.forward(source(0))
    media.sender._enabled = False
    for number in range(1, 40_000):
        media.sender.forward(source(number))
    media.sender._enabled = True
    media.sender.forward(source(40_000))
    assert [packet.sequence_number for packet in media.transport.rtp][1] - media.transport.rtp[
        0
    ].sequence_number == 1


async def test_encoder_tries_less_hard_from_the_next_report_on(media: Media) -> None:
    await media.send()
    media.sender.send_pcm(bytes(1920), 48_000, 1)
    encoder = media.sender._encoder
    assert isinstance(encoder, OpusEncoder)
    media.effort.complexity = 0
    assert encoder.complexity == 5
    media.sender.measure(media.clock())
    assert encoder.complexity == 0
    media.sender.send_pcm(bytes(640), 16_000, 1)  # another format, another encoder
    assert isinstance(media.sender._encoder, OpusEncoder)
    assert media.sender._encoder is not encoder
    assert media.sender._encoder.complexity == 0
