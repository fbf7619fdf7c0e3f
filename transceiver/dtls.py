"""DTLS by aiortc; SRTP where the datagram arrives, without a task or a queue between the socket and who listens."""

import asyncio
import contextlib
import logging
import struct
import traceback
from typing import Any

import pylibsrtp
from aiortc import RTCCertificate, RTCIceTransport
from aiortc.rtcdtlstransport import RTCDtlsTransport, State
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters, RTCRtpSendParameters
from aiortc.stats import RTCStatsReport, RTCTransportStats
from OpenSSL import SSL

from transceiver.connection import MuxConnection
from transceiver.guards import BoundedRouter, SctpGuard
from transceiver.ice import Path
from transceiver.media.context import PeerObserver
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.reports import Reports
from transceiver.media.sender import VoiceSender
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.errors import WireError
from wire.rtcp import is_rtcp, parse_rtcp_untrusted
from wire.rtp import RtpPacket, parse_rtp_untrusted

logger = logging.getLogger(__name__)

_CM_TAG_BYTES = 10
_MAX_RECORD_BYTES = 1500
# pylibsrtp's buffer, which has to hold an outgoing packet's tag too: with a longer one it raises ValueError.
_MAX_SRTP_BYTES = 1500
_MAX_PLAIN_BYTES = _MAX_SRTP_BYTES - pylibsrtp.SRTP_MAX_TRAILER_LEN
# libsrtp keeps state for each SSRC. A browser sends a stream or two, and takes a new SSRC now and then.
_MAX_SSRCS = 64
_REPLAYED = "replay"  # libsrtp's srtp_err_status_replay_fail and _replay_old, by their text
# What a peer of aiortc's own receivers may hold up before we drop.
_MAX_STOCK_TASKS = 256
# aiortc offers ECDSA suites only, so as DTLS client it could not finish with a peer whose certificate is RSA
# (GStreamer's default, some embedded stacks).
_CIPHERS = b":".join(
    f"ECDHE-{signature}-{cipher}".encode()
    for cipher in ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA")
    for signature in ("ECDSA", "RSA")
)


class SessionCertificate(RTCCertificate):
    """The process's DTLS certificate, with its SSL context made once."""

    _context: SSL.Context | None = None

    def _create_ssl_context(self, srtp_profiles: list[Any]) -> SSL.Context:
        if self._context is None:
            self._context = super()._create_ssl_context(srtp_profiles)
            self._context.set_cipher_list(_CIPHERS)
        return self._context


class _AuthenticatedDataReceiver:
    """Tells the agent of DTLS application data, then hands it on to SCTP."""

    def __init__(self, receiver: Any, connection: MuxConnection, observer: PeerObserver) -> None:
        self._receiver = receiver
        self._guard = SctpGuard(receiver)
        self._connection = connection
        self._observer = observer
        self._has_failed = False
        self.handled = 0

    async def _handle_data(self, data: bytes) -> None:
        self.handled += 1
        record = self._connection.received
        # https://www.rfc-editor.org/rfc/rfc6347#section-4.1: epoch and sequence number at 3, length at 11. Of several
        # records in a datagram only one need be authentic, so they prove nothing; DTLS 1.3 encrypts the number
        # (RFC 9147 section 4.2.3).
        if 20 <= record[0] <= 25 and len(record) == 13 + int.from_bytes(record[11:13], "big"):
            newest = self._connection.agent.is_newest_record(int.from_bytes(record[3:11], "big"))
            self._connection.authenticated(newest=newest)
        refusal = self._guard.refusal_untrusted(data)
        if refusal is not None:
            self._observer.count(refusal)
            return
        try:
            await self._receiver._handle_data(data)
        except Exception as error:  # aiortc raises whatever a strange peer makes it trip over
            if _is_from_listener(error):
                self._note_failure(error)
            elif isinstance(error, ConnectionError):
                raise
            else:
                self._observer.count("sctp_malformed")

    def _note_failure(self, error: Exception) -> None:
        self._observer.count("listener_failed")
        if not self._has_failed:  # the client decides how often
            self._has_failed = True
            logger.error(
                "who listens to a data channel failed; from now on only counted (listener_failed)",
                exc_info=error,
            )


