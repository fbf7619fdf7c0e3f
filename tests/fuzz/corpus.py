"""Malformed packets and offers that are kept: each was written for a fault, or found by fuzzing (tests/corpus)."""

from pathlib import Path
from typing import Any

import pytest

_CORPUS = Path(__file__).parents[1] / "corpus"


def corpus(kind: str) -> list[Any]:
    """A parameter for each file of ``tests/corpus/KIND``: its bytes, under its name."""
    files = sorted((_CORPUS / kind).iterdir())
    assert files
    return [pytest.param(file.read_bytes(), id=file.stem) for file in files]


def seeds(kind: str) -> list[bytes]:
    """The same bytes, to mutate."""
    return [file.read_bytes() for file in sorted((_CORPUS / kind).iterdir())]
