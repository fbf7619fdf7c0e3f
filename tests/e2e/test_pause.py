"""A network that is away for ten seconds: calls go on afterwards, and nobody has signaled anything."""

import asyncio
import time
from pathlib import Path

import pytest

from bench.path import Direction, Kind, ThreadedPath
from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report
from tests.e2e.survival import echo_call, media_gaps_ms, on_path, only_session
from tests.host.deadline import until, wait_until
from transceiver.ice import CONSENT_S

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

PAUSE_S = 10.0
# What a call takes that must first find out: a consent check of either client, 6 s apart at most.
_AGAIN_S = 20.0
_ENOUGH = 50


def credentials(instance: Instance) -> str:
    """They would be others after an ICE restart."""
    return str(only_session(instance)["server_ufrag"])


def media(path: ThreadedPath) -> tuple[int, int]:
    """RTP datagrams that have left the path, up and down."""
    return path.counts(Direction.UP, Kind.RTP).forwarded, path.counts(Direction.DOWN, Kind.RTP).forwarded


def flows(path: ThreadedPath, before: tuple[int, int]) -> bool:
    return all(now - then >= _ENOUGH for now, then in zip(media(path), before, strict=True))


async def test_aiortc_call_goes_on_after_a_pause(own_network: Network | None, tmp_path: Path) -> None:
    with on_path(own_network, tmp_path / "s") as (instance, path):
        async with echo_call(instance) as call:
            await until(lambda: flows(path, (0, 0)), "media both ways")
            ufrag = credentials(instance)
            path.forget_gaps()
            path.pause(PAUSE_S)
            before = media(path)
            await asyncio.sleep(PAUSE_S)
            assert media(path) == before
            ended_at = time.monotonic()
            await until(lambda: flows(path, before), "media again", _AGAIN_S)
            again_s = time.monotonic() - ended_at
            # SCTP doubles its patience with every loss, up to 60 s
            answered = len((await call.report()).round_trips_ms)
            await until(
                lambda: len(call._report.round_trips_ms) > answered, "an echo of the data channel", 90
            )
            report = await call.report()
            assert (report.state, report.heard) == ("connected", True)
            assert report.silent_s < 5
            session = only_session(instance)
            assert (session["state"], session["server_ufrag"]) == ("connected", ufrag)
            assert PAUSE_S * 1000 <= session["longest_gap_ms"] < (PAUSE_S + _AGAIN_S) * 1000
            assert path.counts(Direction.DOWN).paused > 0
            print_report(
                "aiortc, pause of 10 s",
                {
                    f"{_ENOUGH} packets both ways after_s": round(again_s, 2),
                    "echo of the data channel after_s": round(time.monotonic() - ended_at, 1),
                    **media_gaps_ms(path),
                },
            )


def test_chromium_call_goes_on_after_a_pause(own_network: Network | None, tmp_path: Path) -> None:
    with (
        on_path(own_network, tmp_path / "s") as (instance, path),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
        ufrag = credentials(instance)
        path.forget_gaps()
        path.pause(PAUSE_S)
        before, heard = media(path), call.counts()
        call.page.wait_for_timeout(PAUSE_S * 1000)
        ended_at = time.monotonic()
        call.wait_for_more(heard, _AGAIN_S, received=_ENOUGH, sent=_ENOUGH)
        again_s = time.monotonic() - ended_at
        assert flows(path, before)
        call.wait_for_more(call.counts(), 90, echoes=1)
        echo_s = time.monotonic() - ended_at
        call.page.wait_for_selector('#state[data-state="connected"]', timeout=_AGAIN_S * 1000)
        call.wait_for_audio()
        session = only_session(instance)
        assert (session["state"], session["server_ufrag"]) == ("connected", ufrag)
        assert session["longest_gap_ms"] >= PAUSE_S * 1000
        print_report(
            "Chromium, pause of 10 s",
            {
                f"{_ENOUGH} packets both ways after_s": round(again_s, 2),
                "echo of the data channel after_s": round(echo_s, 1),
                **media_gaps_ms(path),
            },
        )


def test_page_restarts_ice_when_chromium_gives_up(own_network: Network | None, tmp_path: Path) -> None:
    with (
        on_path(own_network, tmp_path / "s") as (instance, path),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
        ufrag, heard = credentials(instance), call.counts()
        path.pause(float("inf"))
        paused_at = time.monotonic()
        wait_until(lambda: credentials(instance) != ufrag, "ICE restarted by the page", CONSENT_S)
        gave_up_s = time.monotonic() - paused_at
        assert call.page.get_attribute("#state", "data-state") == "reconnecting"
        path.pause(0)
        ended_at = time.monotonic()
        call.wait_for_more(heard, _AGAIN_S, received=_ENOUGH)
        again_s = time.monotonic() - ended_at
        call.page.wait_for_selector('#state[data-state="connected"]', timeout=_AGAIN_S * 1000)
        call.wait_for_audio()
        print_report(
            "Chromium, a pause until it gives up",
            {
                "ICE restarted after_s": round(gave_up_s, 1),
                f"{_ENOUGH} packets down, when there is a network again, after_s": round(again_s, 2),
            },
        )
