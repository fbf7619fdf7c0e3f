"""What is around a receiver and a sender: a transport that keeps what is sent, a clock that stands still, codecs."""

from collections import Counter
from typing import Any, cast

from aiortc.codecs import CODECS
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from aiortc.stats import RTCStatsReport

from tests.transceiver.checks import Clock
from tests.transceiver.standalone import Tally
from transceiver.media.codecs import make_encoder
from transceiver.media.context import MediaContext
from transceiver.media.effort import Effort
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.sender import VoiceSender
from transceiver.media.settings import AudioSettings
from transceiver.media.ticker import Ticker
from wire.rtcp import RtcpPacket, parse_rtcp_untrusted
from wire.rtp import RtpPacket, parse_rtp_untrusted

OPUS_TYPE, PCMU_TYPE, PCMA_TYPE, G722_TYPE = 111, 0, 8, 9
TICK_S = 0.02


def codec(name: str) -> RTCRtpCodecParameters:
    """As it was negotiated."""
    [found] = [codec for codec in CODECS["audio"] if codec.name.lower() == name]
    types = {"opus": OPUS_TYPE, "pcmu": PCMU_TYPE, "pcma": PCMA_TYPE, "g722": G722_TYPE}
    return RTCRtpCodecParameters(found.mimeType, found.clockRate, found.channels, types[name])


class FakeTransport:
    """In place of MuxDtlsTransport, behind SRTP; ``connected``: whether there are keys."""

    state = "connected"
    _stats_id = "transport_1"

    def __init__(self) -> None:
        self.connected = True
        self.rtp: list[RtpPacket] = []
        self.rtcp: list[list[RtcpPacket]] = []
        self.registered: Counter[Any] = Counter()

    def send_rtp(self, packet: bytes) -> bool:
        if self.connected:
            self.rtp.append(parse_rtp_untrusted(packet))
        return self.connected

    def send_rtcp(self, packet: bytes) -> None:
        self.rtcp.append(parse_rtcp_untrusted(packet))

    def _register_rtp_receiver(self, receiver: object, parameters: RTCRtpReceiveParameters) -> None:
        self.registered[receiver] += 1

    def _register_rtp_sender(self, sender: object, parameters: RTCRtpSendParameters) -> None:
        self.registered[sender] += 1

    def _unregister_rtp_receiver(self, receiver: object) -> None:
        self.registered.pop(receiver, None)

    def _unregister_rtp_sender(self, sender: object) -> None:
        self.registered.pop(sender, None)

    def _get_stats(self) -> RTCStatsReport:
        return RTCStatsReport()


class Media:
    """A receiver and a sender without a network."""

    def __init__(self, settings: AudioSettings | None = None, transport: FakeTransport | None = None) -> None:
        self.clock = Clock()
        self.tally = Tally()
        self.ticker = Ticker(self.clock)
        settings = settings or AudioSettings()
        self.effort = Effort(settings.complexity, adaptive=settings.adaptive)
        self.context = MediaContext(settings, self.effort, self.clock, self.ticker, self.tally)
        self.transport = transport or FakeTransport()
        self.receiver = VoiceReceiver(cast("Any", self.transport), self.context)
        self.sender = VoiceSender("audio", cast("Any", self.transport), self.context)
        self.pcm: list[bytes] = []

    async def receive(self, *names: str, ssrcs: tuple[int, ...] = (), listen: bool = True) -> None:
        """Start the receiver for these codecs; ``listen``: keep PCM."""
        encodings = [RTCRtpDecodingParameters(ssrc=ssrc, payloadType=OPUS_TYPE) for ssrc in ssrcs]
        await self.receiver.receive(
            RTCRtpReceiveParameters(codecs=[codec(name) for name in names or ("opus",)], encodings=encodings)
        )
        if listen:
            self.receiver.on_pcm = self.pcm.append

    async def send(self, name: str = "opus") -> None:
        """Start the sender for this codec."""
        await self.sender.send(RTCRtpSendParameters(codecs=[codec(name)]))

    async def stop(self) -> None:
        """End both."""
        await self.receiver.stop()
        await self.sender.stop()
        assert not self.transport.registered
        assert len(self.ticker) == 0

    def arrive(
        self,
        number: int,
        payload: bytes,
        *,
        payload_type: int = OPUS_TYPE,
        ssrc: int = 7,
        samples: int = 960,
        marker: bool = False,
    ) -> None:
        """One packet from the client, now."""
        packet = RtpPacket(
            payload_type, marker, number & 0xFFFF, number * samples & 0xFFFF_FFFF, ssrc, payload
        )
        self.receiver.receive_rtp(packet, self.clock.now)

    def pass_time(self, seconds: float) -> None:
        """Tick as often as the ticker would."""
        for _ in range(round(seconds / TICK_S)):
            self.clock.now += TICK_S
            for tick in list(self.ticker._ticks):
                tick(self.clock.now)


def speech_packets(name: str, count: int) -> list[bytes]:
    """20 ms each of a loud square wave."""
    encoder = make_encoder(codec(name), 48_000, 1, AudioSettings())
    wave = (b"\x00\x20" * 60 + b"\x00\xe0" * 60) * 8
    packets: list[bytes] = []
    while len(packets) < count:
        if packet := encoder.encode(wave):
            packets.append(packet)
    return packets
