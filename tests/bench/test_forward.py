"""One short run of the real thing: no bounds in packets a second, as the machine is not ours alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
PEERS = {"bare-redirect", "xdp", "userspace"}


def test_forward_delivers_through_every_peer(bcc: None) -> None:
    command = [sys.executable, "-m", "bench", "forward", "--only", ",".join(sorted(PEERS))]
    command += ["--payload", "100", "--seconds", "0.2", "--rounds", "1", "--json"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.terminate()
    assert process.returncode == 0, err
    document = json.loads(out)
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
    assert not list(Path("/run/netns").glob(f"relaybench-{process.pid}-*"))
