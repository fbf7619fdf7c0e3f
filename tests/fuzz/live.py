"""A process with two calls: one whose client sends what it likes under its own keys, and a bystander's."""

import asyncio
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from enum import StrEnum
from functools import partial
from itertools import count
from struct import pack
from typing import Any, TypeVar

import pylibsrtp
from aiortc import RTCRtpSender
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcsctptransport import RTCSctpTransport
from google_crc32c import value as crc32c
from pylibsrtp._binding import ffi  # type: ignore[import-not-found]  # compiled, without types

from tests.transceiver.caller import Caller, RelayShim, calling
from tests.transceiver.processes import Process, serving
from transceiver.backend.echo import EchoBackend
from transceiver.media.settings import AudioSettings, MediaPath
from transceiver.session import Session
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.rtcp import is_rtcp

T = TypeVar("T")

# Longer than any machine's load: only a call that is dead takes it.
_PATIENCE_S = 30.0
# A data channel that did not answer within this is taken for dead, which only costs a new call.
_DEAD_S = 0.1
_SRTP_BUFFER_BYTES = 4096
ANY_SSRC = bytes.fromhex("12345678")
# https://www.rfc-editor.org/rfc/rfc9260#section-3.2: what RFC 8261 runs over DTLS
_DATA, _INIT, _SACK, _FORWARD_TSN = 0, 1, 3, 192


class Media(StrEnum):
    """Who handles the audio of both calls."""

    PASSTHROUGH = "passthrough"
    TRANSCODE = "transcode"
    AIORTC = "aiortc"


_OPTIONS: dict[Media, dict[str, Any]] = {
    Media.PASSTHROUGH: {},
    Media.TRANSCODE: {"make_backend": partial(EchoBackend, transcode=True)},
    Media.AIORTC: {"audio": AudioSettings(path=MediaPath.AIORTC)},
}


