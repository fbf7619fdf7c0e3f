"""One simulated caller: signaling, ICE, DTLS-SRTP, and the packets of its voice."""

import http.client
import os
import re
import secrets
from dataclasses import dataclass, field
from struct import Struct
from urllib.parse import urlsplit

from bench.errors import BenchError
from bench.transceiver.dtls import Certificate, DtlsServer
from bench.transceiver.line import Line, SockAddr
from bench.transceiver.speech import FRAME_SAMPLES, Speech
from wire.address import Address
from wire.errors import WireError
from wire.stun import parse_stun_untrusted, write_binding_request, write_binding_success

PAYLOAD_TYPE = 111
_HTTP_TIMEOUT_S = 20.0
# https://www.rfc-editor.org/rfc/rfc3550#section-5.1: V=2, P, X, CC 1 | M, PT 1 | sequence number 2 | timestamp 4 | SSRC 4
_RTP = Struct("!BBHII")
_MARKER = 0x80
_SUCCESS = 0x0101


class Packet(bytes):
    """RTP in clear."""

    @property
    def number(self) -> int:
        """Its sequence number."""
        return int.from_bytes(self[2:4], "big")

    @property
    def payload(self) -> bytes:
        """What is behind the header and its extension (RFC 3550 section 5.3.1), without padding."""
        start = 12 + 4 * (self[0] & 0x0F)
        if self[0] & 0x10:
            start += 4 + 4 * int.from_bytes(self[start + 2 : start + 4], "big")
        return bytes(self[start : len(self) - self[-1] if self[0] & 0x20 else len(self)])


@dataclass
class Caller:
    """``index`` tells it from the others of its process; ``peer`` is where it sends to, None before that is known."""

    index: int
    line: Line
    certificate: Certificate
    speech: Speech
    peer: SockAddr | None = None
    location: str = ""
    is_answered: bool = False
    dtls: DtlsServer = field(init=False)

    def __post_init__(self) -> None:
        self.header = self.line.header(self.index)
        self.ufrag, self.pwd = f"call{self.index:04d}", secrets.token_hex(16)
        self.dtls = DtlsServer(self.certificate)
        self._ssrc = secrets.randbits(32)
        self._number, self._timestamp = secrets.randbits(15), secrets.randbits(32)
        # Callers do not speak in chorus.
        self.spoken = self.index * 37 % len(self.speech.frames)
        self._their_ufrag = self._their_pwd = ""

    # signaling

    def dial(self, url: str) -> None:
        """POST the offer and take the answer. Raises BenchError."""
        status, headers, answer = _request(url, "POST", self._offer())
        if status != 201:
            raise BenchError(f"{url} answered {status}: {answer.strip()}")
        self.location = headers.get("Location", "")
        ufrag = re.search(r"^a=ice-ufrag:(\S+)", answer, re.MULTILINE)
        pwd = re.search(r"^a=ice-pwd:(\S+)", answer, re.MULTILINE)
        if ufrag is None or pwd is None:
            raise BenchError(f"{url} answered without ICE credentials")
        self._their_ufrag, self._their_pwd = ufrag[1], pwd[1]

    def hang_up(self, url: str) -> None:
        """DELETE the session; one that is over already may be."""
        parts = urlsplit(url)
        _request(f"{parts.scheme}://{parts.netloc}{self.location}", "DELETE", "")

    def _offer(self) -> str:
        lines = [
            *("v=0", f"o=- {self._ssrc} 1 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0"),
            *(["a=ice-lite"] if self.peer is None else []),
            f"m=audio 9 UDP/TLS/RTP/SAVPF {PAYLOAD_TYPE}",
            *("c=IN IP4 0.0.0.0", "a=rtcp:9 IN IP4 0.0.0.0", "a=mid:0", "a=sendrecv", "a=rtcp-mux"),
            *(f"a=ice-ufrag:{self.ufrag}", f"a=ice-pwd:{self.pwd}"),
            *(f"a=fingerprint:{self.certificate.fingerprint}", "a=setup:actpass"),
            *(f"a=rtpmap:{PAYLOAD_TYPE} opus/48000/2", f"a=fmtp:{PAYLOAD_TYPE} minptime=10;useinbandfec=1"),
            f"a=ssrc:{self._ssrc} cname:{self.ufrag}",
            *self.line.offered(),
        ]
        return "\r\n".join([*lines, ""])

    # ICE and DTLS

    def check(self) -> bytes:
        """A Binding request of ours, never sent before."""
        username = f"{self._their_ufrag}:{self.ufrag}"
        return write_binding_request(
            os.urandom(12),
            username,
            self._their_pwd.encode(),
            controlling_tie_breaker=self._ssrc,
            use_candidate=True,
        )

    def receive_stun(self, datagram: bytes, source: SockAddr) -> list[bytes]:
        """What to answer; a success of theirs is noted."""
        if int.from_bytes(datagram[:2], "big") == _SUCCESS:
            self.is_answered = True
            return []
        try:
            message = parse_stun_untrusted(datagram)
        except WireError:
            return []
        if not message.is_binding_request:
            return []
        return [write_binding_success(message.transaction_id, Address.from_host(*source), self.pwd.encode())]

    # media

    def pause(self, samples: int) -> None:
        """Silence: the timestamp goes on without packets."""
        self._timestamp = (self._timestamp + samples) & 0xFFFFFFFF

    def speak(self, frames: int) -> list[bytes]:
        """The next packets of the voice, protected, with what goes in front of them."""
        assert self.dtls.outgoing is not None
        protect, header, said = self.dtls.outgoing.protect, self.header, self.speech.frames
        made = []
        for index in range(frames):
            # https://www.rfc-editor.org/rfc/rfc7587#section-4.2: the marker begins a talk spurt
            kind = PAYLOAD_TYPE | (_MARKER if not index else 0)
            rtp = _RTP.pack(0x80, kind, self._number, self._timestamp, self._ssrc)
            made.append(header + protect(rtp + said[self.spoken]))
            self._number = (self._number + 1) & 0xFFFF
            self._timestamp = (self._timestamp + FRAME_SAMPLES) & 0xFFFFFFFF
            self.spoken = (self.spoken + 1) % len(said)
        return made

    def open(self, datagram: bytes) -> Packet:
        """RTP that came for this call, in clear. Raises pylibsrtp.Error."""
        assert self.dtls.incoming is not None
        return Packet(self.dtls.incoming.unprotect(datagram))


def _request(url: str, method: str, body: str) -> tuple[int, http.client.HTTPMessage, str]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request(method, parts.path or "/", body, {"Content-Type": "application/sdp"})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{method} {url}: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()
