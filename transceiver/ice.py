"""ICE-lite for one session: which checks to answer, which address to send to, when consent is gone. Pure.

Rules:
1. A check counts only if its USERNAME names both sides and its MESSAGE-INTEGRITY fits (RFC 8445 section 7.3).
2. A transaction id that was seen before is answered, but validates, moves and renews nothing: a captured check that is
   replayed from elsewhere must not steal or prolong a call.
3. The first address with a fresh check is latched and gets our DTLS ClientHello, without waiting for USE-CANDIDATE.
4. Until DTLS completes we send to the address that DTLS last came from. While none has come, a flight that was not
   answered for half a second is tried on the next validated address (the first pair may be dead one way).
5. After that the path follows the newest authenticated, in-order SRTP, SRTCP or DTLS packet: whoever holds the keys and
   moves on, moves us.
6. USE-CANDIDATE, which Chromium and Firefox put on every check to a lite agent, moves the path only when the selected
   address has been silent: for 1 s where media was flowing, for 6 s where it was not.
7. An address that has not sent an authenticated packet gets at most three times the bytes that it sent.
8. 30 s without a fresh check on the selected address end the consent (RFC 7675 section 5.1).

    selected path        set by                                              until
    none                 -                                                   first fresh check
    latched              first fresh check; rotation; a DTLS record          DTLS completes
    followed             authenticated in-order packet; USE-CANDIDATE        30 s without a fresh check
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from transceiver.transactions import Transactions
from wire.address import Address
from wire.stun import (
    Attribute,
    StunMessage,
    verify_integrity,
    write_binding_error,
    write_binding_success,
)

MAX_PATHS = 8
CONSENT_S = 30.0
# How long the credentials before an ICE restart go on working: checks that were under way, and a restart that the
# client gave up (RFC 9725 section 4.3.3 lets it keep the old ones).
_OLD_CREDENTIAL_S = 30.0
_MAX_CREDENTIALS = 4
_AMPLIFICATION = 3
_ROTATE_AFTER_S = 0.5
_SILENCE_WHILE_SENDING_S = 1.0
_SILENCE_WHILE_IDLE_S = 6.0
_MAX_STREAMS = 32
_ROLE_CONFLICT = 487


class Path(NamedTuple):
    """A client's address and the VIP that it sends to."""

    client: Address
    vip: Address


class Credential(NamedTuple):
    """One generation of both sides' ICE credentials (RFC 8445 section 5.3)."""

    server_ufrag: str
    ice_pwd: str
    client_ufrag: str


class CheckRefusal(Enum):
    """Why a check was not answered."""

    USERNAME = "check_username"
    INTEGRITY = "check_integrity"


class CheckResult(NamedTuple):
    """``answer`` goes back to where the check came from. ``validated`` if the check was fresh; its path may have pushed out
    ``removed``.
    """

    answer: bytes = b""
    refusal: CheckRefusal | None = None
    validated: bool = False
    removed: Path | None = None


@dataclass(slots=True)
class _PathState:
    relay: Address
    bytes_in: int = 0
    bytes_out: int = 0
    proven: bool = False
    checked_at: float = 0.0
    authenticated_at: float = float("-inf")


@dataclass(slots=True)
class _Stream:
    """Extended RTP sequence number of one SSRC (RFC 3550 appendix A.1)."""

    highest: int


@dataclass(slots=True)
class _Live:
    credential: Credential
    expires_at: float = field(default=float("inf"))


