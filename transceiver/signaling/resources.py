"""Session resources (RFC 9725 section 4): create, change and delete, wherever the session lives.

A resource is named by a token that only the fleet can read. Any process takes a request; one for a session of another
process, of this host or another, is passed on to its owner over the internal HTTP listener. An offer goes to one process
after the other until one takes it.
"""

import contextlib
import time
from dataclasses import dataclass, field

import aiohttp

from transceiver.connection import vip_candidates
from transceiver.ice import Credential
from transceiver.load_board import LoadBoard
from transceiver.offer import MAX_SDP_BYTES, OfferError, check_credentials, parse_fragment_untrusted
from transceiver.session import Session
from transceiver.sessions import NoSuchSessionError, Sessions, SessionsFullError
from transceiver.signaling.elsewhere import Elsewhere
from transceiver.signaling.errors import SignalingError
from wire.address import Address
from wire.errors import WireError
from wire.keys import KeyRing
from wire.session_token import open_token_untrusted, seal_token

SDP = "application/sdp"
SDP_FRAGMENT = "application/trickle-ice-sdpfrag"
INTERNAL_HEADER = "X-Relayctl-Internal"
_RETRY_AFTER_S = 5
_PASSED_BACK = ("ETag", "Location", "Retry-After")
_PASS_ON_TIMEOUT = aiohttp.ClientTimeout(total=5)
# An offer may go to another, a request for a session may not. Within this time a process that hangs is found out.
_CREATE_TIMEOUT = aiohttp.ClientTimeout(total=2)
_MAX_TRIED_ELSEWHERE = 3
# What any process would say of it; all else is the process's own trouble.
_FAULTS_OF_THE_OFFER = (400, 413, 415, 422)
_SAID_OF_A_SESSION = {"Location", "ETag"}


@dataclass(frozen=True)
class Answer:
    """An HTTP response in the making; the WebSocket reads the same fields."""

    status: int
    body: str = ""
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)


