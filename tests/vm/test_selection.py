"""Which tests are taken: those of hosts only with an inventory, and then all that it has hosts for. Needs no hosts."""

import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_INVENTORY = """
name = "three machines"
vip = ["192.0.2.2:3478"]
[hosts]
client = { ssh = "client", interface = "eth1" }
relay = { ssh = "relay", public_interface = "eth1", fleet_interface = "eth2" }
transceiver = { ssh = "transceiver", address = "10.0.1.7", url = "http://10.0.1.7:8080/" }
"""
_RESETS = "test_resets.py::test_relay_host_reset"
_WITHOUT_HOSTS = "test_report.py::test_text"


def _collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", str(_HERE), "--collect-only", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=_HERE.parents[1], timeout=120, check=False
    )


def test_without_an_inventory_no_test_of_hosts_is_taken() -> None:
    collected = _collect()
    assert collected.returncode == 0, collected.stdout
    assert _RESETS not in collected.stdout
    assert _WITHOUT_HOSTS in collected.stdout
    assert "deselected" in collected.stdout


def test_with_an_inventory_those_it_has_hosts_for_and_resets_last(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(_INVENTORY)
    collected = _collect("--inventory", str(path))
    assert collected.returncode == 0, collected.stdout
    names = [line for line in collected.stdout.splitlines() if "::" in line]
    assert _RESETS in names[-1]
    assert "test_calls.py::test_call_of_family[IPv4]" in collected.stdout
    for lacking in ("[IPv6]", "test_redis_host_reset", "test_transceiver_host_reset", "test_chromium_calls"):
        assert lacking not in collected.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_INVENTORY + "colour = 1\n", "ERROR: hosts.colour: unknown host; there are client, relay"),
        ("name =", "ERROR: {path}: is not TOML: "),
    ],
)
def test_inventory_that_is_wrong_is_a_usage_error(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(content)
    collected = _collect("--inventory", str(path))
    assert collected.returncode == pytest.ExitCode.USAGE_ERROR
    assert said.format(path=path) in collected.stderr
