"""The hub: no offer, however damaged, is answered with anything but an answer or an OfferError."""

import asyncio
from ipaddress import ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transceiver.checks import RELAY, VIP, Clock, client, write_check
from tests.transceiver.offers import CHROMIUM, CHROMIUM_AUDIO, CHROMIUM_DATA, FIREFOX, VOICE, offer, without
from tests.transceiver.processes import KEYS, serving
from tests.transceiver.waiting import until
from tests.transceiver.whip import call_on
from transceiver import hub as hub_module
from transceiver.backend.echo import EchoBackend
from transceiver.hub import Hub, HubSettings
from transceiver.mux import Mux
from transceiver.offer import OfferError
from transceiver.sessions import Sessions, SessionSettings
from wire.spp import encode_header

_LINES = sorted({line for sdp in (CHROMIUM, FIREFOX) for line in sdp.splitlines()})


@st.composite
def damaged_offers(draw: st.DrawFn) -> str:
    """An offer with a few lines gone, doubled, swapped with another's, or with a number changed."""
    lines = draw(st.sampled_from([CHROMIUM, VOICE, FIREFOX])).splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(1, len(lines) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, draw(st.sampled_from(_LINES)))
            case 2:
                lines[at] = draw(st.sampled_from(_LINES))
            case _:
                head, colon, value = lines[at].partition(":")
                digits = draw(st.integers(-1, 1 << 33))
                lines[at] = head + colon + f"{digits} {value.partition(' ')[2]}".rstrip()
    return "\r\n".join(lines) + "\r\n"


class _NoSocket:
    def sendto(self, datagram: bytes, address: tuple[str, int]) -> None:
        raise AssertionError("nothing is sent before a check")


async def _errors_of(sdp: str) -> list[str]:
    """What goes wrong in the background of making a session for ``sdp`` and ending it."""
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: errors.append(f"{context['message']}: {context.get('exception')}")
    )
    clock = Clock()
    mux = Mux(_NoSocket(), (ip_network("127.0.0.0/8"),), clock)  # type: ignore[arg-type]  # sends nothing
    hub = Hub(HubSettings(address=RELAY, vips=(VIP,), cluster_id=1), KEYS, mux, clock)
    sessions = Sessions(SessionSettings(internal_http=RELAY, max_sessions=1), hub, mux, EchoBackend)
    refusal: OfferError | None = None
    try:
        _, answer = await sessions.create(sdp)
        assert answer.startswith("v=0\r\n")
    except OfferError as error:
        refusal = error
    assert len(sessions) == len(hub) == (0 if refusal else 1)
    assert refusal is None or (refusal.status in (400, 422) and str(refusal))
    await sessions.close_all("over")
    assert len(sessions) == len(hub) == 0
    return errors


@settings(max_examples=60)
@given(damaged_offers())
@example(offer(CHROMIUM_AUDIO, without(CHROMIUM_DATA, "a=sctp-port", "a=max-message-size")))
@example(offer(CHROMIUM_AUDIO, CHROMIUM_DATA, CHROMIUM_DATA.replace("a=mid:2", "a=mid:3")))
@example(VOICE.replace("a=sctp-port:5000", "a=sctp-port:99999"))
@example(VOICE.replace("sha-256", "sha-1"))
@example(VOICE.replace("m=audio 9", "m=audio 0"))
@example(VOICE.replace("a=sendrecv", "a=inactive"))
@example(without(VOICE, "a=sendrecv"))
@example(VOICE.replace("BUNDLE 0 2", "BUNDLE ghost 0 2"))
@example(VOICE.replace("BUNDLE 0 2", "BUNDLE 0 2 ghost"))
def test_damaged_offer_is_answered_or_refused_and_leaves_nothing(sdp: str) -> None:
    assert asyncio.run(_errors_of(sdp)) == []


class _BackendThatFails(EchoBackend):
    async def close(self) -> None:
        await super().close()
        raise KeyError("of the backend")


async def test_session_whose_backend_fails_to_close_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    mux = Mux(_NoSocket(), (ip_network("127.0.0.0/8"),), clock)  # type: ignore[arg-type]  # sends nothing
    hub = Hub(HubSettings(address=RELAY, vips=(VIP,), cluster_id=1), KEYS, mux, clock)
    settings = SessionSettings(internal_http=RELAY, max_sessions=1)
    sessions = Sessions(settings, hub, mux, _BackendThatFails)
    session, _ = await sessions.create(VOICE)
    await sessions.close_all("over")
    assert session.peer.connectionState == "closed"
    assert len(sessions) == len(hub) == 0
    assert "KeyError: 'of the backend'" in caplog.text


async def test_session_that_checks_but_never_connects_is_ended_after_30_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "_SWEEP_INTERVAL_S", 0.01)
    clock = Clock()
    async with serving(clock=clock) as process:
        await call_on(process)
        (session,) = process.sessions._sessions.values()
        sweeping = asyncio.create_task(process.sessions.hub.sweep())
        for _ in range(3):
            process.mux.receive_untrusted(
                encode_header(*client(1)) + write_check(session.agent.credential), RELAY
            )
            clock.now += 9.9
            await asyncio.sleep(0.03)
            assert len(process.sessions) == 1
        clock.now += 0.4
        await until(lambda: len(process.sessions) == 0)
        sweeping.cancel()
        assert process.sessions.ended == {"never connected": 1}


async def test_session_whose_data_overruns_its_window_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_SWEEP_INTERVAL_S", 0.01)
    async with serving() as process:
        await call_on(process)
        (session,) = process.sessions._sessions.values()
        assert session.peer.sctp is not None
        session.peer.sctp._advertised_rwnd = -1
        sweeping = asyncio.create_task(process.sessions.hub.sweep())
        await until(lambda: len(process.sessions) == 0)
        sweeping.cancel()
        assert process.sessions.ended == {"data channel flooded": 1}


async def test_ice_restarts_leave_no_old_ufrag_in_the_index() -> None:
    async with serving() as process:
        await call_on(process)
        (session,) = process.sessions._sessions.values()
        for number in range(10):
            process.sessions.restart_ice(session, f"restart{number}")
            assert set(process.mux._by_ufrag) == set(session.agent.server_ufrags)
        assert len(process.mux._by_ufrag) == 4
    assert process.mux._by_ufrag == {}
