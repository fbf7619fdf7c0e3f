"""WHIP over real HTTP (RFC 9725): what is made, changed and ended, and every refusal of a body."""

import asyncio

import pytest

from tests.transceiver.checks import RELAY, client, write_check
from tests.transceiver.offers import (
    CHROMIUM,
    CHROMIUM_AUDIO,
    CHROMIUM_DATA,
    CHROMIUM_VIDEO,
    DATA_FIRST,
    FIREFOX,
    VIDEO_FIRST,
    VOICE,
    aiortc_offer,
    offer,
    without,
)
from tests.transceiver.processes import CLUSTER_ID, KEYS, Process, serving
from tests.transceiver.whip import (
    RESTART,
    TRICKLE,
    UNKNOWN_TOKEN,
    call_on,
    only_session,
    patched,
    posted,
    sections,
    values,
)
from transceiver.ice import Credential
from transceiver.offer import MAX_SDP_BYTES
from wire.keys import FleetKey, KeyRing
from wire.session_token import SessionToken, open_token_untrusted, seal_token
from wire.spp import encode_header
from wire.ufrag import derive_ice_pwd, open_ufrag_untrusted

pytestmark = pytest.mark.usefixtures("no_task_left")


# POST


@pytest.mark.parametrize("sdp", [VOICE, CHROMIUM, FIREFOX], ids=["Chromium", "with video", "Firefox"])
async def test_offer_is_answered_201_with_location_and_etag(process: Process, sdp: str) -> None:
    response = await posted(process.public, sdp)
    assert response.status == 201
    assert response.content_type == "application/sdp"
    etag = response.headers["ETag"]
    assert etag.startswith('"')
    assert etag.endswith('"')
    assert len(etag) > 10
    token = response.headers["Location"].removeprefix("/whip/sessions/")
    assert open_token_untrusted(KEYS, token).owner == process.sessions.settings.internal_http
    assert len(process.sessions) == 1


async def test_answer_names_the_vips_only(process: Process) -> None:
    answer = await (await posted(process.public, await aiortc_offer())).text()
    candidates = {(words[4], words[5], words[7]) for words in map(str.split, values(answer, "candidate"))}
    assert candidates == {("203.0.113.10", "3478", "host"), ("2001:db8::10", "3478", "host")}
    assert "a=end-of-candidates" in answer.splitlines()
    assert "127.0.0.1" not in answer


async def test_first_vip_is_preferred(process: Process) -> None:
    answer = await (await posted(process.public)).text()
    priorities = {words[4]: int(words[3]) for words in map(str.split, values(answer, "candidate"))}
    assert priorities["203.0.113.10"] > priorities["2001:db8::10"]


async def test_answer_is_lite_and_active(process: Process) -> None:
    answer = await (await posted(process.public)).text()
    assert "a=ice-lite" in answer.splitlines()
    assert values(answer, "setup") == ["active", "active"]


@pytest.mark.parametrize(("offered", "answered"), [("active", "passive"), ("passive", "active")])
async def test_setup_is_the_counterpart_of_the_offer(process: Process, offered: str, answered: str) -> None:
    sdp = VOICE.replace("setup:actpass", f"setup:{offered}")
    answer = await (await posted(process.public, sdp)).text()
    assert set(values(answer, "setup")) == {answered}


async def test_sealed_ufrag_opens_to_the_owner(process: Process) -> None:
    answer = await (await posted(process.public)).text()
    [server_ufrag] = set(values(answer, "ice-ufrag"))
    hint = open_ufrag_untrusted(KEYS, server_ufrag)
    assert hint.transceiver == process.address
    assert hint.cluster_id == CLUSTER_ID
    assert set(values(answer, "ice-pwd")) == {derive_ice_pwd(KEYS, server_ufrag)}


async def test_check_with_the_credentials_of_the_answer_is_accepted(process: Process) -> None:
    answer = await (await posted(process.public)).text()
    credential = Credential(values(answer, "ice-ufrag")[0], values(answer, "ice-pwd")[0], "EsAw")
    process.mux.receive_untrusted(encode_header(*client(1)) + write_check(credential), RELAY)
    assert process.mux.counters["checks"] == 1