def _is_from_listener(error: Exception) -> bool:
    """Whether it was raised by who listens to an event of aiortc, which is the application: events go by way of pyee."""
    return any(
        frame.f_globals.get("__name__", "").partition(".")[0] == "pyee"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


class MuxDtlsTransport(RTCDtlsTransport):
    """Tells the agent which packets were authentic; a malformed one from an authentic peer costs a counter only."""

    def __init__(
        self,
        transport: RTCIceTransport,
        certificate: RTCCertificate,
        connection: MuxConnection,
        observer: PeerObserver,
    ) -> None:
        super().__init__(transport, [certificate])
        self._connection = connection
        self._observer = observer
        self._voices: dict[int, list[VoiceReceiver]] = {}  # by payload type
        self._reports: dict[VoiceReceiver | VoiceSender, Reports] = {}
        self._ssrcs: set[bytes] = set()
        self._rtp_router = BoundedRouter()
        self._has_stock_media = False
        self._stock_tasks: set[asyncio.Task[None]] = set()

    # SRTP in

    def _setup_srtp(self) -> None:
        super()._setup_srtp()
        if self._rx_srtp is not None:
            self._connection.deliver_srtp(self._receive_srtp_untrusted)

    def _receive_srtp_untrusted(self, datagram: bytes, path: Path, relay: Address) -> None:
        rtcp = is_rtcp(datagram)
        # https://www.rfc-editor.org/rfc/rfc3711#section-3: neither is encrypted
        ssrc = datagram[4:8] if rtcp else datagram[8:12]
        if len(datagram) > _MAX_SRTP_BYTES:
            self._observer.count("srtp_oversized")
            return
        if ssrc not in self._ssrcs and len(self._ssrcs) >= _MAX_SSRCS:
            self._observer.count("srtp_excess")
            return
        try:
            plain = self._rx_srtp.unprotect_rtcp(datagram) if rtcp else self._rx_srtp.unprotect(datagram)
            self._ssrcs.add(ssrc)  # only now: what is forged takes no place
            if rtcp:
                self._receive_rtcp_untrusted(plain, datagram, path, relay)
            else:
                self._receive_rtp_untrusted(plain, path, relay)
        except pylibsrtp.Error as error:
            self._observer.count("srtp_replayed" if _REPLAYED in str(error) else "srtp_forged")
        except WireError as error:
            self._observer.count(error.fault.value)

    def _receive_rtp_untrusted(self, plain: bytes, path: Path, relay: Address) -> None:
        packet = parse_rtp_untrusted(plain)
        agent, now = self._connection.agent, self._connection.clock()
        newest = agent.is_newest_rtp(packet.ssrc, packet.sequence_number)
        agent.authenticate(path, relay, newest=newest, now=now)
        receiver = self._voice_of(packet)
        if receiver is not None:
            receiver.receive_rtp(packet, now)
        elif self._has_stock_media:
            self._run_stock(self._handle_rtp_data(plain, arrival_time_ms=int(now * 1000)), "rtp_malformed")
        else:
            self._observer.count("rtp_payload_type")

    def _receive_rtcp_untrusted(self, plain: bytes, datagram: bytes, path: Path, relay: Address) -> None:
        packets = parse_rtcp_untrusted(plain)
        agent, now = self._connection.agent, self._connection.clock()
        # https://www.rfc-editor.org/rfc/rfc3550#section-6.4.1: the sender's SSRC at 4
        newest = agent.is_newest_rtcp(int.from_bytes(plain[4:8], "big"), self._srtcp_index(datagram))
        agent.authenticate(path, relay, newest=newest, now=now)
        for reports in {*self._reports.values()}:
            for packet in packets:
                reports.receive(packet, now)
        if self._has_stock_media:
            self._run_stock(self._handle_rtcp_data(plain), "rtcp_malformed")

    def _voice_of(self, packet: RtpPacket) -> VoiceReceiver | None:
        """By payload type; where sections share it, by the SSRC that SDP named, or by MID (RFC 9143 section 9.2)."""
        receivers = self._voices.get(packet.payload_type)
        if not receivers:
            return None
        if len(receivers) == 1:
            return receivers[0]
        return next((r for r in receivers if packet.ssrc in r.signalled_ssrcs), None) or next(
            (r for r in receivers if r.takes_by_mid(packet)), None
        )

    def _srtcp_index(self, datagram: bytes) -> int:
        """Of an SRTCP packet: behind the tag with AES-GCM, before it with AES-CM."""
        # https://www.rfc-editor.org/rfc/rfc7714#section-9.2 and https://www.rfc-editor.org/rfc/rfc3711#section-3.4
        assert self._ssl is not None  # SRTCP was decrypted with its keys
        end = None if b"GCM" in self._ssl.get_selected_srtp_profile() else -_CM_TAG_BYTES
        return int.from_bytes(datagram[:end][-4:], "big") & 0x7FFF_FFFF

    # SRTP out

    def send_rtp(self, packet: bytes) -> bool:
        """Encrypt and send a packet; False while there are no keys, or if it is longer than can be sent."""
        if self._state is not State.CONNECTED:
            return False
        if len(packet) > _MAX_PLAIN_BYTES:
            self._observer.count("send_oversized")
            return False
        self._connection.send_now(self._tx_srtp.protect(packet))
        return True

    def send_rtcp(self, packet: bytes) -> None:
        """Encrypt and send a compound packet, if there are keys."""
        if self._state is State.CONNECTED:
            self._connection.send_now(self._tx_srtp.protect_rtcp(packet))

    # what aiortc calls

    def add_reports(self, receiver: VoiceReceiver, sender: VoiceSender, reports: Reports) -> None:
        """RTCP of a section that may be started by either."""
        self._reports[receiver] = self._reports[sender] = reports

    def _register_rtp_receiver(self, receiver: Any, parameters: RTCRtpReceiveParameters) -> None:
        if not isinstance(receiver, VoiceReceiver):
            self._has_stock_media = True
            super()._register_rtp_receiver(receiver, parameters)
            return
        for codec in parameters.codecs:
            if codec.payloadType is not None:
                receivers = self._voices.setdefault(codec.payloadType, [])
                if receiver not in receivers:
                    receivers.append(receiver)
        self._reports[receiver].start(self)

    def _unregister_rtp_receiver(self, receiver: Any) -> None:
        super()._unregister_rtp_receiver(receiver)
        for receivers in self._voices.values():
            if receiver in receivers:
                receivers.remove(receiver)
        self._stop_reports(receiver)

    def _register_rtp_sender(self, sender: Any, parameters: RTCRtpSendParameters) -> None:
        if isinstance(sender, VoiceSender):
            self._reports[sender].start(self)
            return
        self._has_stock_media = True
        super()._register_rtp_sender(sender, parameters)

    def _unregister_rtp_sender(self, sender: Any) -> None:
        super()._unregister_rtp_sender(sender)
        self._stop_reports(sender)

    def _stop_reports(self, media: VoiceReceiver | VoiceSender) -> None:
        reports = self._reports.pop(media, None)
        if reports is not None and reports not in self._reports.values():
            reports.stop()

    def _run_stock(self, handling: Any, fault: str) -> None:
        """aiortc's own receivers and senders, of video or where they were chosen, are coroutines."""
        if len(self._stock_tasks) >= _MAX_STOCK_TASKS:
            handling.close()
            self._observer.count("queue_overflow")
            return
        task = asyncio.get_running_loop().create_task(self._guard(handling, fault))
        self._stock_tasks.add(task)
        task.add_done_callback(self._stock_tasks.discard)

    async def _guard(self, handling: Any, fault: str) -> None:
        try:
            await handling
        except (ValueError, IndexError, struct.error):
            self._observer.count(fault)
        except ConnectionError:
            pass  # it wanted to answer, and the call has ended

    async def _send_data(self, data: bytes) -> None:
        # aiortc's retransmission timer may run out while DTLS is being closed: lost, as any datagram may be.
        with contextlib.suppress(SSL.Error):
            await super()._send_data(data)

    async def _recv_next(self) -> None:
        receiver = self._data_receiver
        handled = receiver.handled if isinstance(receiver, _AuthenticatedDataReceiver) else 0
        await super()._recv_next()
        # aiortc reads one record of a datagram and leaves the others for the next, which would be taken for their origin.
        if self.encrypted and self._ssl and classify(self._connection.received) is PacketClass.DTLS:
            await self._read_further_records(self._ssl)
            if isinstance(receiver, _AuthenticatedDataReceiver) and receiver.handled == handled:
                self._observer.count("dtls_no_data")  # forged, replayed, or of the handshake

    async def _read_further_records(self, ssl: SSL.Connection) -> None:
        while True:
            try:
                data = ssl.recv(_MAX_RECORD_BYTES)
            except SSL.ZeroReturnError:
                raise ConnectionError("DTLS closed by the client") from None
            except SSL.Error:
                return
            if self._data_receiver:
                await self._data_receiver._handle_data(data)

    def _register_data_receiver(self, receiver: Any) -> None:
        super()._register_data_receiver(
            _AuthenticatedDataReceiver(receiver, self._connection, self._observer)
        )

    def _unregister_data_receiver(self, receiver: Any) -> None:
        self._data_receiver = None

    def _get_stats(self) -> RTCStatsReport:
        report = super()._get_stats()
        connection = self._connection
        for stats in report.values():
            if isinstance(stats, RTCTransportStats):
                stats.packetsReceived, stats.bytesReceived = connection.packets_in, connection.bytes_in
                stats.packetsSent, stats.bytesSent = connection.packets_out, connection.bytes_out
        return report
