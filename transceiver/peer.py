"""aiortc's RTCPeerConnection on the mux: ICE-lite, no gathering, one socket for all, audio by our media path.

The names of aiortc that are private are listed in tests/transceiver/test_aiortc_names.py, which fails if a release changes
them.
"""

import asyncio
import logging
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import aiortc.rtp
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCCertificate,
    RTCConfiguration,
    RTCIceTransport,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.rtcconfiguration import RTCBundlePolicy
from aiortc.rtcrtptransceiver import RTCRtpTransceiver
from aiortc.sdp import SessionDescription
from av import AudioFrame

from transceiver.connection import MuxGatherer, MuxIceTransport
from transceiver.dtls import MuxDtlsTransport
from transceiver.hub import Hub
from transceiver.ice import CONSENT_S, IceLiteAgent
from transceiver.media.context import MediaContext
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.reports import Reports
from transceiver.media.sender import VoiceSender
from transceiver.media.settings import MediaPath
from transceiver.offer import Described, check_description_untrusted, with_rejected, with_rejected_completed
from transceiver.payload_types import Codecs, keep_payload_types, numbers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiortc.rtcdtlstransport import RTCDtlsTransport
    from aiortc.rtcicetransport import RTCIceGatherer

logger = logging.getLogger(__name__)


def _audio_level_dbov(frame: AudioFrame) -> int:
    """Root mean square of a frame in dBov, -127 to 0 (RFC 6464 section 3)."""
    samples = frame.to_ndarray().astype(np.float64)
    rms = float(np.sqrt(np.mean(np.square(samples)))) / 32768 if samples.size else 0.0
    return max(-127, min(0, round(20 * np.log10(rms)))) if rms > 0 else -127


# Of aiortc's own sender: its own is pure Python and costs as much as the Opus encoder. Our sender writes no level.
aiortc.rtp.compute_audio_level_dbov = _audio_level_dbov


class Voice(NamedTuple):
    """The two ends of an audio section, for backends that want no tracks."""

    receiver: VoiceReceiver
    sender: VoiceSender


