"""Examples run with the Python that their packages are installed for, each test in a network of its own."""

import os
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import own_network as own_network

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def plain_python() -> Path:
    """Has the project, and so aiortc."""
    return Path(sys.executable)


@pytest.fixture
def examples_python() -> Path:
    """Has examples/requirements.txt, too (`make examples`); EXAMPLES_PYTHON names another one."""
    python = Path(os.environ.get("EXAMPLES_PYTHON") or _ROOT / ".venv-examples/bin/python")
    if not python.exists():
        assert os.environ.get("REQUIRE_EXAMPLES") != "1", f"{python} is expected here; run `make examples`"
        pytest.skip(f"no {python}; `make examples` installs it")
    return python
