"""What the kernel answers now about routes, links and neighbours, and what it is asked to do about a neighbour (pyroute2).

Neighbours that only XDP sends to are not used in the kernel's eyes: it would forget them, or never notice a new MAC. So
each is marked ``managed`` (NTF_EXT_MANAGED, since Linux 5.16): the kernel resolves it, and from then on probes it as if it
were used, every few seconds. NTF_USE in the same request does so once where the mark is not known; such a request is
repeated about once a second (``Neighbour.needs_care``). NLM_F_REPLACE is never set, so that no address is overridden.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable
from ipaddress import ip_address
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError

from relay.dataplane.bpf.ways import (
    ABSENT,
    NTF_EXT_MANAGED,
    NTF_USE,
    Link,
    Neighbour,
    NeighbourKey,
    NoWay,
    Route,
    read_link,
    read_neighbour,
    read_route,
)

# The kernel answers within a call's time; an answer that was lost would be waited for without end.
_ANSWER_S = 5.0
_NO_ROUTE = {
    errno.ENETUNREACH: "it has no route",
    errno.EHOSTUNREACH: "its route is unreachable",
    errno.EACCES: "its route is prohibited",
    errno.EINVAL: "its route is a blackhole, or our fleet address is not here",
}


class RouteQueries:
    """A netlink socket for questions, one at a time; ``with`` closes it. Methods raise OSError if it is of no use any more."""

    def __init__(self) -> None:
        self._ip: Any = AsyncIPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ip.close()

    async def route(self, host: bytes, source: bytes | None) -> Route:
        """How the kernel would send to a host now, from that address of ours. Raises NoWay."""
        options = {} if source is None else {"src": str(ip_address(source))}
        try:
            answers = await _answer(self._ip.route("get", dst=str(ip_address(host)), **options))
        except NetlinkError as error:
            raise NoWay(_NO_ROUTE.get(error.code, _words("its route", error))) from None
        if len(answers) != 1:
            raise NoWay(f"the kernel names {len(answers)} routes")
        return read_route(answers[0])

    async def link(self, which: int | str) -> Link | None:
        """An interface by ifindex or name; None if there is no such."""
        options = {"ifname": which} if isinstance(which, str) else {"index": which}
        try:
            return read_link((await _answer(self._ip.link("get", **options)))[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise NoWay(_words(f"interface {which}", error)) from None

    async def neighbour(self, key: NeighbourKey) -> Neighbour:
        """Its entry as it is now. Raises NoWay."""
        try:
            answers = await _answer(self._ip.neigh("get", ifindex=key.ifindex, **_address(key)))
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return ABSENT
            raise NoWay(_words(f"neighbour {key}", error)) from None
        return read_neighbour(answers[0])

    async def manage(self, key: NeighbourKey) -> None:
        """Have the kernel resolve a neighbour and keep it resolved: see the top of this file. Raises NoWay."""
        options = {"flags": NTF_USE, "flags_ext": NTF_EXT_MANAGED}
        try:
            await _answer(self._ip.neigh("append", ifindex=key.ifindex, state=0, **options, **_address(key)))
        except NetlinkError as error:
            raise NoWay(_words(f"neighbour {key} cannot be resolved", error)) from None

    async def forget(self, key: NeighbourKey) -> None:
        """Have the kernel drop a neighbour's entry. Raises NoWay."""
        try:
            await _answer(self._ip.neigh("del", ifindex=key.ifindex, **_address(key)))
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise NoWay(_words(f"neighbour {key} cannot be asked for again", error)) from None

    async def release(self, key: NeighbourKey) -> None:
        """The kernel may forget it again."""
        with contextlib.suppress(NetlinkError, NoWay):
            if (await self.neighbour(key)).is_managed:
                await _answer(
                    self._ip.neigh("change", ifindex=key.ifindex, state=0, flags=NTF_USE, **_address(key))
                )


async def _answer(question: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await question
    except NetlinkDecodeError as error:
        raise OSError(errno.EPROTO, f"an answer of the kernel is not understood: {error}") from error


def _address(key: NeighbourKey) -> dict[str, Any]:
    family = socket.AF_INET if len(key.host) == 4 else socket.AF_INET6
    return {"family": family, "dst": str(ip_address(key.host))}


def _words(what: str, error: NetlinkError) -> str:
    return f"{what}: {os.strerror(error.code)}"
