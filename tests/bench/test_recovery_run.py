"""A short run of the real thing: no bounds in milliseconds, as the machine is not ours alone."""

import pytest

from tests.bench.commands import run_bench

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

# A seed by which relays are killed soon.
SHORT_SLEEPS = "1990"
ROWS = [(kind, way) for kind in ("aiortc", "Chromium") for way in ("up", "down")]


def test_calls_come_back_and_xdp_loses_nothing(bcc: None) -> None:
    few = ("--rounds", "1", "--calls", "2", "--tabs", "1", "--only", "restart,xdp", "--seed", SHORT_SLEEPS)
    document = run_bench("recovery", *few, timeout_s=240)
    assert [(row["scenario"], row["kind"], row["way"]) for row in document["rows"]] == [
        (scenario, *row) for scenario in ("restart", "xdp") for row in ROWS
    ]
    for scenario in document["scenarios"]:
        assert (scenario["why_not"], scenario["dropped"]) == ("", [])
        assert [one["redis"] for one in scenario["rounds"]] == [False, True]
        for one in scenario["rounds"]:
            assert [call["is_back"] for call in one["calls"]] == [True] * 3
            assert one["outage_ms"] > 0
            assert one["own_drops"] == 0
    for row in document["rows"]:
        for column in (row["without_redis"], row["with_redis"]):
            assert column["gap_ms"]["worst"] >= column["gap_ms"]["median"] > 0
            if row["scenario"] == "restart":
                assert column["recovery_ms"]["figures"] > 0
            else:
                assert (column["sent"] > 100, column["lost"]) == (True, 0)
    (restart, _) = document["scenarios"]
    assert all(one["probe_interval_ms"] < 50 for one in restart["rounds"])
    assert {target["measured"] for target in document["targets"] if target["unit"] == "packets"} == {0}
    assert document["conditions"]["check_intervals_s"]["aiortc"]["longest"] > 1
