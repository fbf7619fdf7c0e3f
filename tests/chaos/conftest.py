"""A network for each module of cases, and what the cases saw."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.namespaces import Host, connect, hosts


@pytest.fixture(scope="module")
def network() -> Iterator[Host]:
    """A host with loopback and an address that calls can come from; needs root."""
    if os.geteuid() != 0:
        assert os.environ.get("REQUIRE_NETNS") != "1", "network namespaces are expected here, and need root"
        pytest.skip("network namespaces need root")
    with hosts(2) as (here, there):
        connect(here, "eth0", there, "eth0", [("198.51.100.2", "198.51.100.1", 24)])
        with here:
            yield here
