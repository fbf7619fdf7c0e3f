"""The unit that `make install` puts into place, as systemd's own tool reads it."""

import os
import shutil
import subprocess
from pathlib import Path

import pyprctl
import pytest

from cli.main import cli
from host.state_dir import StateDir

UNIT = Path(__file__).parents[2] / "deploy/systemd/relayctl.service"


def settings() -> dict[str, str]:
    lines = UNIT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.fixture
def analyze() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        assert os.environ.get("REQUIRE_SYSTEMD_ANALYZE") != "1", "systemd-analyze is expected here"
        pytest.skip("no systemd-analyze; Debian's package systemd has it")
    return program


def verify(analyze: str, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The unit, with a program that is there in place of ours."""
    unit = directory / "relayctl.service"
    unit.write_text(text.replace("/usr/local/bin/relayctl", "/bin/true"))
    return subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_takes_it_without_a_word(analyze: str, tmp_path: Path) -> None:
    verified = verify(analyze, tmp_path, UNIT.read_text())
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_the_tool_would_tell_of_a_mistake(analyze: str, tmp_path: Path) -> None:
    verified = verify(analyze, tmp_path, UNIT.read_text().replace("KillMode=process", "KillMod=process"))
    assert "KillMod" in verified.stderr


def test_capabilities_are_known() -> None:
    """systemd leaves out a name that it does not know, without a word."""
    named = settings()["CapabilityBoundingSet"].split()
    assert set(named) <= {f"CAP_{capability.name}" for capability in pyprctl.Cap}
    assert len(set(named)) == len(named)


def test_commands_and_paths_are_those_that_there_are() -> None:
    unit = settings()
    for name in ("ExecStart", "ExecReload"):
        program, command, *_ = unit[name].split()
        assert program == "/usr/local/bin/relayctl"
        assert command in cli.list_commands(None)  # type: ignore[arg-type]
    assert unit["ExecStart"].endswith("--config /etc/relayctl/relayctl.toml")
    assert StateDir(Path("/var/lib") / unit["StateDirectory"]).path == Path("/var/lib/relayctl")


def test_left_behind_processes_are_let_live() -> None:
    unit = settings()
    assert unit["KillMode"] == "process"
    assert unit["OOMPolicy"] == "continue"
    assert unit["Restart"] == "on-failure"
    # /sys/fs/bpf is to stay writable
    assert "ProtectKernelTunables" not in unit
