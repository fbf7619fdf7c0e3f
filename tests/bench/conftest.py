"""What the benchmark needs of a machine, and a run of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bcc() -> None:
    """Root and BCC; where they are missing the test is skipped, unless they are expected."""
    if os.geteuid() != 0:
        assert os.environ.get("REQUIRE_BPF") != "1", "BPF is expected here, and needs root"
        pytest.skip("BPF needs root")
    try:
        import bcc  # noqa: F401
    except ImportError:
        assert os.environ.get("REQUIRE_BPF") != "1", "BPF is expected here, and needs BCC"
        pytest.skip("the generator needs BCC")


@pytest.fixture
def run_bench(bcc: None) -> Callable[..., dict[str, Any]]:
    """``python -m bench … --json`` as the document that it prints; it leaves no namespace behind."""

    def run(*arguments: str) -> dict[str, Any]:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", *arguments, "--json"],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                out, err = process.communicate(timeout=110)
            finally:
                process.terminate()
        assert process.returncode == 0, err
        assert not list(Path("/run/netns").glob(f"relaybench-{process.pid}-*"))
        document: dict[str, Any] = json.loads(out)
        return document

    return run
