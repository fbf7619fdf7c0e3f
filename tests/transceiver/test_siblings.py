"""Processes that work as one: session resources and new sessions pass between them over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.transceiver.offers import VOICE, without
from tests.transceiver.processes import KEYS, Process, serving, serving_siblings
from tests.transceiver.whip import (
    RESTART,
    TRICKLE,
    asked,
    call_on,
    only_session,
    patched,
    posted,
    raw,
    values,
)
from transceiver import load_board
from transceiver.offer import MAX_SDP_BYTES
from transceiver.signaling import resources
from transceiver.signaling.elsewhere import Transceiver
from transceiver.signaling.resources import INTERNAL_HEADER
from wire.keys import FleetKey, KeyRing
from wire.session_token import SessionToken, seal_token
from wire.ufrag import open_ufrag_untrusted

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_any_process_changes_a_session_of_another(process: Process, other: Process) -> None:
    location, etag = await call_on(process)
    trickled = await patched(other.public, location, etag)
    restarted = await patched(other.public, location, etag, RESTART)
    assert (trickled.status, restarted.status) == (204, 200)
    assert trickled.headers["ETag"] == etag
    assert restarted.headers["ETag"] not in ("", etag)
    assert restarted.content_type == "application/trickle-ice-sdpfrag"
    assert values(await restarted.text(), "ice-ufrag") == [
        only_session(process).agent.credential.server_ufrag
    ]
    assert (await patched(process.public, location, restarted.headers["ETag"], RESTART)).status == 204
    assert len(other.sessions) == 0


async def test_any_process_ends_a_session_of_another(process: Process, other: Process) -> None:
    location, _ = await call_on(process)
    assert (await other.public.delete(location)).status == 200
    assert len(process.sessions) == 0
    assert process.sessions.ended == {"hung up": 1}
    assert (await other.public.delete(location)).status == 404


@pytest.mark.parametrize(
    ("etag", "fragment", "status"),
    [
        pytest.param(None, TRICKLE, 428, id="no If-Match"),
        pytest.param('"stale"', TRICKLE, 412, id="stale"),
        pytest.param("*", "nothing", 400, id="no fragment"),
        pytest.param("*", "x" * (MAX_SDP_BYTES + 1), 413, id="too long"),
    ],
)
async def test_refusals_of_the_owner_are_passed_back(
    process: Process, other: Process, etag: str | None, fragment: str, status: int
) -> None:
    location, current = await call_on(process)
    response = await patched(other.public, location, etag, fragment)
    assert response.status == status
    if status == 412:
        assert response.headers["ETag"] == current


async def test_session_of_a_process_that_is_gone_is_404(process: Process) -> None:
    async with serving() as dead:
        location, etag = await call_on(dead)
    assert (await patched(process.public, location, etag)).status == 404
    response = await process.public.delete(location)
    assert response.status == 404
    assert "gone" in await response.text()


async def test_session_of_a_process_that_was_restarted_is_404(process: Process, other: Process) -> None:
    location, etag = await call_on(process)
    await process.restart_empty()
    assert (await patched(other.public, location, etag)).status == 404


@asynccontextmanager
async def silent_listener() -> AsyncIterator[int]:
    """The port of one that takes connections and says nothing."""
    connections: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: connections.append(writer), "127.0.0.1", 0)
    async with silent:
        yield silent.sockets[0].getsockname()[1]
        for writer in connections:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def refusing_listener(status: int) -> AsyncIterator[int]:
    """The port of one that answers every POST so."""

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/whip", refuse)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


async def test_session_of_a_process_that_hangs_is_504_and_not_called_over(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_PASS_ON_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    async with silent_listener() as port:
        owner = process.address._replace(port=port)
        location = f"/whip/sessions/{seal_token(KEYS, SessionToken(owner, bytes(8)))}"
        assert (await process.public.delete(location)).status == 504


@pytest.mark.parametrize(
    "shown",
    [None, "", "guess", pytest.param(KEYS.sealing.internal_http[:-1], id="all but one letter"), "\xe9"],
)
async def test_internal_listener_refuses_who_is_no_sibling(process: Process, shown: str | None) -> None:
    location, etag = await call_on(process)
    headers = {} if shown is None else {INTERNAL_HEADER: shown}
    responses = [
        await patched(process.internal, location, etag, **headers),
        await process.internal.delete(location, headers=headers),
        await process.internal.options(location, headers=headers),
        await process.internal.get("/healthz", headers=headers),
    ]
    assert [response.status for response in responses[:3]] == [403, 403, 403]
    assert responses[3].status in (403, 404)
    assert len(process.sessions) == 1


async def test_internal_listener_refuses_a_header_that_is_no_text(process: Process) -> None:
    location, _ = await call_on(process)
    request = f"DELETE {location} HTTP/1.1\r\nHost: x\r\n{INTERNAL_HEADER}: ".encode() + b"\xff\r\n\r\n"
    assert b" 403 " in await raw(process.internal, request)


async def test_internal_listener_asks_for_its_header_before_it_makes_a_session(process: Process) -> None:
    assert (await posted(process.internal)).status == 403
    assert len(process.sessions) == 0
    assert (await posted(process.internal, **{INTERNAL_HEADER: KEYS.sealing.internal_http})).status == 201
    assert len(process.sessions) == 1


async def test_siblings_with_a_retired_key_are_still_served() -> None:
    old, new = FleetKey(1, bytes(32)), FleetKey(2, bytes(range(32)))
    async with (
        serving(keys=KeyRing([old, new], 2)) as upgraded,
        serving(keys=KeyRing([old, new], 1)) as behind,
    ):
        location, _ = await call_on(upgraded)
        assert (await behind.public.delete(location)).status == 200


# new sessions go to the least loaded process


async def test_offer_goes_to_the_process_with_fewer_sessions() -> None:
    async with serving_siblings(2) as (first, second):
        locations = [(await posted(first.public)).headers["Location"] for _ in range(6)]
        assert (len(first.sessions), len(second.sessions)) == (3, 3)
        for location in locations:
            assert (await first.public.delete(location)).status == 200
        assert (len(first.sessions), len(second.sessions)) == (0, 0)


async def test_answer_of_a_sibling_is_its_own() -> None:
    async with serving_siblings(2) as (first, second):
        await call_on(first)
        response = await posted(first.public)
        assert (len(first.sessions), len(second.sessions)) == (1, 1)
        hint = open_ufrag_untrusted(KEYS, values(await response.text(), "ice-ufrag")[0])
        assert hint.transceiver == second.address
        assert response.content_type == "application/sdp"
        assert (
            await patched(first.public, response.headers["Location"], response.headers["ETag"])
        ).status == 204


async def test_offer_over_a_websocket_goes_to_the_process_with_fewer_sessions() -> None:
    async with serving_siblings(2) as (first, second):
        async with first.public.ws_connect("/ws") as socket:
            answers = [await asked(socket, {"type": "offer", "sdp": VOICE}) for _ in range(2)]
            assert (len(first.sessions), len(second.sessions)) == (1, 1)
            for answer in answers:
                assert await asked(socket, {"type": "hangup", "session": answer["session"]}) == {
                    "type": "ended"
                }


@pytest.mark.parametrize("sdp", ["hello", without(VOICE, "a=fingerprint")], ids=["no SDP", "no DTLS"])
async def test_refusal_of_a_sibling_is_passed_back(sdp: str) -> None:
    async with serving_siblings(2) as (first, second):
        await call_on(first)
        refused = await posted(first.public, sdp)
        assert refused.status in (400, 422)
        assert await refused.text() == await (await posted(second.public, sdp)).text()


async def test_draining_process_gives_its_offers_to_the_others() -> None:
    async with serving_siblings(2) as (first, second):
        first.sessions.draining = True
        assert [(await posted(first.public)).status for _ in range(3)] == [201, 201, 201]
        assert (len(first.sessions), len(second.sessions)) == (0, 3)
        second.sessions.draining = True
        response = await posted(first.public)
        assert response.status == 503
        assert "Retry-After" in response.headers


async def test_offer_is_kept_when_its_sibling_has_just_begun_to_drain() -> None:
    async with serving_siblings(2) as (first, second):
        await call_on(first)
        second.sessions._draining = True  # and the board does not say so yet
        assert (await posted(first.public)).status == 201
        assert (len(first.sessions), len(second.sessions)) == (2, 0)


async def test_offer_is_kept_when_its_sibling_is_gone() -> None:
    async with serving_siblings(2) as (first, second):
        await call_on(first)
        await second.internal.close()
        assert (await posted(first.public)).status == 201
        assert len(first.sessions) == 2


async def test_offer_that_cannot_be_passed_on_is_answered_and_the_socket_goes_on() -> None:
    async with serving_siblings(2) as (first, _):
        await call_on(first)
        async with first.public.ws_connect("/ws") as socket:
            reply = await asked(socket, {"type": "offer", "sdp": "v=0\r\n\ud800"})
            assert (reply["type"], reply["status"]) == ("error", 400)
            assert (await asked(socket, {"type": "offer", "sdp": VOICE}))["type"] == "answer"


async def test_full_processes_answer_503() -> None:
    async with serving_siblings(2, max_sessions=1) as (first, second):
        statuses = [(await posted(first.public)).status for _ in range(4)]
        assert statuses == [201, 201, 503, 503]
        assert (len(first.sessions), len(second.sessions)) == (1, 1)


# who drains, hangs or is gone gets none


def hang(process: Process) -> None:
    """As SIGSTOP for long: nothing is told any more. Its listener goes on, so that an offer to it would be seen."""
    process.publishing.cancel()
    process.board._cells[load_board._TOLD_AT, process.board.own] -= 2000


async def test_process_that_hangs_gets_no_offer() -> None:
    async with serving_siblings(2) as (first, second):
        hang(second)
        assert [(await posted(first.public)).status for _ in range(3)] == [201, 201, 201]
        assert (len(first.sessions), len(second.sessions)) == (3, 0)


async def test_offer_to_a_process_that_has_just_hung_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "_CREATE_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    async with serving_siblings(3) as (first, second, third), silent_listener() as port:
        first.supervisor.admit(first.board.own, False)
        first.supervisor.open(second.board.own, port)
        assert (await posted(first.public)).status == 201
        assert (len(first.sessions), len(second.sessions), len(third.sessions)) == (0, 0, 1)
        third.supervisor.admit(third.board.own, False)
        response = await posted(first.public)
        assert (response.status, response.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_trouble_of_a_sibling_is_not_passed_back(status: int) -> None:
    async with serving_siblings(2) as (first, second), refusing_listener(status) as port:
        await call_on(first)
        first.supervisor.open(second.board.own, port)
        assert (await posted(first.public)).status == 201
        assert len(first.sessions) == 2


async def test_health_is_that_of_the_host() -> None:
    async with serving_siblings(2, max_sessions=1) as (first, second):
        first.sessions.draining = True
        assert (await first.public.get("/healthz")).status == 200
        await call_on(first)
        assert (await posted(first.public)).status == 503
        assert (await first.public.get("/healthz")).status == 200, "full is no reason to take a host out"
        hang(second)
        assert (await first.public.get("/healthz")).status == 503


# transceivers of other hosts


def knows(process: Process, *others: Process | int) -> None:
    """Tell a process of transceivers of other hosts, or of mere ports, the least loaded first."""
    addresses = [
        other.internal_http if isinstance(other, Process) else process.internal_http._replace(port=other)
        for other in others
    ]
    process.elsewhere.update([Transceiver(address, n, 100) for n, address in enumerate(addresses)])


async def test_other_host_takes_what_this_one_does_not(process: Process, other: Process) -> None:
    knows(process, other)
    await call_on(process)
    assert (len(process.sessions), len(other.sessions)) == (1, 0)
    process.sessions.draining = True
    location, etag = await call_on(process)
    assert (len(process.sessions), len(other.sessions)) == (1, 1)
    assert (await patched(process.public, location, etag)).status == 204
    assert (await process.public.delete(location)).status == 200
    assert len(other.sessions) == 0


async def test_other_host_passes_nothing_on(process: Process, other: Process) -> None:
    knows(process, other)
    knows(other, process)
    process.sessions.draining = other.sessions.draining = True
    assert (await posted(process.public)).status == 503


async def test_trouble_of_other_hosts_leads_to_the_next_and_the_fourth_is_not_tried(
    process: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_CREATE_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    process.sessions.draining = True
    async with (
        silent_listener() as silent,
        refusing_listener(500) as broken,
        refusing_listener(403) as stranger,
    ):
        knows(process, silent, broken, other)
        assert (await posted(process.public)).status == 201
        knows(process, 1, stranger, other)
        assert (await posted(process.public)).status == 201
        assert len(other.sessions) == 2
        process.elsewhere._failed_until.clear()
        knows(process, silent, broken, 1, other)
        assert (await posted(process.public)).status == 503
        knows(process, silent, broken, 1, other)
        assert (await posted(process.public)).status == 201, "those that failed are left alone"


async def test_bad_offer_is_refused_as_here(process: Process, other: Process) -> None:
    here = await posted(process.public, without(VOICE, "a=fingerprint"))
    process.sessions.draining = True
    knows(process, other)
    there = await posted(process.public, without(VOICE, "a=fingerprint"))
    assert (there.status, await there.text()) == (here.status, await here.text())