class SessionResources:
    """The operations behind both signaling protocols. All raise SignalingError."""

    def __init__(self, sessions: Sessions, keys: KeyRing, board: LoadBoard, elsewhere: Elsewhere) -> None:
        self._sessions = sessions
        self._keys = keys
        self._board = board
        self._elsewhere = elsewhere
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections to other processes."""
        if self._http is not None:
            await self._http.close()

    async def create(self, offer: str) -> tuple[str, Answer]:
        """POST: (token, 201 with the SDP answer), made by the least loaded process of this host that takes it; by another
        host's where none does.
        """
        made = await self._create_on_this_host(offer) or await self._create_elsewhere(offer)
        if made is None:
            self._sessions.note_refused()
            raise SignalingError(
                503,
                "no transceiver takes a call now: all are full or draining; try again",
                {"Retry-After": str(_RETRY_AFTER_S)},
            )
        return made

    async def _create_on_this_host(self, offer: str) -> tuple[str, Answer] | None:
        tried: list[int] = []
        # Asked anew each time: one that made us wait may hang, and have been found out meanwhile.
        while (process := self._board.best(tried)) is not None:
            tried.append(process)
            if process == self._board.own:
                with contextlib.suppress(SessionsFullError):
                    return await self._create_here(offer)
                continue
            with self._board.passing_to(process) as port:
                made = await self._create_at(self._sessions.settings.internal_http._replace(port=port), offer)
            if made is not None:
                return made
        return None

    async def _create_elsewhere(self, offer: str) -> tuple[str, Answer] | None:
        tried: list[Address] = []
        while len(tried) < _MAX_TRIED_ELSEWHERE:
            transceiver = self._elsewhere.best(time.monotonic(), tried)
            if transceiver is None:
                break
            tried.append(transceiver)
            made = await self._create_at(transceiver, offer)
            if made is not None:
                self._elsewhere.note_given(transceiver, time.monotonic())
                return made
            self._elsewhere.note_failed(transceiver, time.monotonic())
        return None

    async def _create_at(self, transceiver: Address, offer: str) -> tuple[str, Answer] | None:
        """POST, by another process; None if it is not there, hangs, or takes no more."""
        try:
            answer = await self._pass_on(
                transceiver, "POST", "/whip", offer, {"Content-Type": SDP}, _CREATE_TIMEOUT
            )
        except SignalingError as error:
            if error.status in _FAULTS_OF_THE_OFFER:
                raise
            return None
        if answer is None:
            return None
        if answer.status in _FAULTS_OF_THE_OFFER:
            raise SignalingError(answer.status, answer.body.strip())
        if answer.status != 201 or not _SAID_OF_A_SESSION.issubset(answer.headers):
            return None
        return answer.headers.pop("Location").rpartition("/")[2], answer

    async def create_here(self, offer: str) -> tuple[str, Answer]:
        """POST, by this process."""
        try:
            return await self._create_here(offer)
        except SessionsFullError as error:
            raise SignalingError(503, f"{error}; try again", {"Retry-After": str(_RETRY_AFTER_S)}) from None

    async def _create_here(self, offer: str) -> tuple[str, Answer]:
        try:
            session, sdp = await self._sessions.create(offer)
        except OfferError as error:
            raise SignalingError(error.status, str(error)) from None
        return seal_token(self._keys, self._sessions.token(session)), Answer(201, sdp, SDP, _etag(session))

    async def change(self, token: str, if_match: str | None, fragment: str) -> Answer:
        """PATCH (RFC 9725 section 4.3): trickle ICE is 204, an ICE restart 200 with the new credentials."""
        session = await self._find(token, "PATCH", if_match, fragment)
        if isinstance(session, Answer):
            return session
        if if_match is None:
            raise SignalingError(428, 'If-Match is required: the last ETag, or "*" to restart ICE')
        if len(fragment) > MAX_SDP_BYTES:
            raise SignalingError(413, f"fragment exceeds {MAX_SDP_BYTES} bytes")
        # Some clients put the asterisk in quotes, though RFC 9110 section 13.1.1 does not.
        if not {tag.strip() for tag in if_match.split(",")} & {"*", '"*"', f'"{session.etag}"'}:
            raise SignalingError(
                412, "If-Match is not the current ETag: ICE was restarted since", _etag(session)
            )
        try:
            client_ufrag, client_pwd = parse_fragment_untrusted(fragment)
            if client_ufrag == session.agent.credential.client_ufrag:
                return Answer(204, headers=_etag(session))
            check_credentials(client_ufrag, client_pwd or "")
        except OfferError as error:
            raise SignalingError(error.status, str(error)) from None
        credential = self._sessions.restart_ice(session, client_ufrag)
        return Answer(200, self._restart_fragment(session, credential), SDP_FRAGMENT, _etag(session))

    def _restart_fragment(self, session: Session, credential: Credential) -> str:
        # https://www.rfc-editor.org/rfc/rfc8840#section-9: a pseudo m-line, then what belongs to its mid
        candidates = [
            f"a=candidate:{c.foundation} {c.component} {c.protocol} {c.priority} {c.ip} {c.port} typ {c.type}"
            for c in vip_candidates(self._sessions.hub.settings.vips)
        ]
        lines = [
            "a=ice-lite",
            "m=audio 9 UDP/TLS/RTP/SAVPF 0",
            f"a=mid:{session.mid}",
            f"a=ice-ufrag:{credential.server_ufrag}",
            f"a=ice-pwd:{credential.ice_pwd}",
            *candidates,
            "a=end-of-candidates",
            "",
        ]
        return "\r\n".join(lines)

    async def delete(self, token: str) -> Answer:
        """DELETE (RFC 9725 section 4.2): hang up."""
        session = await self._find(token, "DELETE")
        if isinstance(session, Answer):
            return session
        await self._sessions.close(session, "hung up")
        return Answer(200)

    async def _find(
        self, token: str, method: str, if_match: str | None = None, body: str | None = None
    ) -> Session | Answer:
        """The session if it is ours, else its owner's answer."""
        try:
            named = open_token_untrusted(self._keys, token)
        except WireError:
            raise SignalingError(404, "no such session") from None
        if named.owner == self._sessions.settings.internal_http:
            try:
                return self._sessions.get(named.session_id)
            except NoSuchSessionError as error:
                raise SignalingError(404, str(error)) from None
        headers = {"Content-Type": SDP_FRAGMENT}
        if if_match is not None:
            headers["If-Match"] = if_match
        answer = await self._pass_on(
            named.owner, method, f"/whip/sessions/{token}", body, headers, _PASS_ON_TIMEOUT
        )
        if answer is None:
            raise SignalingError(404, "no such session; the transceiver that owned it is gone")
        return answer

    async def _pass_on(
        self,
        owner: Address,
        method: str,
        path: str,
        body: str | None,
        headers: dict[str, str],
        patience: aiohttp.ClientTimeout,
    ) -> Answer | None:
        """The answer of another process, or None if it is not there. Raises SignalingError if it does not answer."""
        if self._http is None:
            self._http = aiohttp.ClientSession(headers={INTERNAL_HEADER: self._keys.sealing.internal_http})
        try:
            async with self._http.request(
                method, f"http://{owner}{path}", data=body, headers=headers, timeout=patience
            ) as response:
                kept = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
                return Answer(response.status, await response.text(), response.content_type, kept)
        except ValueError:  # a line end in a header, or half a surrogate in the body
            raise SignalingError(400, "If-Match or body holds characters that HTTP cannot carry") from None
        except aiohttp.ClientConnectorError:
            return None
        except (aiohttp.ClientError, TimeoutError):
            raise SignalingError(
                504,
                "the transceiver of this session does not answer; try again",
                {"Retry-After": str(_RETRY_AFTER_S)},
            ) from None


def _etag(session: Session) -> dict[str, str]:
    return {"ETag": f'"{session.etag}"'}
