"""What calls survive, end to end: a relay behind an impaired path, and clients on another host, Chromium or stock aiortc.

The path has the VIP's address and leads to where the relay listens, as a cloud's 1:1 NAT does; signaling goes beside it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.path import CLEAN, Direction, Impairment, ThreadedPath, path_in_thread
from cli.call import EchoCall
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, running
from tests.e2e.xdp import CLIENT_IP, SIGNALING, VIP, need_network
from wire.address import Address

_LISTEN = Address.parse("127.0.0.1:3479")
# Of what the path loses, doubles and reorders.
SEED = 1


@contextlib.contextmanager
def on_path(
    network: Network | None,
    state_dir: Path,
    *arguments: str,
    up: Impairment = CLEAN,
    down: Impairment = CLEAN,
) -> Iterator[tuple[Instance, ThreadedPath]]:
    """An instance and a path on the host ``there``; aiortc clients of this process have one address."""
    there = need_network(network).there
    addresses = ("--listen", str(_LISTEN), "--vip", VIP)
    with contextlib.ExitStack() as stack:
        stack.enter_context(clients_at(CLIENT_IP))
        with there:
            path = path_in_thread(Address.parse(VIP), _LISTEN, seed=SEED, up=up, down=down)
            made = stack.enter_context(path)
            instance = stack.enter_context(
                running(state_dir, *addresses, "--insecure", *arguments, http=SIGNALING)
            )
        yield instance, made


@contextlib.contextmanager
def clients_at(*hosts: str) -> Iterator[None]:
    """aiortc clients of this process have no other addresses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: list(hosts))
        yield


def echo_call(instance: Instance) -> EchoCall:
    """A stock aiortc client, also on a busy machine."""
    return EchoCall(instance.url, bearer_token=instance.token, setup_timeout_s=40)


def only_session(instance: Instance) -> dict[str, Any]:
    """As ``relayctl sessions --json``."""
    [session] = instance.sessions()
    return session


def media_gaps_ms(path: ThreadedPath) -> dict[str, int]:
    """The longest silence on the path each way, since ``forget_gaps``."""
    return {f"gap {d.name.lower()}_ms": round(path.media_gap_s(d) * 1000) for d in Direction}
