"""Runs Python as a user who may not do everything: nobody if we are root, else ourselves."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


def run_unprivileged(code: str, *arguments: str, cwd: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """``python -c code arguments``, without root's rights."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    environment = {"PATH": os.defpath, "HOME": "/nonexistent"}
    if os.geteuid() != 0:
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=30)
    return subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
    )


@pytest.fixture
def foreign_dir() -> Iterator[Path]:
    """A directory that an unprivileged user may enter but not write: pytest's own are closed to other users."""
    path = Path(tempfile.mkdtemp(prefix="relayctl-test-"))
    path.chmod(0o755 if os.geteuid() == 0 else 0o555)
    yield path
    path.chmod(0o700)
    shutil.rmtree(path)
