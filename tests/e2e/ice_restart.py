"""An ICE restart (RFC 8445 section 9) of a stock aiortc client, which has none of its own."""

import re
import secrets

import aiohttp
import aioice

from cli.call import EchoCall

_FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag", "If-Match": "*"}


async def restart_ice(call: EchoCall) -> None:
    """PATCH new credentials; every check from now on is made with them."""
    ufrag, password = secrets.token_hex(4), secrets.token_hex(16)
    url = (await call.report()).session_url
    body = f"a=ice-ufrag:{ufrag}\r\na=ice-pwd:{password}\r\n"
    async with (
        aiohttp.ClientSession() as http,
        http.patch(url, data=body, headers=_FRAGMENT) as response,
    ):
        fragment = await response.text()
        assert response.status == 200, fragment
    connection = _ice_of(call)
    connection._local_username, connection._local_password = ufrag, password
    connection.remote_username = _value(fragment, "ice-ufrag")
    connection.remote_password = _value(fragment, "ice-pwd")


def _ice_of(call: EchoCall) -> aioice.Connection:
    [transceiver] = call.peer.getTransceivers()
    connection = transceiver.sender.transport.transport._connection
    assert isinstance(connection, aioice.Connection)
    return connection


def _value(fragment: str, name: str) -> str:
    found = re.search(rf"^a={name}:(\S+)", fragment, re.MULTILINE)
    assert found, fragment
    return found[1]
