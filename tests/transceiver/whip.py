"""A WHIP client (RFC 9725) in pieces, and its twin over a WebSocket."""

import asyncio
import json
from typing import Any

from aiohttp import ClientResponse
from aiohttp.client import ClientWebSocketResponse

from tests.transceiver.checks import client
from tests.transceiver.offers import VOICE
from tests.transceiver.processes import KEYS, Client, Process
from transceiver.session import Session
from wire.session_token import SessionToken, seal_token

SDP = {"Content-Type": "application/sdp"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}
TRICKLE = "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\na=end-of-candidates\r\n"
RESTART = "a=ice-ufrag:Fresh\r\na=ice-pwd:anotherPasswordOfTheClient\r\n"
UNKNOWN_TOKEN = seal_token(KEYS, SessionToken(client(1).client, bytes(8)))


async def posted(http: Client, sdp: str = VOICE, **headers: str) -> ClientResponse:
    return await http.post("/whip", data=sdp.encode(), headers=SDP | headers)


async def call_on(process: Process, sdp: str = VOICE) -> tuple[str, str]:
    """(Location, ETag) of a new session."""
    response = await posted(process.public, sdp)
    assert response.status == 201, await response.text()
    return response.headers["Location"], response.headers["ETag"]


async def patched(
    http: Client, location: str, etag: str | None, fragment: str = TRICKLE, **headers: str
) -> ClientResponse:
    if_match = {} if etag is None else {"If-Match": etag}
    return await http.patch(location, data=fragment, headers=FRAGMENT | if_match | headers)


def values(sdp: str, name: str) -> list[str]:
    """Values of every ``a=name`` in an SDP text."""
    return [line.partition(":")[2] for line in sdp.splitlines() if line.startswith(f"a={name}:")]


def sections(sdp: str) -> list[list[str]]:
    """The lines of each media section."""
    return [part.splitlines() for part in ("\n" + sdp).split("\nm=")[1:]]


def only_session(process: Process) -> Session:
    [session] = process.sessions._sessions.values()
    return session


async def asked(socket: ClientWebSocketResponse, message: Any) -> dict[str, Any]:
    """The reply to one message."""
    await socket.send_str(message if isinstance(message, str) else json.dumps(message))
    reply: dict[str, Any] = await socket.receive_json(timeout=5)
    return reply


async def raw(http: Client, request: bytes) -> bytes:
    """The status line that ``request``, sent as it stands, is answered with."""
    reader, writer = await asyncio.open_connection(http.host, http.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()
        await writer.wait_closed()
