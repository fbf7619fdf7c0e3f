"""Session resources (RFC 9725 section 4): create, change and delete, wherever the session lives.

A resource is named by a token that only the fleet can read. Any process takes a request; one for a session of another
process is passed on to its owner over the internal HTTP listener.
"""

from dataclasses import dataclass, field

import aiohttp

from transceiver.hub import Hub, HubFullError, NoSuchSessionError, client_ufrag_of
from transceiver.offer import MAX_SDP_BYTES, OfferError
from transceiver.peer import vip_candidates
from transceiver.session import Session
from transceiver.signaling.errors import SignalingError
from wire.errors import WireError
from wire.keys import KeyRing
from wire.session_token import open_token_untrusted, seal_token

SDP = "application/sdp"
SDP_FRAGMENT = "application/trickle-ice-sdpfrag"
INTERNAL_HEADER = "X-Relayctl-Internal"
_RETRY_AFTER_S = 5
_PASS_ON_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True)
class Answer:
    """An HTTP response in the making; the WebSocket reads the same fields."""

    status: int
    body: str = ""
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)


class SessionResources:
    """The operations behind both signaling protocols. All raise SignalingError."""

    def __init__(self, hub: Hub, keys: KeyRing) -> None:
        self._hub = hub
        self._keys = keys
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections to other processes."""
        if self._http is not None:
            await self._http.close()

    async def create(self, offer: str) -> tuple[str, Answer]:
        """POST: (token, 201 with the SDP answer)."""
        try:
            session, sdp = await self._hub.create(offer)
        except OfferError as error:
            raise SignalingError(error.status, str(error)) from None
        except HubFullError as error:
            raise SignalingError(503, f"{error}; try again", {"Retry-After": str(_RETRY_AFTER_S)}) from None
        return seal_token(self._keys, self._hub.token(session)), Answer(201, sdp, SDP, _etag(session))

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
            client_ufrag = client_ufrag_of(fragment)
        except OfferError:
            raise SignalingError(400, "fragment has no a=ice-ufrag (RFC 8840 section 9)") from None
        if client_ufrag == session.agent.credential.client_ufrag:
            return Answer(204, headers=_etag(session))
        if "a=ice-pwd:" not in fragment:
            raise SignalingError(400, "fragment has a new a=ice-ufrag but no a=ice-pwd (RFC 8840 section 9)")
        credential = self._hub.restart_ice(session, client_ufrag)
        lines = ["a=ice-lite", f"a=ice-ufrag:{credential.server_ufrag}", f"a=ice-pwd:{credential.ice_pwd}"]
        for candidate in vip_candidates(self._hub.settings.vips):
            lines.append(
                f"a=candidate:{candidate.foundation} 1 udp {candidate.priority} {candidate.ip} {candidate.port} typ host"
            )
        lines += ["a=end-of-candidates", ""]
        return Answer(200, "\r\n".join(lines), SDP_FRAGMENT, _etag(session))

    async def delete(self, token: str) -> Answer:
        """DELETE (RFC 9725 section 4.2): hang up."""
        session = await self._find(token, "DELETE")
        if isinstance(session, Answer):
            return session
        await self._hub.close(session, "hung up")
        return Answer(200)

    async def _find(
        self, token: str, method: str, if_match: str | None = None, body: str | None = None
    ) -> Session | Answer:
        """The session if it is ours, else its owner's answer."""
        try:
            named = open_token_untrusted(self._keys, token)
        except WireError:
            raise SignalingError(404, "no such session") from None
        if named.owner == self._hub.settings.internal_http:
            try:
                return self._hub.get(named.session_id)
            except NoSuchSessionError as error:
                raise SignalingError(404, str(error)) from None
        url = f"http://{named.owner}/whip/sessions/{token}"
        headers = {INTERNAL_HEADER: self._keys.sealing.internal_http, "Content-Type": SDP_FRAGMENT}
        if if_match is not None:
            headers["If-Match"] = if_match
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=_PASS_ON_TIMEOUT)
        try:
            async with self._http.request(method, url, data=body, headers=headers) as response:
                passed_on = {"ETag": response.headers["ETag"]} if "ETag" in response.headers else {}
                return Answer(response.status, await response.text(), response.content_type, passed_on)
        except (aiohttp.ClientError, TimeoutError):
            raise SignalingError(404, "no such session; the transceiver that owned it is gone") from None


def _etag(session: Session) -> dict[str, str]:
    return {"ETag": f'"{session.etag}"'}
