"""``python -m bench`` as a command, and what it takes to run here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).parents[2]


def need_bcc() -> None:
    """Root and BCC; where they are missing the test is skipped, and fails where BPF is expected."""
    missing = "root" if os.geteuid() != 0 else "" if _has_bcc() else "BCC"
    if missing:
        assert os.environ.get("REQUIRE_BPF") != "1", f"BPF is expected here, and needs {missing}"
        pytest.skip(f"BPF needs {missing}")


def _has_bcc() -> bool:
    try:
        import bcc  # noqa: F401
    except ImportError:
        return False
    return True


def run_bench(*arguments: str, timeout_s: float = 110) -> Any:
    """What ``python -m bench … --json`` prints; it leaves no namespace behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments, "--json"],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.terminate()
    assert process.returncode == 0, err
    assert not list(Path("/run/netns").glob(f"relaybench-{process.pid}-*"))
    return json.loads(out)
