"""The exchange of WHIP over a WebSocket."""

from typing import Any

import pytest
from aiohttp import WSCloseCode, WSMsgType, WSServerHandshakeError

from tests.transceiver.offers import VOICE, without
from tests.transceiver.processes import Process, serving
from tests.transceiver.whip import RESTART, TRICKLE, UNKNOWN_TOKEN, asked, call_on, patched, values
from transceiver.offer import MAX_SDP_BYTES

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_call_over_a_websocket(process: Process) -> None:
    async with process.public.ws_connect("/ws", protocols=("relayctl",)) as socket:
        assert socket.protocol == "relayctl"
        answer = await asked(socket, {"type": "offer", "sdp": VOICE})
        assert answer["type"] == "answer"
        assert "a=ice-lite" in answer["sdp"].splitlines()
        session = {"session": answer["session"]}
        patch = {"type": "patch", **session, "etag": answer["etag"], "sdpfrag": TRICKLE}
        assert (await asked(socket, patch))["status"] == 204
        restarted = await asked(socket, patch | {"sdpfrag": RESTART})
        assert restarted["type"] == "patched"
        assert restarted["status"] == 200
        assert values(restarted["sdpfrag"], "ice-ufrag") != values(answer["sdp"], "ice-ufrag")[:1]
        assert restarted["etag"] != answer["etag"]
        assert (await asked(socket, patch))["status"] == 412
        assert await asked(socket, {"type": "hangup", **session}) == {"type": "ended"}
        assert (await asked(socket, {"type": "hangup", **session}))["status"] == 404
    assert len(process.sessions) == 0


async def test_session_outlives_its_websocket_and_is_open_to_whip(process: Process) -> None:
    async with process.public.ws_connect("/ws") as socket:
        answer = await asked(socket, {"type": "offer", "sdp": VOICE})
    assert len(process.sessions) == 1
    location = f"/whip/sessions/{answer['session']}"
    assert (await patched(process.public, location, answer["etag"])).status == 204


async def test_session_of_another_process_over_a_websocket(process: Process, other: Process) -> None:
    location, etag = await call_on(process)
    session = {"session": location.rpartition("/")[2]}
    async with other.public.ws_connect("/ws") as socket:
        patch = {"type": "patch", **session, "sdpfrag": RESTART}
        assert (await asked(socket, patch))["status"] == 428
        assert (await asked(socket, patch | {"etag": '"stale"'}))["status"] == 412
        assert (await asked(socket, patch | {"etag": etag}))["status"] == 200
        assert await asked(socket, {"type": "hangup", **session}) == {"type": "ended"}
    assert len(process.sessions) == 0


@pytest.mark.parametrize(
    ("message", "status"),
    [
        pytest.param("hello", 400, id="no JSON"),
        pytest.param("[]", 400, id="no object"),
        pytest.param("{}", 400, id="no type"),
        pytest.param("[" * 50_000, 400, id="deep"),
        pytest.param({"type": "offer"}, 400, id="offer without SDP"),
        pytest.param({"type": "offer", "sdp": 1}, 400, id="SDP of another type"),
        pytest.param({"type": "offer", "sdp": "hello"}, 400, id="no SDP"),
        pytest.param({"type": "offer", "sdp": without(VOICE, "a=fingerprint")}, 422, id="no DTLS"),
        pytest.param({"type": "offer", "sdp": "v=0\r\n" + "x" * MAX_SDP_BYTES}, 400, id="SDP too long"),
        pytest.param({"type": "offer", "sdp": "v=0\r\n\ud800"}, 422, id="lone surrogate in SDP"),
        pytest.param({"type": "hangup", "session": "x"}, 404, id="no token"),
        pytest.param({"type": "hangup", "session": "\ud800" * 46}, 404, id="lone surrogates as token"),
        pytest.param({"type": "patch", "session": UNKNOWN_TOKEN}, 400, id="patch without fragment"),
    ],
)
async def test_bad_message_is_answered_and_the_socket_goes_on(
    process: Process, message: Any, status: int
) -> None:
    async with process.public.ws_connect("/ws") as socket:
        reply = await asked(socket, message)
        assert (reply["type"], reply["status"]) == ("error", status)
        assert reply["detail"]
        assert (await asked(socket, {"type": "offer", "sdp": VOICE}))["type"] == "answer"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"etag": "*\r\nX: y"}, id="line end in etag"),
        pytest.param({"etag": "\ud800"}, id="lone surrogate in etag"),
        pytest.param({"etag": "*", "sdpfrag": "\ud800" + RESTART}, id="lone surrogate in fragment"),
        pytest.param({"etag": 7}, id="etag of another type"),
    ],
)
async def test_bad_patch_of_a_session_elsewhere_is_answered_and_the_socket_goes_on(
    process: Process, other: Process, change: dict[str, Any]
) -> None:
    location, _ = await call_on(process)
    patch = {"type": "patch", "session": location.rpartition("/")[2], "sdpfrag": RESTART}
    async with other.public.ws_connect("/ws") as socket:
        reply = await asked(socket, patch | change)
        assert reply["type"] == "error"
        assert 400 <= reply["status"] < 500
        assert (await asked(socket, {"type": "offer", "sdp": VOICE}))["type"] == "answer"


async def test_message_over_the_limit_closes_the_socket(process: Process) -> None:
    async with process.public.ws_connect("/ws") as socket:
        await socket.send_str("x" * (2 * MAX_SDP_BYTES + 1))
        message = await socket.receive(timeout=5)
        assert message.type is WSMsgType.CLOSE
        assert socket.close_code == 1009


async def test_messages_over_the_rate_are_answered_429() -> None:
    async with serving(request_burst=3) as process:
        async with process.public.ws_connect("/ws") as socket:
            statuses = [(await asked(socket, {}))["status"] for _ in range(4)]
    assert statuses == [400, 400, 429, 429]


async def test_full_process_says_so_over_a_websocket() -> None:
    async with serving(max_sessions=0) as process:
        async with process.public.ws_connect("/ws") as socket:
            assert (await asked(socket, {"type": "offer", "sdp": VOICE}))["status"] == 503


async def test_bearer_token_of_a_websocket_comes_as_a_subprotocol() -> None:
    async with serving(bearer_token="secret") as process:
        async with process.public.ws_connect("/ws", protocols=("relayctl", "bearer.secret")) as socket:
            assert socket.protocol == "relayctl"
        for protocols in ((), ("relayctl",), ("relayctl", "bearer.wrong"), ("relayctl", "secret")):
            with pytest.raises(WSServerHandshakeError) as refusal:
                await process.public.ws_connect("/ws", protocols=protocols)
            assert refusal.value.status == 401


async def test_message_that_is_no_text_closes_the_socket(process: Process) -> None:
    async with process.public.ws_connect("/ws") as socket:
        await socket.send_bytes(bytes(1000))
        closed = await socket.receive(2)
        assert closed.type is WSMsgType.CLOSE
        assert closed.data == WSCloseCode.UNSUPPORTED_DATA
