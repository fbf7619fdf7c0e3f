"""Fixtures of the command line's tests: every process that they start is ended, even when the test fails."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.main import main
from host.state_dir import StateDir
from tests.cli.relayctl import Relayctl
from tests.host.unprivileged import foreign_dir as foreign_dir


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[[], Relayctl]]:
    """Makes relayctls with a state directory each."""
    made: list[Relayctl] = []

    def make() -> Relayctl:
        made.append(Relayctl(tmp_path / f"state{len(made)}"))
        return made[-1]

    yield make
    for relayctl in made:
        relayctl.clean_up()


@pytest.fixture
def relayctl(another: Callable[[], Relayctl]) -> Relayctl:
    """One relayctl with its own state directory and ports."""
    return another()


@pytest.fixture
def state_dir(tmp_path: Path) -> StateDir:
    """A state directory for the pure parts."""
    state_dir = StateDir(tmp_path / "state")
    state_dir.create()
    return state_dir


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tester has set must not count."""
    for name in ("RELAYCTL_STATE_DIR", "RELAYCTL_CONFIG", "RELAYCTL_BEARER_TOKEN", "RELAYCTL_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def registered_commands() -> None:
    """Commands register themselves when their module is imported, as `main` does."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["relayctl", "--version"])
        with pytest.raises(SystemExit):
            main()
