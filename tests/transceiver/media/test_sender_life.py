"""The sender from one description to the next, and its end."""

import pytest

from tests.transceiver.media.fakes import OPUS_TYPE, PCMU_TYPE, Media
from tests.transceiver.media.test_sender import Tape, frame
from tests.transceiver.waiting import until

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_sender_that_was_stopped_is_not_started_again() -> None:
    media = Media()
    await media.sender.stop()
    await media.send()
    media.sender.send_pcm(bytes(1920))
    media.sender.replaceTrack(Tape([frame()], endless=True))
    assert not media.transport.registered
    assert media.transport.rtp == []
    await media.stop()


async def test_track_that_cannot_be_stopped_does_not_keep_the_sender(
    caplog: pytest.LogCaptureFixture,
) -> None:

    class Stuck(Tape):
        def stop(self) -> None:
            raise KeyError("of the application")

    media = Media()
    track = Stuck([frame()], endless=True)
    media.sender.replaceTrack(track)
    await media.send()
    await until(lambda: track.is_awaited)
    await media.stop()
    assert "could not be stopped" in caplog.text
    media = Media()
    media.sender.replaceTrack(track := Stuck([frame()]))
    await media.send()
    await until(lambda: media.sender.track is not track)
    await media.stop()


async def test_codec_of_another_description_is_taken_over() -> None:
    media = Media()
    await media.send()
    media.sender.send_pcm(bytes(1920), 48_000, 1)
    encoder = media.sender._encoder
    await media.send()
    assert media.sender._encoder is encoder
    await media.send("pcmu")
    media.sender.send_pcm(bytes(1920 * 5), 48_000, 1)
    [first, *others] = media.transport.rtp
    assert first.payload_type == OPUS_TYPE
    assert {(packet.payload_type, len(packet.payload)) for packet in others} == {(PCMU_TYPE, 160)}
    assert media.transport.registered[media.sender] == 1
    await media.stop()
