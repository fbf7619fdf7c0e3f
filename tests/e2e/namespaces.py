"""Network namespaces as hosts: made and removed by the tests, joined by veth pairs."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import Ethtool, IPRoute, NetNS, netns

_IFA_F_NODAD = 0x02  # linux/if_addr.h


class Host:
    """A network namespace with loopback up. ``with host: …`` makes this thread, and what it starts, live there."""

    def __init__(self) -> None:
        self.name = f"relayctl-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        netns.create(self.name)
        self.ip = NetNS(self.name)
        self.ip.link("set", index=self.ip.link_lookup(ifname="lo")[0], state="up")

    def __enter__(self) -> "Host":
        netns.pushns(self.name)
        return self

    def __exit__(self, *exc_info: object) -> None:
        netns.popns()

    def set_link(self, interface: str, state: str) -> None:
        """Bring an interface up or down."""
        self.ip.link("set", index=self.ip.link_lookup(ifname=interface)[0], state=state)

    def add_address(self, interface: str, address: str, prefix_length: int) -> None:
        """Give an interface one more address."""
        index = self.ip.link_lookup(ifname=interface)[0]
        # an IPv6 address that duplicate detection still probes cannot be bound
        flags = _IFA_F_NODAD if ":" in address else 0
        self.ip.addr("add", index=index, address=address, prefixlen=prefix_length, flags=flags)

    def set_offload(self, interface: str, feature: str, enabled: bool) -> None:
        """As ``ethtool -K``, with the kernel's name of the feature; not in a thread that runs an event loop."""
        with self, Ethtool() as ethtool:
            features = ethtool.get_features(interface)
            features.features[feature].enable = enabled
            ethtool.set_features(interface, features)

    def set_sysctl(self, name: str, value: str) -> None:
        """``name`` as below /proc/sys/net."""
        with self:
            Path(f"/proc/sys/net/{name}").write_text(value)

    def run_ip(self, arguments: str) -> str:
        """``ip`` there, also from a thread that runs an event loop, as Playwright's does."""
        command = ["ip", "-n", self.name, *arguments.split()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        """Remove the namespace with its interfaces."""
        self.ip.close()
        netns.remove(self.name)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """That many namespaces for the life of the block."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            host = Host()
            stack.callback(host.close)
            made.append(host)
        yield made


def connect(
    left: Host, left_interface: str, right: Host, right_interface: str, subnets: list[tuple[str, str, int]]
) -> None:
    """A veth pair between two hosts; ``subnets`` are (left address, right address, prefix length)."""
    suffix = uuid.uuid4().hex[:6]
    with IPRoute() as ip:
        ends = (f"l{suffix}", f"r{suffix}")
        ip.link("add", ifname=ends[0], kind="veth", peer=ends[1])
        for host, temporary, interface in (
            (left, ends[0], left_interface),
            (right, ends[1], right_interface),
        ):
            ip.link("set", index=ip.link_lookup(ifname=temporary)[0], net_ns_fd=host.name, ifname=interface)
    for host, interface, side in ((left, left_interface, 0), (right, right_interface, 1)):
        host.set_link(interface, "up")
        for *addresses, prefix in subnets:
            host.add_address(interface, str(addresses[side]), prefix)
