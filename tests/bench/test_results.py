"""Ratios, targets, tables and the generated part of a document, from rows that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.forward import cells_of
from bench.latency import half_loads
from bench.plots import draw
from bench.report import BEGIN, END, as_markdown, replace_block, sheets
from bench.results import LatencyRow, Memory, Results, Row, SetupRow, median_that_counts


def row(name: str, pps: float | None, direction: str = "up", **fields: Any) -> Row:
    values = {"measurement": "forward", "payload": 100, "flows": 1000, "lost": 0, **fields}
    return Row(name=name, direction=direction, pps=pps, **values)


RESULTS = Results(
    rows=[
        row("bare-redirect", 4e6, pps_bursts=12e6),
        row("xdp", 3.4e6, pps_bursts=6e6),
        row("userspace", 1e5, pps_own_core=2e5),
        row("go-reference", 2.5e5, pps_bursts=6e5, pps_own_core=8e5),
        row("coturn", None, why_not="turnserver is missing"),
        row("bare-redirect", 4e6, "down"),
        row("xdp", 2e6, "down"),
        row("xdp", 3e6, measurement="flows"),
        row("xdp", 1.5e6, measurement="flows", flows=1_000_000),
    ],
    latency=[
        LatencyRow(name="kernel-route", rate=10, p50_ns=500.0, cdf=[(400.0, 0.5), (600.0, 1.0)]),
        LatencyRow(name="xdp", rate=10, p50_ns=300.0, cdf=[(300.0, 1.0)]),
    ],
    setup=[SetupRow(name="xdp", flows_per_s=20_000, admitted=10, p50_us=50.0, p99_us=100.0)],
    memory=Memory(map_bytes=250_000_000, max_flows=1_000_000, record_bytes=176),
    conditions={"kernel": "6.18", "rounds": 6},
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("xdp/bare-redirect", 0.85),
        ("xdp/bare-redirect bursts", 0.5),
        ("xdp/bare-redirect down", 0.5),
        ("xdp/go-reference", 13.6),
        ("xdp/go-reference bursts", 10),
        ("xdp/go-reference own core", 4.25),
        ("userspace/go-reference", 0.4),
        ("userspace/go-reference own core", 0.25),
        ("xdp 1M/1k flows", 0.5),
        ("xdp/kernel-route latency p50", 0.6),
    ],
)
def test_ratio(name: str, value: float) -> None:
    assert RESULTS.ratios()[name] == pytest.approx(value)


def test_ratio_is_of_rounds_side_by_side() -> None:
    slow_and_fast = Results(
        rows=[row("bare-redirect", 3e6, rates=[2, 4, 4]), row("xdp", 2e6, rates=[1, 2, 3])]
    )
    assert slow_and_fast.ratios()["xdp/bare-redirect"] == 0.5


def test_what_was_not_measured_has_no_ratio() -> None:
    assert Results(rows=[row("xdp", 1e6), row("go-reference", None)]).ratios() == {}
    assert all(target.holds is None for target in Results().targets())


def test_targets() -> None:
    assert [target.holds for target in RESULTS.targets()] == [True, False, True, True, True, True]


def test_added_time_is_beyond_the_bare_redirect() -> None:
    assert RESULTS.added_ns(RESULTS.rows[1]) == pytest.approx(1e9 / 3.4e6 - 250)


def test_json_is_read_back() -> None:
    document = json.loads(json.dumps(RESULTS.to_json()))
    again = Results.from_json(document)
    assert again.to_json() == document
    for name in ("name", "direction", "payload", "flows", "pps", "ns_per_packet", "lost"):
        assert name in document["rows"][0]
    assert document["rows"][0]["ns_per_packet"] == 250


@pytest.mark.parametrize(
    ("rounds", "median"), [([7.0], 7.0), ([100.0, 2.0], 2.0), ([100.0, 3.0, 1.0, 2.0], 2.0)]
)
def test_the_first_round_does_not_count(rounds: list[float], median: float) -> None:
    assert median_that_counts(rounds) == median


def test_joined_parts_keep_their_rows() -> None:
    parts = [Results(rows=RESULTS.rows), Results(latency=RESULTS.latency, conditions={"kernel": "6.18"})]
    joined = Results.joined(parts)
    assert (joined.rows, joined.latency, joined.conditions) == (
        RESULTS.rows,
        RESULTS.latency,
        {"kernel": "6.18"},
    )


def test_half_load_is_the_same_for_what_is_compared() -> None:
    capacities = {"kernel-route": 100, "xdp": 300, "go-reference": 20}
    assert half_loads(capacities) == {"kernel-route": 50, "xdp": 50, "go-reference": 10}


def test_every_payload_is_measured_both_ways() -> None:
    cells = [(cell.payload, cell.direction, cell.condition.name) for cell in cells_of([100, "opus"])]
    assert cells[:4] == [(p, d, "singly") for p in (100, "opus") for d in ("up", "down")]
    assert cells[4:] == [(100, d, c) for c in ("bursts", "own core") for d in ("up", "down")]


def test_tables_show_why_there_is_no_number() -> None:
    rates = sheets(RESULTS)[0]
    assert ["coturn", "turnserver is missing"] in [[row[0], row[-1]] for row in rates.rows]


def test_generated_part_of_a_document_is_replaced() -> None:
    document = f"before\n{BEGIN}\nlast year\n{END}\nafter\n"
    block = as_markdown(RESULTS, ["images/bench-peers.svg"])
    renewed = replace_block(document, block)
    assert renewed.startswith(f"before\n{BEGIN}\n")
    assert renewed.endswith(f"{END}\nafter\n")
    assert "last year" not in renewed
    assert "![bench peers](images/bench-peers.svg)" in renewed
    assert replace_block(renewed, block) == renewed
    with pytest.raises(ValueError, match="no lines"):
        replace_block("nothing here", block)


def test_plots_are_drawn_and_are_the_same_again(tmp_path: Path) -> None:
    drawn = draw(RESULTS, tmp_path / "a")
    assert [path.name for path in drawn] == ["bench-peers.svg", "bench-flows.svg", "bench-latency.svg"]
    for one, other in zip(drawn, draw(RESULTS, tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()
