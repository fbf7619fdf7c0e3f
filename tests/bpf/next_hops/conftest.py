"""Two hosts, and a map that a follower keeps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.dataplane.bpf import next_hops
from tests.bpf.conftest import Network
from tests.bpf.next_hops.follower import (
    BOTH,
    WatchedMap,
    ip,
)
from tests.e2e import namespaces


@pytest.fixture
def only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found by the check that comes every few seconds anyway."""
    monkeypatch.setattr(next_hops, "_CHECK_INTERVAL_S", 1000.0)


@pytest.fixture
def here(network: Network) -> namespaces.Host:
    """With IPv6 as IPv4 is there: usable at once, and kept, as a daemon of the network would, while a link is down."""
    for host, end in ((network.here, 1), (network.there, 2)):
        for number, interface in enumerate(BOTH):
            with host:
                for name, value in (("keep_addr_on_down", "1"), ("accept_dad", "0"), ("dad_transmits", "0")):
                    Path(f"/proc/sys/net/ipv6/conf/{interface}/{name}").write_text(value)
            ip(host, f"link set {interface} down")
            ip(host, f"link set {interface} up")
            ip(host, f"address add fd00:{number}::{end}/64 dev {interface} nodad")
    with network.here:
        # As routing daemons set it: routes are not told of again when their nexthop changes.
        Path("/proc/sys/net/ipv4/nexthop_compat_mode").write_text("0")
    return network.here


@pytest.fixture
def there(network: Network) -> namespaces.Host:
    return network.there


@pytest.fixture
def table(here: namespaces.Host) -> Iterator[WatchedMap]:
    made = WatchedMap()
    yield made
    made.close()
