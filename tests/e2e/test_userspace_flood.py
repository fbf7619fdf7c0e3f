"""Floods at full speed from many sources, beside 200 calls through one userspace worker: the calls lose nothing.

The scenario is that of ``python -m bench flood``, which says what is measured; here it is short.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.commands import need_bcc, run_bench
from tests.e2e.instance import print_report

pytestmark = [pytest.mark.alone, pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
SECONDS = 4
# By requests, which a worker may leave unread: media have a socket of their own.
BY_REQUESTS = ("forged", "replayed", "one-user")
MOST_LOST_PERCENT = 0.1
MOST_GROWTH_BYTES = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """Every flood's row."""
    need_bcc()
    document = run_bench("flood", "--seconds", str(SECONDS), timeout_s=240)
    found = {row["name"]: row for row in document}
    for name, row in found.items():
        print_report(f"flood {name}, at full speed (userspace)", row)
    return found


def test_calls_lose_nothing_without_a_flood(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["none"]
    # both ways, from the first of its few packets to the last
    assert row["loss"]["sent"] > 0.9 * row["seconds"] * 200 * 50 * 2 > 0
    assert (row["loss"]["lost"], row["loss"]["answered_percent"], row["own_drops"]) == (0, 100, 0)
    assert None not in row["newcomers_s"]


@pytest.mark.parametrize("name", BY_REQUESTS)
def test_calls_lose_nothing_to_a_flood_of_requests(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert row["own_drops"] == 0
    assert row["loss"]["up_percent"] <= MOST_LOST_PERCENT
    assert row["loss"]["down_percent"] <= MOST_LOST_PERCENT


@pytest.mark.parametrize("name", [*BY_REQUESTS, "media"])
def test_flood_is_named_and_bounded(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert row["offered_per_s"] > 50_000
    assert row["read_per_s"] > 0
    assert row["is_named"], row["rose"]
    assert 0 < row["provisional_flows"] <= row["provisional_cap"]
    assert row["rss_after"] - row["rss_before"] <= MOST_GROWTH_BYTES
