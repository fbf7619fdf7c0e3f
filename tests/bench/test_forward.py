"""Short runs of the real thing: no bounds in packets a second, as the machine is not ours alone."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

PEERS = {"bare-redirect", "xdp", "userspace"}
Run = Callable[..., dict[str, Any]]


def test_forward_delivers_through_every_peer(run_bench: Run) -> None:
    only = ",".join(sorted(PEERS))
    document = run_bench("forward", "--only", only, "--payload", "100", "--seconds", "0.2", "--rounds", "1")
    assert {(row["name"], row["direction"]) for row in document["rows"]} == {
        (name, direction) for name in PEERS for direction in ("up", "down")
    }
    for row in document["rows"]:
        assert row["why_not"] == ""
        assert row["pps"] > 0
        assert row["ns_per_packet"] == pytest.approx(1e9 / row["pps"], rel=0.01)
        assert (row["payload"], row["flows"]) == (100, 1000)
    assert {(row["name"], row["direction"], row["condition"]) for row in document["cpu"]} == {
        ("userspace", direction, condition)
        for direction in ("up", "down")
        for condition in ("own core", "one core")
    }
    for row in document["cpu"]:
        assert row["why_not"] == ""
        assert 0 < row["cpu_us_per_packet"] < 1000
        assert row["pps"] <= row["offered"] * 1.05
    # XDP loses nothing, not even where the machine has other things to do
    assert [row["lost"] for row in document["rows"] if row["name"] == "xdp"] == [0, 0]
    assert 0 < document["ratios"]["xdp/bare-redirect"] < 1.5
    assert document["conditions"]["core_shared_by"] == "generator, relay and sink"


def test_flows_in_userspace_are_as_many_as_were_made(run_bench: Run) -> None:
    arguments = ("--only", "userspace", "--flows", "1,20000", "--seconds", "0.2", "--rounds", "1")
    document = run_bench("flows", *arguments)
    rows = [(row["direction"], row["flows"], row["why_not"]) for row in document["rows"]]
    assert rows == [(direction, flows, "") for direction in ("up", "down") for flows in (1, 20_000)]
    few, many = document["worker_memory"]
    assert (few["flows"], many["flows"]) == (1, 20_000)
    assert 100 < many["bytes_per_flow"] < 10_000


def test_breakdown_finds_where_a_worker_is(run_bench: Run) -> None:
    document = run_bench("breakdown", "--rounds", "1", "--seconds", "0.5")
    for row in document["breakdown"]:
        assert row["why_not"] == ""
        assert row["samples"] > 100
        assert sum(row["parts"].values()) == pytest.approx(1, abs=0.01)
        assert min(row["parts"][part] for part in ("receive", "Python", "send")) > 0.01
        assert sum(row["ns"].values()) == pytest.approx(row["ns_per_packet"], rel=0.01)
