"""A relay on a host of its own, with XDP on its interface, as the tests of the kernel's data path need it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.dataplane.bpf import links
from relay.dataplane.bpf.links import Attachment
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, running

VIP = "203.0.113.10:3478"
CLIENT_IP = "203.0.113.2"
SIGNALING = "198.51.100.1:8080"


def need_network(network: Network | None) -> Network:
    """The two hosts; where there can be none the test is skipped, unless they are expected."""
    if network is None:
        assert os.environ.get("REQUIRE_BPF") != "1", "XDP is expected here, and needs root"
        pytest.skip("XDP needs root")
    return network


@contextlib.contextmanager
def xdp_relay(network: Network, state_dir: Path, *arguments: str) -> Iterator[Instance]:
    """Relay and transceivers on the host ``there``; signaling and VIP are reached from ``here``."""
    listen = ("--listen", VIP, "--interface", "eth0", "--dataplane", "xdp", "--insecure")
    with contextlib.ExitStack() as stack:
        with network.there:
            instance = stack.enter_context(running(state_dir, *listen, *arguments, http=SIGNALING))
        yield instance


def attached(network: Network) -> list[Attachment]:
    """XDP programs on the relay's host."""
    with network.there:
        return links.attachments()
