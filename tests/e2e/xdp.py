"""A relay on a host of its own, with XDP on its interface, as the tests of the kernel's data path need it."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.flood.generator import Flood
from relay.dataplane.bpf import links
from relay.dataplane.bpf.links import Attachment
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, running
from tests.e2e.namespaces import Host
from wire.address import Address

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


def mac_of(host: Host, interface: str) -> str:
    """The hardware address of an interface."""
    with host:
        addresses = psutil.net_if_addrs()[interface]
    return next(address.address for address in addresses if address.family == psutil.AF_LINK)


async def send_flood(network: Network, **options: Any) -> dict[str, Any]:
    """A flood to the VIP from the client host, by another address than the calls'; the generator's report."""
    flood = Flood(
        interface="eth0",
        source=Address.parse("203.0.113.66:4444"),
        destination=Address.parse(VIP),
        source_mac=mac_of(network.here, "eth0"),
        destination_mac=mac_of(network.there, "eth0"),
        **options,
    )
    repository = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        *flood.command(), stdout=asyncio.subprocess.PIPE, cwd=repository
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return dict(json.loads(said))
