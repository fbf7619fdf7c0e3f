"""What the benchmark needs of a machine."""

import os

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
