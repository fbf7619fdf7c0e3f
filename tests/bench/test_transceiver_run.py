"""A tiny run of the real thing: no bounds in milliseconds, as the machine is not ours alone."""

import pytest

from bench.transceiver.variants import STOCK, VARIANTS
from tests.bench.commands import run_bench

pytestmark = [pytest.mark.slow]

NAMES = [variant.name for variant in VARIANTS]
FEW = ("--rounds", "1", "--seconds", "0.5", "--calls", "2", "--max-calls", "2")


def test_every_variant_has_calls_that_are_echoed() -> None:
    document = run_bench("transceiver", "--only", "capacity", *FEW, timeout_s=240)
    assert [(row["name"], row["why_not"]) for row in document["calls"]] == [(name, "") for name in NAMES]
    for row in document["calls"]:
        [turn] = row["runs"]
        assert (turn["calls"], turn["sent"]) == (2, 50)
        assert turn["received"] > 0
        assert row["cpu_ms_per_call"] > 0
        assert row["highest"] in (0, 1, 2)
        assert row["steps"]
    assert {f"CPU a call: {name}" for name in NAMES if name != STOCK} <= set(document["ratios"])


def test_setup_and_memory_of_ours_and_of_stock_aiortc() -> None:
    few = ("--clients", "aiortc", "--round-trips", "0,40", "--setups", "1", "--sessions", "4", "--churn", "4")
    variants = ("--variants", f"{NAMES[0]},{STOCK}")
    document = run_bench("transceiver", "--only", "setup,memory", *variants, *few, *FEW, timeout_s=240)
    for row in document["setups"]:
        assert (row["why_not"], row["made"]) == ("", 10)
        assert row["wall_ms"][0] > 0
        assert row["cpu_ms"][0] > 0
    assert [(row["round_trip_ms"], row["why_not"]) for row in document["phases"]] == [(0, ""), (40, "")]
    for row in document["phases"]:
        [[answered], [ice], [dtls], [audio]] = (
            row["phases_ms"][phase] for phase in ("answered", "ice", "dtls", "audio")
        )
        assert answered > 0
        # Check and answer, two flights, a packet and its echo have each gone there and back.
        assert ice >= row["round_trip_ms"]
        assert dtls >= ice + row["round_trip_ms"] * 0.9
        assert audio >= dtls + row["round_trip_ms"] * 0.9
    for row in document["memory"]:
        assert (row["why_not"], row["sessions"], row["churned"]) == ("", 4, 4)
        assert row["full_pss"] > 0
        assert len(row["rounds_rss"]) == 1
        assert row["before"]["files"] == row["after"]["files"]
        if row["name"] != "stock aiortc":
            assert [row["before"][what] for what in ("threads", "tasks")] == [
                row["after"][what] for what in ("threads", "tasks")
            ]