async def test_ufrag_of_a_section_goes_before_that_of_the_session(process: Process) -> None:
    """RFC 8839 section 5.4: session-level ICE credentials are defaults."""
    sdp = offer(
        CHROMIUM_AUDIO, CHROMIUM_DATA, session="a=ice-ufrag:dflt\na=ice-pwd:defaultPasswordOfTheSession\n"
    )
    await call_on(process, sdp)
    assert only_session(process).agent.credential.client_ufrag == "EsAw"


@pytest.mark.parametrize(
    ("sdp", "directions"),
    [
        pytest.param(CHROMIUM, ["sendrecv", "inactive"], id="audio, video"),
        pytest.param(VIDEO_FIRST, ["inactive", "sendrecv"], id="video, audio"),
        pytest.param(
            offer(CHROMIUM_AUDIO, CHROMIUM_AUDIO.replace("a=mid:0", "a=mid:1")),
            ["sendrecv", "inactive"],
            id="two of audio",
        ),
    ],
)
async def test_all_but_the_first_audio_is_answered_inactive(
    process: Process, sdp: str, directions: list[str]
) -> None:
    answer = await (await posted(process.public, sdp)).text()
    media = [lines for lines in sections(answer) if lines[0].startswith(("audio", "video"))]
    known = {"sendrecv", "sendonly", "recvonly", "inactive"}
    assert [line[2:] for lines in media for line in lines if line[2:] in known] == directions


@pytest.mark.parametrize(
    "sdp",
    [VOICE, CHROMIUM, VIDEO_FIRST, DATA_FIRST],
    ids=["audio", "audio, video", "video, audio", "data, audio"],
)
async def test_session_waits_for_its_client_whatever_comes_first(process: Process, sdp: str) -> None:
    await call_on(process, sdp)
    await asyncio.sleep(0.05)
    assert len(process.sessions) == 1
    session = only_session(process)
    assert session.describe()["state"] in ("new", "connecting")
    assert not session.peer.connection._closed.is_set()


async def test_sessions_have_names_and_credentials_of_their_own(process: Process) -> None:
    answers = [await posted(process.public) for _ in range(5)]
    assert len({answer.headers["Location"] for answer in answers}) == 5
    assert len({answer.headers["ETag"] for answer in answers}) == 5
    assert len({values(await answer.text(), "ice-ufrag")[0] for answer in answers}) == 5


@pytest.mark.parametrize(
    ("sdp", "status"),
    [
        pytest.param("hello", 400, id="no SDP"),
        pytest.param("", 400, id="empty"),
        pytest.param(without(VOICE, "a=fingerprint"), 422, id="no DTLS"),
        pytest.param(without(VOICE, "a=group"), 422, id="no BUNDLE"),
        pytest.param(offer(CHROMIUM_DATA), 422, id="no audio"),
        pytest.param(
            VOICE.replace("opus/48000/2", "opus/16000/2"), 201, id="Opus at a foreign rate beside PCMU"
        ),
        pytest.param(
            offer(
                without(
                    CHROMIUM_AUDIO.replace("opus/48000/2", "opus/16000/2"),
                    *(f"a=rtpmap:{payload} " for payload in (63, 9, 0, 8)),
                    "a=fmtp",
                )
            ),
            422,
            id="Opus at a foreign rate alone",
        ),
        pytest.param(
            offer(CHROMIUM_AUDIO, CHROMIUM_VIDEO.replace("VP8", "VP9").replace("H264", "H265")),
            422,
            id="no common video codec",
        ),
        pytest.param(VOICE.replace("BUNDLE 0 2", "BUNDLE ghost 0 2"), 422, id="BUNDLE led by an unknown mid"),
    ],
)
async def test_offer_that_cannot_be_answered_leaves_no_session(
    process: Process, sdp: str, status: int
) -> None:
    response = await posted(process.public, sdp)
    assert response.status == status, await response.text()
    assert len(process.sessions) == (1 if status == 201 else 0)


