"""The HTTP applications of a transceiver process: the public one and the one for its siblings."""

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from transceiver.load_board import LoadBoard
from transceiver.offer import MAX_SDP_BYTES
from transceiver.sessions import Sessions
from transceiver.signaling.elsewhere import Elsewhere
from transceiver.signaling.errors import SignalingError
from transceiver.signaling.limits import RateLimit
from transceiver.signaling.resources import (
    INTERNAL_HEADER,
    SDP,
    SDP_FRAGMENT,
    Answer,
    SessionResources,
)
from transceiver.signaling.websocket import serve_websocket
from wire.keys import KeyRing

logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PAGE_POLICY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_SESSION_METHODS = "PATCH, DELETE, OPTIONS"


@dataclass(frozen=True, kw_only=True)
class SignalingSettings:
    """bearer_token: asked of every request that makes or changes a session; empty: none.

    origins: web origins other than our own whose pages may call (CORS).
    """

    bearer_token: str
    origins: tuple[str, ...]
    requests_per_s: float
    request_burst: int


class Signaling:
    """Handlers of both applications."""

    def __init__(
        self,
        sessions: Sessions,
        keys: KeyRing,
        settings: SignalingSettings,
        board: LoadBoard,
        elsewhere: Elsewhere,
    ) -> None:
        self._board = board
        self._keys = keys
        self._settings = settings
        self._limit = RateLimit(per_s=settings.requests_per_s, burst=settings.request_burst)
        self._failures = RateLimit(per_s=settings.requests_per_s, burst=settings.request_burst)
        self._resources = SessionResources(sessions, keys, board, elsewhere)

    def public_app(self) -> web.Application:
        """What clients reach: WHIP, WebSocket, page, health."""
        app = web.Application(client_max_size=MAX_SDP_BYTES, middlewares=[self._render_errors, self._guard])
        page = Path(str(files("transceiver") / "page"))
        app.router.add_get("/", self._page, allow_head=True)
        app.router.add_static("/page/", page)
        app.router.add_get("/healthz", self._health)
        app.router.add_post("/whip", self._create)
        app.router.add_options("/whip", self._options)
        app.router.add_get("/ws", self._websocket)
        self._add_sessions(app)
        app.on_response_prepare.append(self._add_headers)
        app.on_cleanup.append(self._cleanup)
        return app

    def internal_app(self) -> web.Application:
        """What the other transceiver processes reach: session resources, with the fleet's own credential."""
        app = web.Application(
            client_max_size=MAX_SDP_BYTES, middlewares=[self._render_errors, self._guard_internal]
        )
        app.router.add_post("/whip", self._create_here)
        self._add_sessions(app)
        return app

    def _add_sessions(self, app: web.Application) -> None:
        app.router.add_patch("/whip/sessions/{token}", self._change)
        app.router.add_delete("/whip/sessions/{token}", self._delete)
        app.router.add_options("/whip/sessions/{token}", self._options)

    # handlers

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(Path(str(files("transceiver") / "page" / "index.html")))

    async def _health(self, request: web.Request) -> web.Response:
        # Of the host, not of the process that happens to answer: a load balancer would take all of them away.
        if not self._board.takes_sessions:
            return web.Response(status=503, text="draining\n")
        return web.Response(text="ok\n")

    async def _create(self, request: web.Request) -> web.Response:
        return self._created(*await self._resources.create(await _read_text(request, SDP)))

    async def _create_here(self, request: web.Request) -> web.Response:
        token, answer = await self._resources.create_here(await _read_text(request, SDP))
        if request.transport is None or request.transport.is_closing():
            # We hung for so long that the offer was given to another; this call would hold a place for nobody.
            await self._resources.delete(token)
        return self._created(token, answer)

    def _created(self, token: str, answer: Answer) -> web.Response:
        response = _response(answer)
        response.headers["Location"] = f"/whip/sessions/{token}"
        return response

    async def _change(self, request: web.Request) -> web.Response:
        fragment = await _read_text(request, SDP_FRAGMENT)
        return _response(
            await self._resources.change(
                request.match_info["token"], request.headers.get("If-Match"), fragment
            )
        )

    async def _delete(self, request: web.Request) -> web.Response:
        return _response(await self._resources.delete(request.match_info["token"]))

    async def _options(self, request: web.Request) -> web.Response:
        # https://www.rfc-editor.org/rfc/rfc9725#section-4.2: Accept-Post tells what may be posted
        if request.match_info.get("token"):
            return web.Response(status=204, headers={"Allow": _SESSION_METHODS, "Accept-Patch": SDP_FRAGMENT})
        return web.Response(status=204, headers={"Allow": "POST, OPTIONS", "Accept-Post": SDP})

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        return await serve_websocket(request, self._resources, self._require_rate)

    async def _cleanup(self, app: web.Application) -> None:
        await self._resources.close()

    # what every request passes

    @web.middleware
    async def _render_errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except SignalingError as error:
            return web.Response(status=error.status, text=f"{error}\n", headers=error.headers)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return web.Response(status=error.status, text=f"{error.reason}\n", headers=allowed)
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=413, text=f"body exceeds {MAX_SDP_BYTES} bytes; no SDP is that long\n")

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self._require_origin(request)
        if request.method in ("POST", "PATCH", "DELETE") or request.path == "/ws":
            self._require_bearer(request)
            self._require_rate(request)
        return await handler(request)

    @web.middleware
    async def _guard_internal(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        shown = request.headers.get(INTERNAL_HEADER, "")
        if not any(_same(shown, known) for known in self._keys.internal_http()):
            raise SignalingError(403, "internal listener")
        return await handler(request)

    def _require_origin(self, request: web.Request) -> None:
        host = _hostname(f"//{request.host}")
        if not self._settings.bearer_token and not _is_loopback_name(host):
            # Without a token, a page of any site could call us under a name that it made resolve to loopback.
            raise SignalingError(403, f"without a bearer token only loopback names are served, not {host}")
        origin = request.headers.get("Origin")
        if origin and origin not in self._settings.origins and origin.partition("://")[2] != request.host:
            raise SignalingError(403, f"pages of {origin} may not call; add it to transceiver.origins")

    def _require_rate(self, request: web.Request) -> None:
        _take(self._limit, request)

    def _require_bearer(self, request: web.Request) -> None:
        wanted = self._settings.bearer_token
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        if request.path == "/ws" and not shown:
            # A browser's WebSocket cannot set headers: the token comes as a second subprotocol.
            scheme, shown = "bearer", _subprotocol_token(request)
        if wanted and not (scheme.lower() == "bearer" and _same(shown.strip(), wanted)):
            # A limit of their own: behind one NAT, somebody's wrong tokens must not use up the others' requests.
            _take(self._failures, request)
            raise SignalingError(
                401, "a bearer token is needed (Authorization: Bearer TOKEN)", {"WWW-Authenticate": "Bearer"}
            )

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.path == "/" or request.path.startswith("/page/"):
            response.headers.update(_PAGE_POLICY)
        origin = request.headers.get("Origin")
        if origin and origin in self._settings.origins:
            response.headers.update(
                {
                    "Access-Control-Allow-Origin": origin,
                    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, OPTIONS",
                    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
                    "Access-Control-Expose-Headers": "Location, ETag, Retry-After",
                    "Vary": "Origin",
                }
            )


def _take(limit: RateLimit, request: web.Request) -> None:
    wait_s = limit.take(request.remote or "0.0.0.0", time.monotonic())
    if wait_s:
        raise SignalingError(429, "too many requests", {"Retry-After": str(int(wait_s) + 1)})


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # an unfinished bracket
        return ""


def _same(shown: str, wanted: str) -> bool:
    """Compare credentials in constant time; a header may hold bytes that are no text."""
    return hmac.compare_digest(shown.encode(errors="surrogateescape"), wanted.encode())


def _is_loopback_name(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _subprotocol_token(request: web.Request) -> str:
    protocols = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    return next((p.removeprefix("bearer.") for p in protocols if p.startswith("bearer.")), "")


async def _read_text(request: web.Request, wanted: str) -> str:
    if request.content_type != wanted:
        raise SignalingError(415, f"Content-Type is {request.content_type}, not {wanted}", {"Accept": wanted})
    # Python knows charsets whose decoding takes seconds; SDP is UTF-8 (RFC 8866 section 5).
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise SignalingError(415, f"charset is {request.charset}, not utf-8", {"Accept": wanted})
    try:
        return (await request.read()).decode()
    except UnicodeDecodeError:
        raise SignalingError(400, "body is not UTF-8 text") from None


def _response(answer: Answer) -> web.Response:
    if not answer.body:
        return web.Response(status=answer.status, headers=answer.headers)
    return web.Response(
        status=answer.status, text=answer.body, content_type=answer.content_type, headers=answer.headers
    )
