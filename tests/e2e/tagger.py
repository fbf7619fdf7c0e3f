"""A switch between client and relay, in XDP: tags are put on and taken off by ``tagger.c``, as this kernel has no VLAN devices."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay.dataplane.bpf import links
from relay.dataplane.bpf.kernel_headers import make_kernel_tree
from relay.dataplane.bpf.links import XdpMode
from tests.e2e.namespaces import Host, connect, hosts
from tests.e2e.three_hosts import PUBLIC, Site, join_fleet

_VIP_PORT = 3478


class Tagger:
    """What it is to do, and what it saw."""

    def __init__(self, host: Host) -> None:
        """host: its interface ``in`` leads to the client, ``out`` to the relay."""
        ends = {name: host.ip.link_lookup(ifname=name)[0] for name in ("in", "out")}
        self._bpf = _compile(
            f"-DVIP_PORT={_VIP_PORT}", f"-DTO_RELAY={ends['out']}", f"-DTO_CLIENT={ends['in']}"
        )
        with host:
            for interface, name in (("in", b"from_client"), ("out", b"from_relay")):
                program = self._bpf.load_func(name, self._bpf.XDP)
                links.attach(interface, program.fd, (XdpMode.NATIVE,), set())

    def put_on(self, tags: int) -> None:
        """From now on: 0, 1 (802.1Q) or 2 (802.1ad with 802.1Q in it)."""
        wanted = self._bpf[b"wanted"]
        wanted[wanted.Key(0)] = wanted.Leaf(tags)

    def counts(self) -> dict[str, int]:
        """Datagrams to and from the VIP by their number of tags, and tags that nobody put on."""
        return {
            f"{name} {tags}": self._bpf[name.encode()][tags].value
            for name in ("up", "down")
            for tags in range(3)
        } | {"wrong": self._bpf[b"wrong"][0].value}

    def close(self) -> None:
        """Its interfaces keep the programs until they are gone."""
        self._bpf.cleanup()


def _compile(*flags: str) -> Any:
    # Imported late: Debian's module, which only hosts with a BPF data path have.
    import bcc

    with tempfile.TemporaryDirectory(prefix="relayctl-kernel-") as tree:
        make_kernel_tree(Path(tree))
        # Read by libbcc at compile time; there is no argument for it.
        os.environ["BCC_KERNEL_SOURCE"] = tree
        try:
            text = Path(__file__).with_name("tagger.c").read_bytes()
            return bcc.BPF(text=text, cflags=["-Wall", "-Werror", *flags])
        finally:
            del os.environ["BCC_KERNEL_SOURCE"]


@contextlib.contextmanager
def two_armed_by_a_tagger() -> Iterator[tuple[Site, Tagger]]:
    """As ``two_armed``, with a tagger between client and relay.

    Senders complete their checksums: what is redirected loses the mark that they have not.
    """
    with hosts(4) as (client, relay, transceiver, switch), contextlib.ExitStack() as stack:
        connect(client, "eth0", switch, "in", [])
        connect(switch, "out", relay, "public", [])
        tagger = Tagger(switch)
        stack.callback(tagger.close)
        for *addresses, prefix_length in PUBLIC:
            client.add_address("eth0", str(addresses[0]), int(prefix_length))
            relay.add_address("public", str(addresses[1]), int(prefix_length))
        client.set_offload("eth0", "tx-checksum-ip-generic", False)
        relay.set_offload("public", "tx-checksum-ip-generic", False)
        site = join_fleet(client, relay, transceiver)
        with client:
            yield site, tagger