async def test_refusal_says_what_to_change(process: Process) -> None:
    response = await posted(process.public, without(VOICE, "a=rtcp-mux"))
    assert response.status == 422
    assert "rtcpMuxPolicy" in await response.text()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        pytest.param("application/json", VOICE.encode(), 415, id="JSON"),
        pytest.param("text/plain", VOICE.encode(), 415, id="text"),
        pytest.param("application/sdp; charset=utf-8", VOICE.encode(), 201, id="with charset"),
        pytest.param("application/sdp", b"v=0\r\n\xff\xfe", 400, id="not UTF-8"),
        pytest.param("application/sdp; charset=klingon", VOICE.encode(), 415, id="charset of no kind"),
        pytest.param("application/sdp; charset=hex", VOICE.encode(), 415, id="charset that is no text"),
        pytest.param(
            "application/sdp; charset=undefined", VOICE.encode(), 415, id="charset that never decodes"
        ),
        pytest.param(
            "application/sdp; charset=punycode", b"9" * 100, 415, id="charset that takes seconds to decode"
        ),
        pytest.param("application/sdp", b"v" * (MAX_SDP_BYTES + 1), 413, id="body too long"),
        pytest.param("application/sdp", b"v" * (1 << 20), 413, id="1 MB"),
    ],
)
async def test_body_is_judged_before_its_sdp(
    process: Process, content_type: str, body: bytes, status: int
) -> None:
    response = await process.public.post("/whip", data=body, headers={"Content-Type": content_type})
    assert response.status == status
    if status == 415:
        assert response.headers["Accept"] == "application/sdp"


async def test_full_process_answers_503_until_a_call_ends() -> None:
    async with serving(max_sessions=1) as process:
        location, _ = await call_on(process)
        response = await posted(process.public)
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert (await process.public.delete(location)).status == 200
        assert (await posted(process.public)).status == 201


async def test_draining_process_refuses_new_calls_and_serves_the_old(process: Process) -> None:
    location, etag = await call_on(process)
    assert (await process.public.get("/healthz")).status == 200
    process.sessions.draining = True
    response = await posted(process.public)
    assert response.status == 503
    assert "draining" in await response.text()
    assert int(response.headers["Retry-After"]) > 0
    assert (await process.public.get("/healthz")).status == 503
    assert (await patched(process.public, location, etag)).status == 204
    assert (await process.public.delete(location)).status == 200


# PATCH


async def test_trickle_is_204_and_changes_nothing(process: Process) -> None:
    location, etag = await call_on(process)
    before = only_session(process).agent.credential
    for _ in range(2):
        response = await patched(process.public, location, etag)
        assert response.status == 204
        assert response.headers["ETag"] == etag
        assert await response.read() == b""
    assert only_session(process).agent.credential == before


@pytest.mark.parametrize("any_etag", [False, True], ids=["with ETag", "with *"])
async def test_ice_restart_is_200_with_new_etag_and_credentials(process: Process, any_etag: bool) -> None:
    location, etag = await call_on(process)
    old = only_session(process).agent.credential
    response = await patched(process.public, location, "*" if any_etag else etag, RESTART)
    fragment = await response.text()
    assert response.status == 200
    assert response.content_type == "application/trickle-ice-sdpfrag"
    assert response.headers["ETag"] != etag
    new = Credential(values(fragment, "ice-ufrag")[0], values(fragment, "ice-pwd")[0], "Fresh")
    assert only_session(process).agent.credential == new
    assert new.server_ufrag != old.server_ufrag
    assert open_ufrag_untrusted(KEYS, new.server_ufrag).transceiver == process.address
    assert "a=ice-lite" in fragment.splitlines()
    assert {words.split()[4] for words in values(fragment, "candidate")} == {"203.0.113.10", "2001:db8::10"}
    for credential in (old, new):
        process.mux.receive_untrusted(encode_header(*client(1)) + write_check(credential), RELAY)
    assert process.mux.counters["checks"] == 2


async def test_stale_etag_is_412_with_the_current_one(process: Process) -> None:
    location, etag = await call_on(process)
    current = (await patched(process.public, location, etag, RESTART)).headers["ETag"]
    for fragment in (TRICKLE, RESTART.replace("Fresh", "Later")):
        response = await patched(process.public, location, etag, fragment)
        assert response.status == 412
        assert response.headers["ETag"] == current
    assert (await patched(process.public, location, current, RESTART)).status == 204


async def test_one_of_two_restarts_at_once_wins(process: Process) -> None:
    location, etag = await call_on(process)
    answers = await asyncio.gather(
        *(
            patched(process.public, location, etag, RESTART.replace("Fresh", name))
            for name in ("Left", "Right")
        )
    )
    assert sorted(answer.status for answer in answers) == [200, 412]


