"""Ratios, targets, tables and the generated part of a document, from rows that are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.flows import in_order
from bench.forward import cells_of
from bench.latency import half_loads
from bench.plots import draw
from bench.report import BEGIN, END, as_markdown, replace_block, sheets
from bench.results import (
    BreakdownRow,
    CpuRow,
    LatencyRow,
    Memory,
    Results,
    Row,
    SetupRow,
    WorkerMemory,
    median_that_counts,
)
from bench.rig import Sample
from bench.voice import cpu_row


def row(name: str, pps: float | None, direction: str = "up", **fields: Any) -> Row:
    values = {"measurement": "forward", "payload": 100, "flows": 1000, "lost": 0, **fields}
    return Row(name=name, direction=direction, pps=pps, **values)


def cpu(name: str, direction: str, condition: str, *times: float) -> CpuRow:
    return CpuRow(
        name=name,
        direction=direction,
        condition=condition,
        offered=50_000,
        pps=5e4,
        cpu_us_per_packet=times[0],
        lost=0,
        times=list(times),
    )


RESULTS = Results(
    rows=[
        row("bare-redirect", 4e6, pps_bursts=12e6),
        row("xdp", 3.4e6, pps_bursts=6e6),
        row("userspace", 1e5, pps_own_core=2e5),
        row("go-reference", 2.5e5, pps_bursts=6e5, pps_own_core=8e5),
        row("coturn", None, why_not="turnserver is missing"),
        row("bare-redirect", 4e6, "down"),
        row("xdp", 2e6, "down"),
        row("userspace", 6e5, payload="opus"),
        row("go-reference", 2.5e5, payload="opus"),
        row("xdp", 3e6, measurement="flows"),
        row("xdp", 1.5e6, measurement="flows", flows=1_000_000),
    ],
    cpu=[
        cpu("userspace", "up", "own core", 2.0, 4.0),
        cpu("go-reference", "up", "own core", 5.0, 5.0),
        cpu("userspace", "down", "own core", 3.0, 4.0),
        cpu("go-reference", "down", "own core", 5.0, 5.0),
        cpu("userspace", "up", "one core", 1.0),
        cpu("go-reference", "up", "one core", 2.0),
    ],
    breakdown=[
        BreakdownRow(
            name="userspace",
            direction="up",
            pps=5e5,
            cpu_share=0.99,
            ns_per_packet=2000.0,
            samples=100,
            parts={"receive": 0.2, "Python": 0.3, "send": 0.5, "wait": 0.0, "other": 0.0},
            softirq=0.1,
            stacks=[("__x64_sys_sendmmsg;udp_sendmsg", 50), ("user space", 30), ("__x64_sys_recvmmsg", 20)],
        )
    ],
    latency=[
        LatencyRow(name="kernel-route", rate=10, p50_ns=500.0, cdf=[(400.0, 0.5), (600.0, 1.0)]),
        LatencyRow(name="xdp", rate=10, p50_ns=300.0, cdf=[(300.0, 1.0)]),
    ],
    setup=[
        SetupRow(name="xdp", flows_per_s=20_000, admitted=10, p50_us=50.0, p99_us=100.0),
        SetupRow(name="userspace", flows_per_s=30_000, admitted=10, p50_us=50.0, p99_us=100.0),
    ],
    memory=Memory(map_bytes=250_000_000, max_flows=1_000_000, record_bytes=176),
    worker_memory=[
        WorkerMemory(name="userspace", flows=1_000, empty_bytes=30_000_000, full_bytes=31_000_000),
        WorkerMemory(name="userspace", flows=1_000_000, empty_bytes=30_000_000, full_bytes=380_000_000),
    ],
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
        ("userspace/go-reference opus", 2.4),
        ("userspace/go-reference cpu time a packet up", 0.6),
        ("userspace/go-reference cpu time a packet down", 0.7),
        ("userspace/go-reference cpu time a packet", 0.65),
        ("userspace/go-reference cpu time a packet up, one core", 0.5),
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
    held = {target.name: target.holds for target in RESULTS.targets()}
    assert held == {
        "xdp / bare-redirect, up": True,
        "xdp / bare-redirect, down": False,
        "xdp / go-reference, up, one core for all": True,
        "xdp, 1 M / 1 k flows in random order, up": True,
        "bytes a flow": True,
        "xdp / kernel-route, latency p50": True,
        "userspace / go-reference, up": False,
        "userspace / go-reference, up, Opus mix": True,
        "userspace / go-reference, down": None,
        "userspace / go-reference, CPU time a packet, 1 k flows of 50 packets/s": False,
        "new flows/s of one worker, userspace": True,
        "new flows/s of one worker, xdp": False,
        "MB of a userspace worker with 1 M flows": True,
    }


def test_cpu_ratio_of_both_ways_needs_both() -> None:
    only_up = Results(cpu=[row for row in RESULTS.cpu if row.direction == "up"])
    assert "userspace/go-reference cpu time a packet" not in only_up.ratios()
    assert only_up.ratios()["userspace/go-reference cpu time a packet up"] == pytest.approx(0.6)


def test_memory_of_few_flows_is_not_that_of_a_million() -> None:
    few = Results(worker_memory=RESULTS.worker_memory[:1])
    assert [target.value for target in few.targets() if "1 M flows" in target.name] == [None]
    assert few.to_json()["worker_memory"][0]["bytes_per_flow"] == 1000


def sample(delivered: int, cpu_s: float) -> Sample:
    return Sample(
        delivered=delivered, seconds=1, offered=delivered, lost=0, wrong=0, core_share=1, relay_cpu_s=cpu_s
    )


def test_cpu_time_is_the_median_of_the_rounds_that_count() -> None:
    rounds = [sample(1000, 1.0), sample(1000, 0.002), sample(1000, 0.004), sample(2000, 0.006)]
    measured = cpu_row("userspace", "up", "own core", rounds, "")
    assert (measured.cpu_us_per_packet, measured.times) == (3.0, [2.0, 4.0, 3.0])
    assert cpu_row("userspace", "up", "own core", [], "no Go here").why_not == "no Go here"


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


def test_rows_by_flows_are_in_order() -> None:
    rows = [
        row("xdp", 1.0, "down", flows=1000),
        row("xdp", 1.0, flows=100_000),
        row("userspace", 1.0, flows=1000),
        row("xdp", 1.0, flows=1000),
    ]
    ordered = [(one.direction, one.flows, one.name) for one in in_order(rows, ["xdp", "userspace"])]
    assert ordered == [
        ("up", 1000, "xdp"),
        ("up", 1000, "userspace"),
        ("up", 100_000, "xdp"),
        ("down", 1000, "xdp"),
    ]


def test_tables_show_why_there_is_no_number() -> None:
    rates = sheets(RESULTS)[0]
    assert ["coturn", "turnserver is missing"] in [[row[0], row[-1]] for row in rates.rows]


def test_tables_tell_of_a_workers_time() -> None:
    (sheet,) = [sheet for sheet in sheets(RESULTS) if sheet.title.startswith("Where")]
    cells = dict(zip(sheet.columns, sheet.rows[0], strict=True))
    assert (cells["receive"], cells["Python"], cells["send"]) == ("20%, 400", "30%, 600", "50%, 1,000")


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
    kinds = ("peers", "payloads", "flows", "latency", "breakdown", "flame")
    assert [path.name for path in drawn] == [f"bench-{kind}.svg" for kind in kinds]
    for one, other in zip(drawn, draw(RESULTS, tmp_path / "b"), strict=True):
        assert one.read_bytes() == other.read_bytes()
