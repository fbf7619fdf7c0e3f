"""Chromium for five minutes without a gap. In a file of its own: it waits beside the others."""

import faulthandler
import time
from pathlib import Path

import pytest

from bench.path import Counts, Direction, Kind
from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import print_report
from tests.e2e.survival import media_gaps_ms, on_path, only_session

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_CALL_S = 300.0
_LOOK_EVERY_S = 10.0
# A busy machine may keep a process from its core for a while; a call that is stuck is silent for longer.
_SILENCE_MS = 1_000
# How much of its audio Chromium must have been sent in that time: 50 packets/s.
_LEAST_PACKETS = 0.98 * _CALL_S * 50
_HEARD = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    const s = stats.find(s => s.type === "inbound-rtp");
    return {
        received_s: s.totalSamplesDuration,
        concealed_s: s.concealedSamples / 48000,
        silent_concealed_s: s.silentConcealedSamples / 48000,
        discarded: s.packetsDiscarded ?? 0,
    };
}"""


def test_chromium_call_of_five_minutes_has_no_gap(own_network: Network | None, tmp_path: Path) -> None:
    with (
        on_path(own_network, tmp_path / "s") as (instance, path),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
        # pytest's, for tests that hang: this one is to last
        faulthandler.cancel_dump_traceback_later()
        before, gaps_before_ms = call.counts(), only_session(instance)["longest_gap_ms"]
        path.forget_gaps()
        began = time.monotonic()
        while time.monotonic() - began < _CALL_S:
            then = call.counts()
            call.page.wait_for_timeout(_LOOK_EVERY_S * 1000)
            now = call.counts()
            assert min(now[name] - then[name] for name in ("sent", "received", "echoes")) > 0
            assert call.page.get_attribute("#state", "data-state") == "connected"
        after, session = call.counts(), only_session(instance)
        gaps = media_gaps_ms(path)
        report = {
            "received": after["received"] - before["received"],
            "lost down": after["lost_down"],
            "lost up": after["lost_up"],
            "longest gap up, as decrypted_ms": session["longest_gap_ms"],
            **gaps,
            **call.page.evaluate(_HEARD),
        }
        print_report(f"Chromium for {_CALL_S:g} s", report)
        assert (after["lost_down"], after["lost_up"]) == (0, 0)
        assert after["reports"] > 0, "lost_up is what the transceiver reports"
        assert after["received"] - before["received"] >= _LEAST_PACKETS
        assert max(gaps.values()) < _SILENCE_MS
        assert max(session["longest_gap_ms"], gaps_before_ms) < _SILENCE_MS
        assert (session["state"], session["counters"], session["moves"]) == ("connected", {}, 0)
        for direction in Direction:
            counts = path.counts(direction, Kind.RTP)
            assert counts == Counts(received=counts.received, forwarded=counts.received)
        assert path.kernel_drops() == 0
