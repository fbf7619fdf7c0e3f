"""ICE restarts of running calls: media goes on, and the credentials from before are over after half a minute."""

import time
from pathlib import Path

import pytest

from bench.path import Direction
from tests.chaos.live_calls import live_calls
from tests.e2e.chromium import PageCall, page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, running, wait_until
from tests.e2e.survival import media_gaps_ms, on_path, only_session

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

CALLS = 20
# transceiver.ice: what was under way with the old credentials may still arrive.
_OLD_CREDENTIALS_S = 30
# Of aioice, at most.
_CHECK_INTERVAL_S = 6
_LOCAL_UFRAG = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    return stats.find(s => s.type === "transport").iceLocalUsernameFragment;
}"""


def checks_of(instance: Instance) -> dict[str, int]:
    """Checks that transceivers answered, and those with credentials that are none (any more)."""
    counted = [process["datagrams"] for process in instance.status()["transceivers"]["processes"]]
    return {
        name: sum(datagrams.get(name, 0) for datagrams in counted)
        for name in ("checks", "check_username", "check_integrity", "unknown_ufrag")
    }


def ufrags_of(instance: Instance, call: PageCall) -> tuple[str, str]:
    """The transceiver's and Chromium's."""
    return only_session(instance)["server_ufrag"], str(call.page.evaluate(_LOCAL_UFRAG))


def refused(instance: Instance) -> int:
    checks = checks_of(instance)
    return checks["check_username"] + checks["check_integrity"] + checks["unknown_ufrag"]


def test_chromium_call_goes_on_over_an_ice_restart(own_network: Network | None, tmp_path: Path) -> None:
    with (
        on_path(own_network, tmp_path / "s") as (instance, path),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
        before, used = call.counts(), [ufrags_of(instance, call)]
        path.forget_gaps()
        for clicks in (1, 1, 1, 2):
            heard = call.counts()
            call.page.click("#restart", click_count=clicks)

            def both_are_new() -> bool:
                pairs = zip(ufrags_of(instance, call), *used, strict=True)
                return all(new not in old for new, *old in pairs)

            wait_until(both_are_new, 20, "new credentials on both sides")
            used.append(ufrags_of(instance, call))
            call.wait_for_more(heard, received=100, sent=100, echoes=4)
        gaps = media_gaps_ms(path)
        call.page.wait_for_timeout(_OLD_CREDENTIALS_S * 1000)
        call.wait_for_more(call.counts(), received=50, sent=50, echoes=4, answers=3)
        now, session = call.counts(), only_session(instance)
        assert refused(instance) == 0
        assert (now["lost_down"], now["lost_up"]) == (0, 0)
        assert session["state"] == "connected"
        assert path.media_gap_s(Direction.DOWN) < 1
        assert session["longest_gap_ms"] < 1000
        print_report(
            "Chromium, 5 ICE restarts",
            {
                "received": now["received"] - before["received"],
                "lost": 0,
                "moves to Chromium's new ports": session["moves"],
                **gaps,
            },
        )


@pytest.mark.alone
def test_twenty_calls_restart_ice_at_once_and_lose_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "s", "--workers", "2", "--transceivers", "2") as instance:
        with live_calls(instance.url, CALLS) as calls:
            old = {session["session"]: session["server_ufrag"] for session in instance.sessions()}
            assert len(old) == CALLS
            before = calls.mark()
            calls.restart_ice()
            new = {session["session"]: session["server_ufrag"] for session in instance.sessions()}
            assert new.keys() == old.keys()
            assert all(new[session] != old[session] for session in old)
            wait_until(
                lambda: min(seen.received for seen in calls.look()) - max(s.received for s in before) > 0,
                10,
                "media after the restart",
            )
            checked = checks_of(instance)["checks"]
            # until every call has made a check when the old credentials were over
            time.sleep(_OLD_CREDENTIALS_S + _CHECK_INTERVAL_S + 1)
            after = calls.look()
            assert [seen.state for seen in after] == ["connected"] * CALLS
            assert [seen.heard for seen in after] == [True] * CALLS
            assert [(seen.lost_up, seen.lost_down) for seen in after] == [(0, 0)] * CALLS
            assert max(seen.silent_s for seen in after) < 2
            assert refused(instance) == 0
            assert checks_of(instance)["checks"] - checked >= 3 * CALLS
            gap_ms = max(session["longest_gap_ms"] for session in instance.sessions())
            assert gap_ms < 1000
            print_report(
                "20 calls, ICE restarted at once",
                {
                    "received": sum(a.received - b.received for a, b in zip(after, before, strict=True)),
                    "lost": 0,
                    "longest ping_ms": max(seen.longest_ping_ms for seen in after),
                    "longest gap up_ms": gap_ms,
                },
            )
