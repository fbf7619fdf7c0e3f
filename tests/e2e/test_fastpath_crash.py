"""Supervisor and workers killed under a Chromium call: XDP carries it alone, until the next start takes over."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report
from tests.e2e.three_hosts import (
    IPV4,
    kill_all,
    relay_of,
    shown,
    switch_off_and_on,
    transceiver_of,
    two_armed,
    wait_until_in_kernel,
)
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

ALONE_S = 60
# Chromium's pace; its consent would expire after 30 s without an answer, and its media stop after 15.
AUDIO_PER_S, LONGEST_CHECK_INTERVAL_S = 50, 5


def the_flow(relay: Instance) -> dict[str, Any]:
    (flow,) = shown(relay, "flows")
    return flow


def verdicts(relay: Instance) -> dict[str, int]:
    return {row["verdict"]: row["packets"] for row in shown(relay, "verdicts")}


def test_call_outlives_supervisor_and_workers(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(two_armed())
        first = stack.enter_context(relay_of(site, IPV4, tmp_path))
        transceiver = stack.enter_context(transceiver_of(site, IPV4, tmp_path))
        call = stack.enter_context(page_call(transceiver, tmp_path / "profile"))
        by_workers = wait_until_in_kernel(first).by_workers
        kill_all(first)
        flow, judged, heard = the_flow(first), verdicts(first), call.counts()

        told = first.run("status")
        assert (told.returncode, "XDP goes on with established calls" in told.stderr) == (3, True)

        # Nobody but XDP
        packets = ALONE_S * AUDIO_PER_S
        alone = call.wait_for_more(
            heard, 3 * ALONE_S, sent=packets, answers=ALONE_S // LONGEST_CHECK_INTERVAL_S, reports=2
        )
        call.wait_for_audio()
        flow_alone = the_flow(first)
        news = {name: count - judged[name] for name, count in verdicts(first).items() if count - judged[name]}
        assert flow_alone["age_s"] - flow["age_s"] >= 0.95 * ALONE_S
        assert (alone["lost_up"], alone["lost_down"]) == (0, 0)
        assert alone["echoes"] - heard["echoes"] >= ALONE_S
        assert news.keys() == {"forward_stun", "forward_flow", "forward_client"}
        assert min(news["forward_flow"], news["forward_client"]) >= packets

        second = stack.enter_context(relay_of(site, IPV4, tmp_path))
        assert second.status()["relay"]["kernel"]["adopted"]
        taken_over = wait_until_in_kernel(second)
        flow_after = the_flow(second)
        for field in ("client", "transceiver", "ufrag_tag"):
            assert flow_after[field] == flow[field]
        assert flow_after["age_s"] >= flow_alone["age_s"]
        # the new workers know the flow
        rounds = switch_off_and_on(second, 25)
        after = call.wait_for_more(call.counts(), sent=100, received=100, echoes=8, reports=2)
        call.wait_for_audio()
        assert (after["lost_up"], after["lost_down"]) == (0, 0)
    assert taken_over.by_workers == by_workers
    report = {
        **after,
        "XDP alone": news,
        "fast path off and on": rounds,
        "age_s": flow_after["age_s"],
        "by workers": by_workers,
    }
    print_report(f"supervisor and workers killed -9, {ALONE_S} s without, Chromium call", report)
