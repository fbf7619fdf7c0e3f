"""The client's audio as aiortc's applications know it: a track that gives frames."""

import asyncio
from collections import deque
from collections.abc import Callable

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from transceiver.media.codecs import frame_of
from transceiver.media.context import PeerObserver
from transceiver.media.settings import AudioSettings

# 1 s of packets; aiortc's own queue grows without bound when nobody reads.
_MAX_QUEUED = 50


class VoiceTrack(MediaStreamTrack):
    """Frames of PCM16 at the settings' rate and channels. Nothing is decoded before somebody calls ``recv``."""

    kind = "audio"

    def __init__(
        self,
        settings: AudioSettings,
        observer: PeerObserver,
        listen: Callable[[Callable[[bytes], None] | None], None],
        track_id: str | None = None,
    ) -> None:
        """``listen`` is told who takes PCM16, and None in the end."""
        super().__init__()
        if track_id is not None:
            self._id = track_id
        self._sample_rate = settings.sample_rate
        self._sample_bytes = 2 * settings.channels
        self._layout = "mono" if settings.channels == 1 else "stereo"
        self._observer = observer
        self._listen = listen
        self._is_listening = False
        self._queue: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._is_over = False
        self._pts = 0

    async def recv(self) -> AudioFrame:
        """The next frame. Raises MediaStreamError at the end."""
        if not self._is_listening and self.readyState == "live":
            self._is_listening = True
            self._listen(self._put)
        while not self._queue:
            if self._is_over:
                self.stop()
            if self.readyState != "live":
                raise MediaStreamError
            self._arrived.clear()
            await self._arrived.wait()
        frame = frame_of(self._queue.popleft(), self._sample_rate, self._layout, self._pts)
        self._pts += frame.samples
        return frame

    def end(self) -> None:
        """No more will come; what is queued can still be read."""
        self._is_over = True
        if not self._queue:
            self.stop()

    def stop(self) -> None:
        """See the base class. Who waits for a frame waits no more, and nothing is decoded for this track any more."""
        super().stop()
        self._queue.clear()
        self._arrived.set()
        if self._is_listening:
            self._is_listening = False
            self._listen(None)

    def _put(self, pcm: bytes) -> None:
        if len(self._queue) >= _MAX_QUEUED:
            self._pts += len(self._queue.popleft()) // self._sample_bytes
            self._observer.count("track_overflow")
        self._queue.append(pcm)
        self._arrived.set()