async def test_missing_if_match_is_428(process: Process) -> None:
    location, _ = await call_on(process)
    response = await patched(process.public, location, None)
    assert response.status == 428
    assert "If-Match" in await response.text()


@pytest.mark.parametrize(
    ("fragment", "status"),
    [
        pytest.param("", 400, id="empty"),
        pytest.param("a=end-of-candidates\r\n", 400, id="no ufrag"),
        pytest.param("a=ice-ufrag:Fresh\r\n", 422, id="new ufrag without password"),
        pytest.param("a=ice-ufrag:Fresh\r\na=ice-pwd:short\r\n", 422, id="short password"),
        pytest.param(RESTART.replace("Fresh", "Fr sh"), 422, id="ufrag that is no ice-chars"),
        pytest.param("a=ice-ufrag:\r\na=ice-pwd:anotherPasswordOfTheClient\r\n", 400, id="empty ufrag"),
        pytest.param("a=ice-ufrag:EsAw\r\n" + "x" * MAX_SDP_BYTES, 413, id="too long"),
    ],
)
async def test_bad_fragment_is_refused_and_restarts_nothing(
    process: Process, fragment: str, status: int
) -> None:
    location, etag = await call_on(process)
    before = only_session(process).agent.credential
    assert (await patched(process.public, location, etag, fragment)).status == status
    assert only_session(process).agent.credential == before


async def test_fragment_of_another_type_is_415(process: Process) -> None:
    location, etag = await call_on(process)
    response = await patched(process.public, location, etag, **{"Content-Type": "application/sdp"})
    assert response.status == 415
    assert response.headers["Accept"] == "application/trickle-ice-sdpfrag"


# DELETE and 404


async def test_check_after_the_hang_up_finds_no_session(process: Process) -> None:
    location, _ = await call_on(process)
    check = encode_header(*client(1)) + write_check(only_session(process).agent.credential)
    process.mux.receive_untrusted(check, RELAY)
    assert (await process.public.delete(location)).status == 200
    process.mux.receive_untrusted(check, RELAY)
    assert process.mux.counters == {"checks": 1, "unknown_ufrag": 1}


async def test_delete_hangs_up_and_a_second_finds_nothing(process: Process) -> None:
    location, etag = await call_on(process)
    assert (await process.public.delete(location)).status == 200
    assert len(process.sessions) == 0
    assert (await process.public.delete(location)).status == 404
    assert (await patched(process.public, location, etag)).status == 404


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("x", id="too short"),
        pytest.param(UNKNOWN_TOKEN[:-1] + ("A" if UNKNOWN_TOKEN[-1] != "A" else "B"), id="forged"),
        pytest.param(
            seal_token(KeyRing([FleetKey(1, bytes(32))], 1), SessionToken(RELAY, bytes(8))),
            id="another fleet",
        ),
        pytest.param("%00" * 46, id="zeros"),
        pytest.param("%C3%A9" * 46, id="not ASCII"),
    ],
)
async def test_token_of_no_session_is_404(process: Process, token: str) -> None:
    location = f"/whip/sessions/{token}"
    assert (await process.public.delete(location)).status == 404
    assert (await patched(process.public, location, "*", RESTART)).status == 404


async def test_token_of_an_unknown_session_of_ours_is_404(process: Process) -> None:
    token = seal_token(KEYS, SessionToken(process.sessions.settings.internal_http, bytes(8)))
    assert (await process.public.delete(f"/whip/sessions/{token}")).status == 404


async def test_ufrag_is_no_session_token(process: Process) -> None:
    await call_on(process)
    ufrag = only_session(process).agent.credential.server_ufrag
    for token in (ufrag.replace("/", "%2F"), ufrag.replace("+", "-").replace("/", "_")):
        assert (await process.public.delete(f"/whip/sessions/{token}")).status == 404
    assert len(process.sessions) == 1


async def test_session_id_alone_is_no_session_token(process: Process) -> None:
    await call_on(process)
    session_id = only_session(process).session_id
    assert (await process.public.delete(f"/whip/sessions/{session_id.hex()}")).status == 404
