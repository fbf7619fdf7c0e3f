"""The exchange of WHIP over a WebSocket, for clients that keep one open anyway. JSON text messages:

    → {"type": "offer", "sdp": …}                     ← {"type": "answer", "sdp": …, "session": TOKEN, "etag": …}
    → {"type": "patch", "session": TOKEN,             ← {"type": "patched", "status": 204 or 200, "sdpfrag": …, "etag": …}
       "etag": …, "sdpfrag": …}
    → {"type": "hangup", "session": TOKEN}            ← {"type": "ended"}
                                                      ← {"type": "error", "status": …, "detail": …}

Closing the socket ends no call: signaling is not the call.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from transceiver.offer import MAX_SDP_BYTES
from transceiver.signaling.errors import SignalingError
from transceiver.signaling.resources import SessionResources
from wire.admin import decode_message_untrusted
from wire.errors import WireError

_PROTOCOL = "relayctl"
_HEARTBEAT_S = 20.0


async def serve_websocket(
    request: web.Request, resources: SessionResources, require_rate: Callable[[web.Request], None]
) -> web.WebSocketResponse:
    """Serve one socket until the client closes it."""
    socket = web.WebSocketResponse(
        protocols=(_PROTOCOL,), heartbeat=_HEARTBEAT_S, max_msg_size=2 * MAX_SDP_BYTES
    )
    await socket.prepare(request)
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"JSON text only")
            break
        try:
            require_rate(request)
            reply = await _answer(decode_message_untrusted(message.data.encode()), resources)
        except SignalingError as error:
            reply = {"type": "error", "status": error.status, "detail": str(error)}
        except (WireError, UnicodeError) as error:
            reply = {"type": "error", "status": 400, "detail": str(error)}
        await socket.send_json(reply)
    return socket


async def _answer(message: dict[str, Any], resources: SessionResources) -> dict[str, Any]:
    match message:
        case {"type": "offer", "sdp": str(sdp)}:
            token, answer = await resources.create(sdp)
            return {"type": "answer", "sdp": answer.body, "session": token, "etag": answer.headers["ETag"]}
        case {"type": "patch", "session": str(token), "sdpfrag": str(fragment)}:
            etag = message.get("etag")
            answer = await resources.change(token, etag if isinstance(etag, str) else None, fragment)
            if answer.status >= 400:
                raise SignalingError(answer.status, answer.body.strip())
            return {
                "type": "patched",
                "status": answer.status,
                "sdpfrag": answer.body,
                "etag": answer.headers.get("ETag"),
            }
        case {"type": "hangup", "session": str(token)}:
            answer = await resources.delete(token)
            if answer.status >= 400:
                raise SignalingError(answer.status, answer.body.strip())
            return {"type": "ended"}
    raise SignalingError(
        400, 'message is no "offer" (sdp), "patch" (session, etag, sdpfrag) or "hangup" (session)'
    )
