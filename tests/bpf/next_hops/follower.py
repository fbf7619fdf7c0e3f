"""A follower of next hops on a host with two links, and what its map holds."""

import asyncio
import ctypes
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from relay.dataplane.bpf.abi import MAPS, Host, NextHop
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.next_hops import NextHops
from tests.bpf.kernel_objects import make_map
from tests.e2e import namespaces
from wire.address import Address

# It takes milliseconds; a machine that other tests keep busy takes longer.
FOLLOWED_WITHIN_S = 10.0
BOTH = ("eth0", "eth1")
NEAR, NEAR_6 = "198.51.100.2", "fd00:0::2"
OTHER, OTHER_6 = "203.0.113.2", "fd00:1::2"
FAR, FAR_6 = "192.0.2.7", "2001:db8:7::7"
OURS = {4: "198.51.100.1", 6: "fd00:0::1"}
FAMILIES = pytest.mark.parametrize(
    ("near", "other", "far"),
    [pytest.param(NEAR, OTHER, FAR, id="IPv4"), pytest.param(NEAR_6, OTHER_6, FAR_6, id="IPv6")],
)


class WatchedMap(BpfMap):
    """Tells that it was written."""

    def __init__(self, max_entries: int = 64) -> None:
        layout = MAPS["next_hops"]
        key_size, value_size = ctypes.sizeof(layout.key), ctypes.sizeof(NextHop)
        super().__init__(make_map("next_hops", layout.kind.number, key_size, value_size, max_entries), layout)
        self.written = asyncio.Event()

    def put(self, key: Any, value: Any) -> None:
        super().put(key, value)
        self.written.set()

    def delete(self, key: Any) -> bool:
        was_there = super().delete(key)
        self.written.set()
        return was_there

    def hop(self, host: str) -> NextHop | None:
        """The entry of a host."""
        hop: NextHop | None = self.get(key(host))
        return hop

    async def until(
        self, host: str, is_so: Callable[[NextHop | None], bool], within_s: float = FOLLOWED_WITHIN_S
    ) -> None:
        """Wait for the entry of a host to be so."""
        async with asyncio.timeout(within_s):
            while not is_so(self.hop(host)):
                self.written.clear()
                await self.written.wait()

    async def until_to(
        self, host: str, interface: str, mac: str, within_s: float = FOLLOWED_WITHIN_S
    ) -> None:
        """Wait for an entry that leads there, out of an interface of this network namespace."""

        def is_so(hop: NextHop | None) -> bool:
            if hop is None or hop.path.ifindex != index_of(interface):
                return False
            return (bytes(hop.path.to_mac).hex(":"), bytes(hop.path.from_mac).hex(":")) == (
                mac,
                mac_of(interface),
            )

        await self.until(host, is_so, within_s)

    async def until_none(self, host: str, within_s: float = FOLLOWED_WITHIN_S) -> None:
        """Wait for there to be no entry."""
        await self.until(host, lambda hop: hop is None, within_s)


def key(host: str) -> Host:
    return Host((ctypes.c_uint8 * 16)(*Address(packed(host), 0).mapped))


def packed(host: str) -> bytes:
    return ip_address(host).packed


def ip(host: namespaces.Host, command: str) -> str:
    """``ip`` on a host."""
    return subprocess.run(
        ["ip", "-n", host.name, *command.split()], check=True, capture_output=True, text=True
    ).stdout


async def eventually(question: Callable[[], bool], within_s: float = FOLLOWED_WITHIN_S) -> None:
    """Ask until the answer is yes, where nothing tells."""
    async with asyncio.timeout(within_s):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def quiet() -> None:
    """Let what earlier changes set off end, so that nothing but the next one's event leads to a look-up."""
    await asyncio.sleep(0.2)


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def mac_of(interface: str, host: namespaces.Host | None = None) -> str:
    where = ["-n", host.name] if host else []
    shown = subprocess.run(
        ["ip", *where, "-o", "link", "show", interface], check=True, capture_output=True, text=True
    ).stdout
    return shown.split("link/ether ")[1].split()[0]


def speak(host: namespaces.Host, to: str) -> None:
    """A datagram from there, which makes its neighbours know its MAC."""
    with host, socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (to, 9))


class Follower(NextHops):
    """One that runs, and what it told."""

    def __init__(self, table: BpfMap, **options: Any) -> None:
        self.mtus: list[int] = []
        super().__init__(
            table, options.pop("interfaces", BOTH), options.pop("sources", {}), self.mtus.append, **options
        )

    def why(self, host: str) -> str:
        return str(next(row["why"] for row in self.describe() if row["host"] == str(ip_address(host))))

    async def until_why(self, host: str, words: str, within_s: float = FOLLOWED_WITHIN_S) -> None:
        """Wait for it to say why there is no entry."""
        await eventually(lambda: words in self.why(host), within_s)


@asynccontextmanager
async def following(table: BpfMap, *wanted: str, **options: Any) -> AsyncIterator[Follower]:
    follower = Follower(table, **options)
    follower.want([packed(host) for host in wanted])
    running = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