class IceLiteAgent:
    """One session's paths. ``now`` is monotonic seconds."""

    def __init__(self, credential: Credential, now: float) -> None:
        self.handshake_done = False
        self.selected: Path | None = None
        self.moves = 0
        self.longest_gap_s = 0.0
        self._credentials = {credential.server_ufrag: _Live(credential)}
        self._current = credential
        self._paths: dict[Path, _PathState] = {}
        self._transactions = Transactions()
        self._streams: dict[int, _Stream] = {}
        self._consent_at = now
        self._dtls_seen = False
        self._dtls_sent_at = float("-inf")
        self._media_interval_s = float("inf")
        self._rtcp_indices: dict[int, int] = {}
        self._highest_record = -1
        self._authenticated_at = float("inf")

    @property
    def credential(self) -> Credential:
        """The credentials that new checks should use."""
        return self._current

    @property
    def server_ufrags(self) -> tuple[str, ...]:
        """Every ufrag under which checks for this session may come."""
        return tuple(self._credentials)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Validated paths, the first validated first."""
        return tuple(self._paths)

    def expect(self, client_ufrag: str, now: float) -> None:
        """Take the client's ufrag, known since its description came; until then no check fits. Consent counts from now."""
        self._current = self._current._replace(client_ufrag=client_ufrag)
        self._credentials[self._current.server_ufrag].credential = self._current
        self._consent_at = now

    def restart(self, credential: Credential, now: float) -> list[str]:
        """Take new credentials (RFC 8445 section 9); the old ones work a while longer. Returns ufrags that are over."""
        self._credentials[self._current.server_ufrag].expires_at = now + _OLD_CREDENTIAL_S
        self._credentials[credential.server_ufrag] = _Live(credential)
        self._current = credential
        surplus = list(self._credentials)[:-_MAX_CREDENTIALS]
        for server_ufrag in surplus:
            del self._credentials[server_ufrag]
        return surplus

    def expire_credentials(self, now: float) -> list[str]:
        """Drop and return the ufrags of restarts that are long past."""
        over = [ufrag for ufrag, live in self._credentials.items() if live.expires_at <= now]
        for server_ufrag in over:
            del self._credentials[server_ufrag]
        return over

    def is_expired(self, now: float) -> bool:
        """Whether consent is gone, or no check ever came (RFC 7675 section 5.1)."""
        return now - self._consent_at >= CONSENT_S

    def is_active_on(self, path: Path, now: float) -> bool:
        """Whether this session heard an authenticated packet or fresh check from the path within the last 6 s."""
        state = self._paths.get(path)
        return (
            state is not None and now - max(state.checked_at, state.authenticated_at) < _SILENCE_WHILE_IDLE_S
        )

    def receive_check(
        self,
        datagram: bytes,
        message: StunMessage,
        ufrags: tuple[str, str],
        path: Path,
        relay: Address,
        now: float,
    ) -> CheckResult:
        """Handle a Binding request (RFC 8445 section 7.3); ``ufrags`` is (server_ufrag, client_ufrag)."""
        live = self._credentials.get(ufrags[0])
        if live is None or live.credential.client_ufrag != ufrags[1]:
            return CheckResult(refusal=CheckRefusal.USERNAME)
        key = live.credential.ice_pwd.encode()
        if not verify_integrity(datagram, message, key):
            return CheckResult(refusal=CheckRefusal.INTEGRITY)
        # https://www.rfc-editor.org/rfc/rfc8445#section-7.3.1.1: a lite agent can only be controlled
        if Attribute.ICE_CONTROLLED in message.attributes:
            return CheckResult(
                write_binding_error(message.transaction_id, _ROLE_CONFLICT, "Role Conflict", key)
            )
        answer = write_binding_success(message.transaction_id, path.client, key)
        if message.transaction_id in self._transactions:
            return CheckResult(answer)
        self._transactions.add(message.transaction_id)
        removed = self._make_room() if path not in self._paths else None
        state = self._paths.setdefault(path, _PathState(relay))
        state.relay, state.checked_at = relay, now
        state.bytes_in += len(datagram)
        state.bytes_out += len(answer)
        if self.selected is None:
            self.selected = path
        elif message.use_candidate and path != self.selected and self._is_silent(now):
            self._move(path)
        if path == self.selected:
            self._consent_at = now
        return CheckResult(answer, validated=True, removed=removed)

    def receive_datagram(self, length: int, path: Path) -> bool:
        """Note a DTLS or SRTP datagram; False if it is from no validated path and must be dropped."""
        state = self._paths.get(path)
        if state is None:
            return False
        state.bytes_in += length
        return True

    def receive_dtls(self, path: Path, relay: Address) -> None:
        """Follow DTLS while the handshake runs: Chromium answers on its selected pair, which need not be the first."""
        if not self.handshake_done and path in self._paths:
            self._dtls_seen = True
            self._paths[path].relay = relay
            self.selected = path

    def complete_handshake(self) -> None:
        """DTLS is done: the peer has shown that it holds the certificate and hears us."""
        self.handshake_done = True
        if self.selected is not None:
            self._paths[self.selected].proven = True

    def authenticate(self, path: Path, relay: Address, *, newest: bool, now: float) -> None:
        """Note a packet that passed SRTP or DTLS authentication; ``newest`` if it is later than all before it."""
        state = self._paths.get(path)
        if state is None:
            return
        state.proven = True
        if newest or path == self.selected:
            state.relay = relay
        self.longest_gap_s = max(self.longest_gap_s, now - self._authenticated_at)
        self._authenticated_at = now
        if path == self.selected:
            self._media_interval_s = now - state.authenticated_at
        elif newest and self.handshake_done:
            self._move(path)
        state.authenticated_at = now

    def is_newest_rtp(self, ssrc: int, sequence_number: int) -> bool:
        """Whether an authenticated RTP packet is later than all before it of its stream; notes it."""
        stream = self._streams.get(ssrc)
        if stream is None:
            if len(self._streams) >= _MAX_STREAMS:
                return False
            self._streams[ssrc] = _Stream(sequence_number)
            return True
        ahead = (sequence_number - stream.highest) & 0xFFFF
        if not 0 < ahead < 0x8000:
            return False
        stream.highest += ahead
        return True

    def is_newest_rtcp(self, ssrc: int, index: int) -> bool:
        """Whether an authenticated SRTCP packet is later than all before it of its sender; notes it."""
        known = self._rtcp_indices.get(ssrc, -1)
        if index <= known or (known < 0 and len(self._rtcp_indices) >= _MAX_STREAMS):
            return False
        self._rtcp_indices[ssrc] = index
        return True

    def is_newest_record(self, number: int) -> bool:
        """Whether an authenticated DTLS record (epoch and sequence number, 64 bit) is later than all before it; notes it."""
        newest = number > self._highest_record
        self._highest_record = max(self._highest_record, number)
        return newest

    def destination(self, length: int, *, dtls: bool, now: float) -> tuple[Path, Address] | None:
        """Where to send ``length`` bytes: (path, relay); None while there is no path or its allowance is used up."""
        if dtls and not self.handshake_done:
            self._rotate_if_unanswered(now)
        if self.selected is None:
            return None
        state = self._paths[self.selected]
        if not state.proven and state.bytes_out + length > _AMPLIFICATION * state.bytes_in:
            return None
        state.bytes_out += length
        return self.selected, state.relay

    def _rotate_if_unanswered(self, now: float) -> None:
        unanswered = not self._dtls_seen and now - self._dtls_sent_at >= _ROTATE_AFTER_S
        if unanswered and self._dtls_sent_at > float("-inf") and self.selected is not None:
            paths = list(self._paths)
            self.selected = paths[(paths.index(self.selected) + 1) % len(paths)]
        self._dtls_sent_at = now

    def _make_room(self) -> Path | None:
        if len(self._paths) < MAX_PATHS:
            return None
        others = (path for path in self._paths if path != self.selected)
        stalest = min(others, key=lambda p: max(self._paths[p].checked_at, self._paths[p].authenticated_at))
        del self._paths[stalest]
        return stalest

    def _is_silent(self, now: float) -> bool:
        if not self.handshake_done or self.selected is None:
            return False
        state = self._paths[self.selected]
        silent_s = now - state.authenticated_at
        if self._media_interval_s < _SILENCE_WHILE_SENDING_S:
            return silent_s >= _SILENCE_WHILE_SENDING_S
        return min(silent_s, now - state.checked_at) >= _SILENCE_WHILE_IDLE_S

    def _move(self, path: Path) -> None:
        self.selected = path
        self.moves += 1
        self._media_interval_s = float("inf")