class RelayedPeerConnection(RTCPeerConnection):
    """An RTCPeerConnection whose only candidate is the VIP, on the one socket of its hub.

    Everything is bundled on one transport, and ICE servers of the configuration are not asked: a lite agent needs none.
    Audio goes the way that the hub's settings say; video goes aiortc's. It ends by itself, its state "closed", when the
    client has not been heard for 30 s (RFC 7675).
    """

    if TYPE_CHECKING:  # private names of the base class
        _RTCPeerConnection__certificates: list[RTCCertificate]
        _RTCPeerConnection__cname: str
        _RTCPeerConnection__iceTransports: set[RTCIceTransport]
        _RTCPeerConnection__dtlsTransports: set[RTCDtlsTransport]
        _RTCPeerConnection__updateIceGatheringState: Callable[[], None]
        _RTCPeerConnection__updateIceConnectionState: Callable[[], None]
        _RTCPeerConnection__updateConnectionState: Callable[[], None]

    def __init__(self, configuration: RTCConfiguration | None = None, *, hub: Hub | None = None) -> None:
        """``configuration`` is taken for the sake of applications. Raises HubError without ``hub`` if none is open."""
        super().__init__(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self.counters: Counter[str] = Counter()
        self.phases: dict[str, float] = {}
        self.on_over: Callable[[str], object] = self._close_by_itself
        self._hub = Hub.current() if hub is None else hub
        self._made_at = self._expected_at = self._hub.clock()
        self.connection = self._hub.connect(self)
        self.connection.on_latched = lambda: self.note_phase("latched")
        self._media = MediaContext(
            self._hub.settings.audio, self._hub.effort, self._hub.clock, self._hub.ticker, observer=self
        )
        self._RTCPeerConnection__certificates = [self._hub.certificate]
        self._closing: asyncio.Task[None] | None = None
        self._negotiated: dict[RTCRtpTransceiver, Codecs] = {}
        self._rejected: frozenset[str] = frozenset()

    # what is known of it

    @property
    def agent(self) -> IceLiteAgent:
        """Its side of ICE."""
        return self.connection.agent

    @property
    def voice(self) -> Voice | None:
        """The first audio section, if it goes our way."""
        for transceiver in self.getTransceivers():
            if isinstance(transceiver.sender, VoiceSender) and isinstance(
                transceiver.receiver, VoiceReceiver
            ):
                return Voice(transceiver.receiver, transceiver.sender)
        return None

    def count(self, outcome: str) -> None:
        """See PeerObserver."""
        self.counters[outcome] += 1

    def note_phase(self, phase: str) -> None:
        """A step of the setup is done: seconds since the connection was made, of the first time."""
        self.phases.setdefault(phase, round(self._hub.clock() - self._made_at, 4))

    def describe(self) -> dict[str, Any]:
        """What ``relayctl sessions`` shows. Times in s or ms, as the names say; ``loss`` of the last report's interval."""
        selected, voice = self.agent.selected, self.voice
        round_trip_s = voice.sender.round_trip_s if voice else None
        described: dict[str, Any] = {
            "state": self.connectionState,
            "age_s": round(self._hub.clock() - self._made_at, 1),
            "server_ufrag": self.agent.credential.server_ufrag,
            "client": str(selected.client) if selected else None,
            "vip": str(selected.vip) if selected else None,
            "paths": len(self.agent.paths),
            "moves": self.agent.moves,
            "longest_gap_ms": round(self.agent.longest_gap_s * 1000, 1),
            "phases_s": dict(self.phases),
            "round_trip_ms": None if round_trip_s is None else round(round_trip_s * 1000, 2),
            "up": None,
            "down": None,
            "counters": dict(self.counters),
        }
        if voice:
            described |= {"up": voice.receiver.describe(), "down": voice.sender.describe()}
            described["up"]["duplicates"] = self.counters["srtp_replayed"]
        return described

    def why_over(self, now: float) -> str | None:
        """The reason for which the hub should end it, or None."""
        if self.agent.is_expired(now):
            return "consent expired"
        if not self.agent.handshake_done and now - self._expected_at >= CONSENT_S:
            return "never connected"
        # The client sent more SCTP data than it was allowed to; aiortc would go on to store it.
        if self.sctp is not None and self.sctp._advertised_rwnd < 0:
            return "data channel flooded"
        return None

    # what applications of aiortc call

    async def createOffer(self) -> RTCSessionDescription:  # noqa: N802
        """See the base class."""
        offer = await super().createOffer()
        description = SessionDescription.parse(offer.sdp)
        for transceiver in self.getTransceivers():
            # aiortc's own, shared by all connections, and with numbers that may not be those of the call
            transceiver._codecs = self._codecs_to_offer(transceiver)
            _ask_for_redundancy(transceiver)
            index = transceiver._get_mline_index()
            if index is not None and index >= 0:
                media = description.media[index]
                media.rtp.codecs = transceiver._codecs
                media.fmt = [codec.payloadType for codec in transceiver._codecs]
        offer.sdp = with_rejected(str(description), self._rejected)
        return offer

    async def createAnswer(self) -> RTCSessionDescription:  # noqa: N802
        """See the base class."""
        answer = await super().createAnswer()
        answer.sdp = with_rejected(answer.sdp, self._rejected)
        return answer

    @property
    def localDescription(self) -> RTCSessionDescription:  # noqa: N802
        """See the base class."""
        description = super().localDescription
        if description is not None:
            description.sdp = with_rejected(description.sdp, self._rejected)
        return description

    async def setRemoteDescription(self, sessionDescription: RTCSessionDescription) -> None:  # noqa: N802, N803
        """See the base class. Raises OfferError, a ValueError, if its sections cannot share one transport; HubError as below."""
        await self.apply(sessionDescription, check_description_untrusted(sessionDescription.sdp))

    async def apply(self, description: RTCSessionDescription, described: Described) -> None:
        """As ``setRemoteDescription``, for a description that was checked. Another ICE ufrag restarts ICE."""
        known = self.agent.credential.client_ufrag
        if not known and self.signalingState != "closed":
            self._expected_at = self._hub.clock()
            self._hub.expect(self, described.client_ufrag)
        # aiortc would stop the one transport when the offer's first section is not our first.
        for section in (*self.getTransceivers(), self.sctp):
            if section is not None:
                section._bundled = True
        if described.rejected:
            completed = with_rejected_completed(description.sdp, described.rejected)
            description = RTCSessionDescription(completed, description.type)
        before = {transceiver: transceiver._codecs for transceiver in self.getTransceivers()}
        await super().setRemoteDescription(description)
        self._rejected = described.rejected
        for transceiver in self.getTransceivers():
            if transceiver.mid in described.rejected:
                self._negotiated.pop(transceiver, None)
                transceiver._setCurrentDirection("inactive")
                await transceiver.stop()
            elif transceiver._codecs is not before.get(transceiver):  # the others are not in this description
                _ask_for_redundancy(transceiver)
                self._negotiated[transceiver] = transceiver._codecs
        self._leave_recycled_places()
        if known and known != described.client_ufrag:
            self._hub.restart_ice(self, described.client_ufrag)

    def _leave_recycled_places(self) -> None:
        """aiortc finds a section by its place, and first what was there before (RFC 8829 section 5.2.2)."""
        places = Counter(transceiver._get_mline_index() for transceiver in self.getTransceivers())
        for transceiver in self.getTransceivers():
            index = transceiver._get_mline_index()
            if transceiver.stopped and index is not None and places[index] > 1:
                transceiver._set_mline_index(-1)

    async def setLocalDescription(self, sessionDescription: RTCSessionDescription | None = None) -> None:  # noqa: N802, N803
        """See the base class. Raises HubError if the hub has closed."""
        if self.signalingState != "closed" and self._hub.watch(self):
            self._expected_at = self._hub.clock()
        await super().setLocalDescription(sessionDescription)
        self.note_phase("answered")

    async def close(self) -> None:
        """See the base class."""
        self._hub.disconnect(self)
        await super().close()

    def _codecs_to_offer(self, transceiver: RTCRtpTransceiver) -> Codecs:
        """With the payload types of its section, or else of another of its kind."""
        known = self._negotiated.items()
        same_kind = [codecs for other, codecs in known if other.kind == transceiver.kind]
        negotiated = [*self._negotiated.get(transceiver, ()), *chain.from_iterable(same_kind)]
        taken = numbers_of(chain.from_iterable(self._negotiated.values()))
        offered = numbers_of(codec for other in self.getTransceivers() for codec in other._codecs)
        return keep_payload_types(transceiver._codecs, negotiated, taken, offered)

    def _close_by_itself(self, reason: str) -> None:
        logger.info("a connection ended: %s", reason)
        self._closing = asyncio.get_running_loop().create_task(self.close())

    # what aiortc makes

    def _RTCPeerConnection__createDtlsTransport(self) -> MuxDtlsTransport:  # noqa: N802  # overrides aiortc's private name
        gatherer = MuxGatherer(self.connection, self._hub.settings.vips)
        gatherer.on("statechange", self._RTCPeerConnection__updateIceGatheringState)
        ice = MuxIceTransport(cast("RTCIceGatherer", gatherer))
        ice.on("statechange", self._RTCPeerConnection__updateIceConnectionState)
        ice.on("statechange", self._RTCPeerConnection__updateConnectionState)
        self._RTCPeerConnection__iceTransports.add(ice)
        dtls = MuxDtlsTransport(ice, self._hub.certificate, self.connection, self)
        dtls.on("statechange", lambda: self._note_handshake(dtls))
        dtls.on("statechange", self._RTCPeerConnection__updateConnectionState)
        self._RTCPeerConnection__dtlsTransports.add(dtls)
        self._RTCPeerConnection__updateIceGatheringState()
        self._RTCPeerConnection__updateIceConnectionState()
        self._RTCPeerConnection__updateConnectionState()
        return dtls

    def _RTCPeerConnection__createTransceiver(  # noqa: N802  # overrides aiortc's private name
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        make = super()._RTCPeerConnection__createTransceiver  # type: ignore[misc]  # private
        transceiver: RTCRtpTransceiver = make(direction=direction, kind=kind, sender_track=sender_track)
        if kind == "audio" and self._media.settings.path is MediaPath.DIRECT:
            self._take_over(transceiver, sender_track)
        return transceiver

    def _take_over(self, transceiver: RTCRtpTransceiver, track: MediaStreamTrack | None) -> None:
        """Put our receiver and sender in the places of aiortc's."""
        dtls = cast("MuxDtlsTransport", transceiver.receiver.transport)
        receiver = VoiceReceiver(dtls, self._media)
        sender = VoiceSender(track or "audio", dtls, self._media)
        sender._stream_id = transceiver.sender._stream_id
        receiver.on_first_packet = lambda: self.note_phase("first_audio")
        dtls.add_reports(
            receiver, sender, Reports(sender, receiver, self._media, self._RTCPeerConnection__cname)
        )
        transceiver._RTCRtpTransceiver__receiver = receiver  # type: ignore[attr-defined]  # private
        transceiver._RTCRtpTransceiver__sender = sender  # type: ignore[attr-defined]  # private

    def _note_handshake(self, dtls: MuxDtlsTransport) -> None:
        if dtls.state == "connected":
            self.agent.complete_handshake()
            self.note_phase("connected")


def _ask_for_redundancy(transceiver: RTCRtpTransceiver) -> None:
    """Tell the client that we use Opus' forward error correction (RFC 7587 section 6.1)."""
    if isinstance(transceiver.receiver, VoiceReceiver):
        for codec in transceiver._codecs:  # copies, but what they hold may be shared
            if codec.name.lower() == "opus":
                codec.parameters = {**codec.parameters, "minptime": 10, "useinbandfec": 1}
