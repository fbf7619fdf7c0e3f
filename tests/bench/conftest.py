"""What the benchmark needs of a machine, and a run of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.bench import commands
from tests.bench.commands import need_bcc


@pytest.fixture
def bcc() -> None:
    """Root and BCC; where they are missing the test is skipped, unless they are expected."""
    need_bcc()


@pytest.fixture
def run_bench(bcc: None) -> Callable[..., dict[str, Any]]:
    """``python -m bench … --json`` as the document that it prints; it leaves no namespace behind."""

    def run(*arguments: str) -> dict[str, Any]:
        document = commands.run_bench(*arguments)
        assert isinstance(document, dict)
        return document

    return run