class _Complaints(logging.Handler):
    """Every line of the log that an operator would have to read: malformed packets must not write any."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        # What a client cannot decode, it is sent by the attacker itself; host/log.py silences it for ours.
        self.addFilter(lambda record: record.name != "aiortc.rtcrtpreceiver")

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        self.lines.append(self.format(record))


class Live:
    """Opened and used from outside of its event loop, as a function under hypothesis is."""

    def __init__(self, media: Media) -> None:
        self.media = media
        self._runner = asyncio.Runner()
        self._complaints = _Complaints()
        self._said = count(1)

    # life

    def open(self) -> None:
        """Start the process and both calls."""
        logging.getLogger().addHandler(self._complaints)
        self._run(self._open())

    def close(self) -> None:
        """End all; what ended badly is told now."""
        try:
            self._run(self._stack.aclose())
            gc.collect()
            self._require_silence()
        finally:
            self._runner.close()
            logging.getLogger().removeHandler(self._complaints)
        assert not [thread.name for thread in threading.enumerate() if thread.name.endswith("coder")]

    async def _open(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._complain)
        self._stack = AsyncExitStack()
        shim = self._shim = RelayShim()
        shim.start()
        self._stack.callback(shim.stop)
        self.process: Process = await self._stack.enter_async_context(
            serving(vips=(shim.vip,), **_OPTIONS[self.media])
        )
        shim.transceiver = self.process.address
        self.bystander = await self._dial()
        self.bystander_session = self._newest()
        self._attackers = await self._stack.enter_async_context(AsyncExitStack())
        await self._dial_attacker()

    async def _dial_attacker(self) -> None:
        self.attacker = await self._attackers.enter_async_context(calling())
        await self._connect(self.attacker)
        self.session = self._newest()
        self._steel(self._sctp)
        numbers = self._number_packets(self._dtls)
        await _until(lambda: pack("!I", self._sender._ssrc) in numbers)

    def _steel(self, sctp: RTCSctpTransport) -> None:
        """The attacker's own aiortc must not stumble over answers to what it never asked."""
        handle_data = sctp._handle_data

        async def handle_any(data: bytes) -> None:
            with suppress(Exception):
                await handle_data(data)

        sctp._handle_data = handle_any  # type: ignore[method-assign]

    def _number_packets(self, dtls: RTCDtlsTransport) -> dict[bytes, "count[int]"]:
        """What is sent in between must not take the sequence numbers of the client's own packets."""
        send = dtls._send_rtp
        numbers: dict[bytes, count[int]] = {}

        async def send_in_order(packet: bytes) -> None:
            if len(packet) >= 12 and not is_rtcp(packet):
                own = count(int.from_bytes(packet[2:4], "big"))
                number = next(numbers.setdefault(packet[8:12], own)) & 0xFFFF
                packet = packet[:2] + pack("!H", number) + packet[4:]
            await send(packet)

        dtls._send_rtp = send_in_order  # type: ignore[assignment, method-assign]
        # Browsers have no limit of 1356 bytes.
        dtls._tx_srtp._cdata = ffi.new("unsigned char[]", _SRTP_BUFFER_BYTES)
        dtls._tx_srtp._buffer = ffi.buffer(dtls._tx_srtp._cdata)
        return numbers

    async def _dial(self) -> Caller:
        caller = await self._stack.enter_async_context(calling())
        await self._connect(caller)
        return caller

    async def _connect(self, caller: Caller) -> None:
        await caller.dial(self.process)
        await _until(lambda: caller.channel.readyState == "open")
        await _until(lambda: caller.loud_frames > 0)

    def revive(self) -> None:
        """Redial if the attacker's data channel is dead: it may have aborted its own association, or confused its TSNs."""

        async def is_dead() -> bool:
            message = f"message {next(self._said)}"
            if self.attacker.channel.readyState != "open":
                return True
            self.attacker.channel.send(message)
            with suppress(TimeoutError):
                await _until(lambda: message in self.attacker.echoes, _DEAD_S)
            return message not in self.attacker.echoes

        if self._run(is_dead()):
            self.redial()

    def redial(self) -> None:
        """The attacker hangs up and calls again."""

        async def again() -> None:
            await self.process.public.delete(self.attacker.location)
            await self._attackers.aclose()
            await _until(lambda: len(self.process.sessions) == 1)
            await self._dial_attacker()

        self._run(again())

    # what the attacker sends

    def attack(self, *sends: Callable[["Live"], Coroutine[Any, Any, None]]) -> None:
        """Send all of it at once."""

        async def burst() -> None:
            for send in sends:
                await send(self)

        self._run(burst())

    async def send_rtp(self, packet: bytes) -> None:
        """Under the client's SRTP key, between its own packets; what libsrtp does not encrypt goes out as it is.

        The SSRC 0x12345678 stands for that of the client's audio. Every packet gets the next sequence number of its SSRC, or
        the replay window would drop it.
        """
        if packet[8:12] == ANY_SSRC:
            packet = packet[:8] + pack("!I", self._sender._ssrc) + packet[12:]
        await self._send_srtp(packet)

    async def send_numbered_rtp(self, packet: bytes) -> None:
        """Under the client's SRTP key, with SSRC and sequence number as they stand."""
        await self._dtls.transport._send(self._dtls._tx_srtp.protect(packet))

    async def send_rtcp(self, packet: bytes) -> None:
        """Under the client's SRTCP key."""
        await self._send_srtp(packet)

    async def _send_srtp(self, packet: bytes) -> None:
        try:
            await self._dtls._send_rtp(packet)
        except (pylibsrtp.Error, ValueError):
            await self.send_raw(packet)

    async def send_sctp(self, chunks: bytes) -> None:
        """A packet of the client's own association: ports, verification tag and checksum are right.

        TSNs are relative, 0 being what is due: the next one of the client in DATA and FORWARD TSN, and the last one that
        it received in SACK.
        """
        sctp = self._sctp
        tag = 0 if chunks[:1] == bytes((_INIT,)) else sctp._remote_verification_tag
        await self.send_sctp_packet(_with_tsns(chunks, sctp), tag)

    async def send_sctp_packet(self, chunks: bytes, tag: int, *, checksum_xor: int = 0) -> None:
        """A packet with any verification tag, and a checksum that is right unless it is changed."""
        head = pack("!HHI", 5000, 5000, tag)
        checksum = crc32c(head + bytes(4) + chunks) ^ checksum_xor
        await self.send_application_data(head + pack("<I", checksum) + chunks)

    async def send_application_data(self, data: bytes) -> None:
        """In an authentic DTLS record."""
        await self._dtls._send_data(data)

    async def send_raw(self, datagram: bytes) -> None:
        """From the client's validated address, under no key."""
        await self._dtls.transport._send(datagram)

    def await_data_to_acknowledge(self) -> None:
        """Return while an echo is on its way, whose acknowledgement is the attacker's to forge."""

        async def say() -> None:
            self.attacker.channel.send("to be acknowledged")
            async with asyncio.timeout(_PATIENCE_S):
                while not self.server_sctp._sent_queue:  # noqa: ASYNC110  # aiortc sets no event
                    await asyncio.sleep(0)

        self._run(say())

    @property
    def due_tsn(self) -> int:
        """The TSN that the transceiver expects of the attacker."""
        return self._sctp._local_tsn

    def call_with_forged_handshake(self, datagram: bytes) -> None:
        """A third client calls; ``datagram`` arrives in front of each of its DTLS datagrams. Connected or ended, it is over."""

        async def call() -> None:
            known = {client for _, client in self._shim.up}

            def forge(sent: bytes, client: Address) -> list[tuple[bytes, Address]]:
                forged = classify(sent) is PacketClass.DTLS and client not in known
                return [(datagram, client), (sent, client)] if forged else [(sent, client)]

            self._shim.uplink = forge
            async with calling() as caller:
                await caller.dial(self.process)
                session = self._newest()
                await _until(lambda: session.is_connected or len(self.process.sessions) == 2)
                await self.process.public.delete(caller.location)
                await _until(lambda: len(self.process.sessions) == 2)
            self._shim.uplink = lambda sent, client: [(sent, client)]

        self._run(call())

    # what must be so afterwards

    def require_calls_go_on(self, *, data: bool = True) -> None:
        """Both calls echo audio and messages, and nobody complained; without ``data`` the attacker's messages may fail."""

        async def go_on() -> None:
            callers = [self.attacker, self.bystander]
            for caller in callers:
                caller.loud_frames = 0
            talking = callers if data else [self.bystander]
            message = f"message {next(self._said)}"
            for caller in talking:
                caller.channel.send(message)
            await _until(lambda: all(message in caller.echoes for caller in talking))
            await _until(lambda: all(caller.loud_frames for caller in callers))

        self._run(go_on())
        assert len(self.process.sessions) == 2
        assert not self.bystander_session.counters
        self._require_silence()

    @property
    def counters(self) -> Counter[str]:
        """Of the attacker's session and of the mux, together."""
        return self.session.counters + self.process.mux.counters

    def counted(self, before: Counter[str]) -> Counter[str]:
        """What was counted since; what arrives all the time is left out."""
        since = self.counters - before
        for usual in ("checks", "media"):
            del since[usual]
        return since

    @property
    def own_ssrc(self) -> int:
        """Of the attacker's audio."""
        return self._sender._ssrc

    @property
    def server_sctp(self) -> RTCSctpTransport:
        """The transceiver's end of the attacker's association."""
        sctp = self.session.peer.sctp
        assert sctp is not None
        return sctp

    def reports_received(self) -> int:
        """RTCP datagrams that the transceiver sent to the attacker."""
        return sum(
            classify(datagram) is PacketClass.RTP and is_rtcp(datagram)
            for datagram, to in self._shim.down
            if to == self._attackers_address
        )

    def has_ticked(self, ticks: int) -> bool:
        """Whether so many packets of the bystander's came since the last question."""
        heard = self.bystander.loud_frames
        self.bystander.loud_frames = 0 if heard >= ticks else heard
        return heard >= ticks

    @property
    def _attackers_address(self) -> Address | None:
        selected = self.session.agent.selected
        return selected.client if selected else None

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Let the calls run until ``condition`` holds."""
        self._run(_until(condition))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the calls' event loop."""
        return self._run(coroutine)

    def _require_silence(self) -> None:
        lines = self._complaints.lines[:]
        self._complaints.lines.clear()
        assert not lines, "\n".join(lines)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._complaints.lines.append(f"{context['message']}: {context.get('exception')!r}")

    def _newest(self) -> Session:
        return list(self.process.sessions._sessions.values())[-1]

    @property
    def _sender(self) -> RTCRtpSender:
        return self.attacker.peer.getSenders()[0]

    @property
    def _dtls(self) -> RTCDtlsTransport:
        [transport] = self.attacker.peer._RTCPeerConnection__dtlsTransports  # type: ignore[attr-defined]
        assert isinstance(transport, RTCDtlsTransport)
        return transport

    @property
    def _sctp(self) -> RTCSctpTransport:
        assert self.attacker.peer.sctp is not None
        return self.attacker.peer.sctp

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)


def _with_tsns(chunks: bytes, sctp: RTCSctpTransport) -> bytes:
    """``chunks`` with the relative TSNs of those that have one made absolute, as far as their lengths can be followed."""
    absolute = bytearray(chunks)
    at = 0
    while at + 8 <= len(chunks):
        kind, length = chunks[at], int.from_bytes(chunks[at + 2 : at + 4], "big")
        if kind in (_DATA, _FORWARD_TSN, _SACK):
            due = (sctp._last_received_tsn or 0) if kind == _SACK else sctp._local_tsn
            relative = int.from_bytes(chunks[at + 4 : at + 8], "big")
            absolute[at + 4 : at + 8] = pack("!I", (relative + due) & 0xFFFFFFFF)
        at += max(4, length + 3 & ~3)
    return bytes(absolute)


async def _until(condition: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  # sockets and aiortc's tasks set no event
            await asyncio.sleep(0.002)
