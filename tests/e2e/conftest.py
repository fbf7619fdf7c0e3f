"""Every end-to-end test has a network of its own: as root a namespace, else the machine's loopback."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.namespaces import Host, connect, hosts


@dataclass(frozen=True)
class Network:
    """Where a test lives, and a peer that it can put a server on."""

    here: Host
    there: Host


@pytest.fixture(autouse=True)
def own_network() -> Iterator[Network | None]:
    """Two hosts joined by a veth pair (aioice offers no loopback candidates); nothing where we are not root."""
    if os.geteuid() != 0:
        assert os.environ.get("REQUIRE_NETNS") != "1", "network namespaces are expected here, and need root"
        yield None
        return
    with hosts(2) as (here, there):
        subnets = [
            ("198.51.100.2", "198.51.100.1", 24),
            ("203.0.113.2", "203.0.113.10", 24),
            ("2001:db8::2", "2001:db8::10", 64),
        ]
        connect(here, "eth0", there, "eth0", subnets)
        with here:
            yield Network(here, there)
