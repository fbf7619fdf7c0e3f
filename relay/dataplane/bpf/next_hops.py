"""The map ``next_hops``, kept true: the way to each transceiver's host, as routes, neighbours and links are now.

An entry is only ever what the kernel answered, never what an event said. Rules:

1. The subscription comes first, then every wanted host is looked up; events tell which to look up again.
2. Events are gathered for a moment, and for longer where the look-ups themselves take long, so that a storm of them costs
   a bounded share of a core. What cannot matter (a stranger's neighbour entry) costs microseconds.
3. Where events were lost, everything is looked up again, as it is every few seconds: what no event tells of, a path MTU
   or an interface's name, is followed at that pace.
4. Where anything is not understood, or the kernel cannot be followed, entries go: the workers serve these hosts then. When
   the follower is cancelled they stay, as the data path goes on without its supervisor.
"""

import asyncio
import contextlib
import ctypes
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from relay.dataplane.bpf.abi import MAX_NEXT_HOPS, Host
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.route_events import (
    Event,
    EverythingEvent,
    LinkEvent,
    NeighbourEvent,
    RouteEvent,
    RouteEvents,
)
from relay.dataplane.bpf.route_queries import RouteQueries
from relay.dataplane.bpf.ways import (
    ABSENT,
    MAX_TAGS,
    Link,
    Neighbour,
    NeighbourKey,
    NoWay,
    Way,
    check_route,
    find_exit,
)
from wire.address import Address

logger = logging.getLogger(__name__)

# Events come together: a route with its neighbours.
_GATHER_S = 0.02
# Look-ups may take a third of a core while events come without end, and a twentieth for the check of everything. The rest
# is a fraction of the second in which a change is to be followed.
_LONGEST_REST_S = 0.3
_REST_AFTER_LOOKUPS, _REST_AFTER_CHECK = 2.0, 20.0
_CHECK_INTERVAL_S = 5.0
# ARP's and ND's own interval between requests.
_CARE_INTERVAL_S = 1.0
_RETRY_S = 1.0
_NOT_YET = "it has not been looked up yet"


@dataclass
class _Wanted:
    """A host. ``entry`` is what its map entry holds, empty for none; ``way`` is why there is none, or how it is reached."""

    entry: bytes = b""
    way: Way | None = None
    why: str = _NOT_YET
    neighbour: NeighbourKey | None = None


@dataclass
class _Changes:
    """What is to be looked up again. Networks are (packed, prefix length)."""

    everything: bool = False
    hosts: set[bytes] = field(default_factory=set)
    neighbours: set[NeighbourKey] = field(default_factory=set)
    networks: set[tuple[bytes, int]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.everything or bool(self.hosts or self.neighbours or self.networks)

    def touched(self, wanted: Mapping[bytes, _Wanted]) -> list[bytes]:
        """The hosts whose way could be another."""
        if self.everything:
            return list(wanted)
        lengths = {(len(network), length) for network, length in self.networks}
        return [
            host
            for host, state in wanted.items()
            if host in self.hosts
            or state.neighbour in self.neighbours
            or any(len(host) == size and (_cut(host, bits), bits) in self.networks for size, bits in lengths)
        ]


class NextHops:
    """See the top of this file."""

    def __init__(
        self,
        table: BpfMap,
        interfaces: Collection[str],
        sources: Mapping[int, bytes],
        on_mtu: Callable[[int], None],
        is_ours: Callable[[int], bool] = lambda program_id: True,
    ) -> None:
        """interfaces: names of those with our XDP program; no other is redirected to.

        sources: our packed fleet address by family (4, 6), which routes are asked for; a wildcard says nothing.
        on_mtu: told the smallest MTU of the interfaces in bytes, 0 if none of them is there; first and when it changes.
        is_ours: whether the XDP program of that id (0: none) on an interface lets it be redirected to.
        """
        self._table = table
        self._interfaces = tuple(interfaces)
        self._sources = {family: source for family, source in sources.items() if any(source)}
        self._on_mtu = on_mtu
        self._is_ours = is_ours
        self._wanted: dict[bytes, _Wanted] = {}
        self._neighbours: dict[NeighbourKey, Neighbour] = {}
        self._managed: set[NeighbourKey] = set()
        self._asked_for: NeighbourKey | None = None
        self._links: dict[int, tuple[object, ...]] = {}
        # Since everything was looked up, and those that it is looked up for now.
        self._changed_links: set[int] = set()
        self._links_anew: set[int] = set()
        self._changes = _Changes()
        self._woken = asyncio.Event()
        self._mtu: int | None = None
        self._last_failure = ""
        self._told_full = False

    def want(self, hosts: Collection[bytes]) -> None:
        """Keep an entry for these hosts too (packed, 4 or 16 bytes)."""
        added = {_normal(host) for host in hosts if host not in self._wanted} - self._wanted.keys()
        for host in added:
            if len(self._wanted) >= MAX_NEXT_HOPS:
                if not self._told_full:
                    logger.warning(
                        "more than %d hosts of transceivers: workers serve the others", MAX_NEXT_HOPS
                    )
                self._told_full = True
                return
            self._wanted[host] = _Wanted()
            self._changes.hosts.add(host)
            self._woken.set()

    def forget_all_but(self, hosts: Collection[bytes]) -> None:
        """Remove every other host and its entry."""
        kept = {_normal(host) for host in hosts}
        for host in self._wanted.keys() - kept:
            self._remove(host, self._wanted.pop(host))

    def describe(self) -> list[dict[str, Any]]:
        """For ``status``: each host, with the way to it or why there is none."""
        return [_describe(host, state) for host, state in sorted(self._wanted.items())]

    async def run(self) -> None:
        """Follow the kernel until cancelled. What the map holds already is wanted too. Raises OSError if it cannot be read."""
        for key, value in list(self._table.items()):
            host = _normal(bytes(key.address))
            self._wanted.setdefault(host, _Wanted()).entry = bytes(value)
        while True:
            try:
                with RouteEvents(self._note) as events, RouteQueries() as queries:
                    self._note(EverythingEvent(were_lost=True))
                    await self._follow(events, queries)
            except OSError as error:
                self._give_up(f"routes cannot be followed: {error}")
            await asyncio.sleep(_RETRY_S)

    async def release(self) -> None:
        """Let go of the neighbours that the kernel was asked to keep resolved, when ``run`` has ended and is not to go on."""
        with RouteQueries() as queries:
            await self._release(queries, self._managed)

    async def _follow(self, events: RouteEvents, queries: RouteQueries) -> None:
        """Until the subscription or the questions fail (OSError)."""
        check_at = care_at = 0.0
        while True:
            events.check()
            started = time.monotonic()
            if started >= check_at:
                self._changes.everything = True
            if started >= care_at:
                await self._care(queries)
                care_at = started + _CARE_INTERVAL_S
            changes, self._changes = self._changes, _Changes()
            if changes:
                await self._look_up(queries, changes)
                self._last_failure = ""
            took = time.monotonic() - started
            if changes.everything:
                check_at = started + max(_CHECK_INTERVAL_S, took * _REST_AFTER_CHECK)
            await asyncio.sleep(min(took * _REST_AFTER_LOOKUPS, _LONGEST_REST_S))
            await self._wait_for_change(check_at, care_at)

    async def _wait_for_change(self, check_at: float, care_at: float) -> None:
        """Until something is to be done, and then for a moment, as changes come together."""
        if any(neighbour.needs_care for neighbour in self._neighbours.values()):
            check_at = min(check_at, care_at)
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it forgets that it was cancelled, if what it waits for comes at that moment.
            async with asyncio.timeout(max(check_at - time.monotonic(), 0.0)):
                await self._woken.wait()
            await asyncio.sleep(_GATHER_S)
        self._woken.clear()

    def _note(self, event: Event) -> None:
        """Called for each event: what does it concern?"""
        match event:
            case NeighbourEvent(key, neighbour):
                if not self._concerns_us(key, neighbour):
                    return
            case RouteEvent(network, length):
                self._changes.networks.add((network, length))
            case LinkEvent(index, properties):
                if self._links.get(index) == properties:
                    return
                self._links[index] = properties
                if not properties:
                    del self._links[index]
                self._changed_links.add(index)
                self._changes.everything = True
            case EverythingEvent(were_lost):
                if were_lost:
                    self._links.clear()
                self._changes.everything = True
        self._woken.set()

    def _concerns_us(self, key: NeighbourKey, neighbour: Neighbour) -> bool:
        known = self._neighbours.get(key)
        if known is None:
            return False
        # While the kernel is asked, its answer may be older or newer than what it tells here.
        if known.usable_mac != neighbour.usable_mac or key == self._asked_for:
            self._changes.neighbours.add(key)
            return True
        self._neighbours[key] = neighbour
        return neighbour.needs_care and not known.needs_care

    async def _look_up(self, queries: RouteQueries, changes: _Changes) -> None:
        pass_ = _Pass(queries, self._interfaces, self._is_ours, self._look_at)
        if changes.everything:
            self._links_anew, self._changed_links = self._changed_links, set()
            await self._tell_mtu(pass_)
        for host in changes.touched(self._wanted):
            state = self._wanted.get(host)
            if state is None:
                continue  # forgotten meanwhile
            source = self._sources.get(4 if len(host) == 4 else 6)
            neighbour, way, why = await pass_.resolve(host, source)
            if self._wanted.get(host) is state:
                state.neighbour = neighbour
                self._install(host, state, way, why)
        self._links_anew = set()
        await self._let_go(queries)

    async def _tell_mtu(self, pass_: "_Pass") -> None:
        mtu = await pass_.smallest_mtu()
        if mtu != self._mtu:
            self._mtu = mtu
            self._on_mtu(mtu)

    async def _look_at(self, queries: RouteQueries, key: NeighbourKey) -> Neighbour:
        """A neighbour as it is, asking the kernel to resolve it or keep it resolved. Raises NoWay."""
        self._asked_for = key
        self._neighbours.setdefault(key, ABSENT)
        try:
            neighbour = await queries.neighbour(key)
            if neighbour.is_unanswered and key.ifindex in self._links_anew:
                # What was asked while the link was away is asked again at once, not a second later.
                await queries.forget(key)
                neighbour = ABSENT
            if neighbour.needs_care:
                was_managed = neighbour.is_managed
                await queries.manage(key)
                neighbour = await queries.neighbour(key)
                if neighbour.is_managed and not was_managed:
                    self._managed.add(key)
            self._neighbours[key] = neighbour
            return neighbour
        finally:
            self._asked_for = None

    async def _care(self, queries: RouteQueries) -> None:
        """Ask again for what did not answer."""
        for key, known in list(self._neighbours.items()):
            if not known.needs_care:
                continue
            try:
                if (await self._look_at(queries, key)).usable_mac != known.usable_mac:
                    self._changes.neighbours.add(key)
            except NoWay:
                self._changes.neighbours.add(key)

    async def _let_go(self, queries: RouteQueries) -> None:
        """Of neighbours that no wanted host is reached by."""
        used = {state.neighbour for state in self._wanted.values()}
        self._neighbours = {key: known for key, known in self._neighbours.items() if key in used}
        await self._release(queries, self._managed - used)

    async def _release(self, queries: RouteQueries, keys: Iterable[NeighbourKey]) -> None:
        for key in list(keys):
            await queries.release(key)
            self._managed.discard(key)

    def _install(self, host: bytes, state: _Wanted, way: Way | None, why: str) -> None:
        value = way.to_next_hop() if way else None
        if value is not None and state.entry != bytes(value):
            try:
                self._table.put(_key(host), value)
                state.entry = bytes(value)
            except OSError as error:
                way, value, why = None, None, f"the map takes no entry for it: {error}"
        if value is None:
            self._remove(host, state)
        if (state.way, state.why) != (way, why):
            logger.info("%s: %s", ip_address(host), f"by {way}" if way else f"by way of the workers: {why}")
        state.way, state.why = way, why

    def _remove(self, host: bytes, state: _Wanted) -> None:
        if state.entry:
            self._table.delete(_key(host))
            state.entry = b""

    def _give_up(self, why: str) -> None:
        if why != self._last_failure:
            logger.error("%s; the workers serve every flow until they can be", why)
        self._last_failure = why
        self._neighbours.clear()
        for host, state in self._wanted.items():
            self._remove(host, state)
            state.way, state.why, state.neighbour = None, why, None


class _Pass:
    """Look-ups that belong together: each link and neighbour is asked for once."""

    def __init__(
        self,
        queries: RouteQueries,
        interfaces: Collection[str],
        is_ours: Callable[[int], bool],
        look_at: Callable[[RouteQueries, NeighbourKey], Awaitable[Neighbour]],
    ) -> None:
        self._queries = queries
        self._interfaces = interfaces
        self._is_ours = is_ours
        self._look_at = look_at
        self._links: dict[int | str, Link | None] = {}
        self._neighbours: dict[NeighbourKey, Neighbour] = {}

    async def resolve(self, host: bytes, source: bytes | None) -> tuple[NeighbourKey | None, Way | None, str]:
        """The way to a host, or why there is none, and the neighbour that it hangs on."""
        key = None
        try:
            route = await self._queries.route(host, source)
            check_route(route)
            exit_ = find_exit(route, await self._chain(route.ifindex), self._interfaces, self._is_ours)
            key = NeighbourKey(route.ifindex, route.gateway or host)
            mac = (await self._neighbour(key)).usable_mac
            if mac is None:
                raise NoWay(f"its neighbour {key} does not answer on {exit_.interface}")
            return key, Way(exit_, mac), ""
        except NoWay as error:
            return key, None, str(error)

    async def smallest_mtu(self) -> int:
        """Of our interfaces, 0 if none is there."""
        mtus = []
        for name in self._interfaces:
            with contextlib.suppress(NoWay):
                link = await self._link(name)
                mtus += [link.mtu] if link else []
        return min(mtus, default=0)

    async def _chain(self, index: int) -> list[Link]:
        """An interface, then what carries it, at most as far as tags go."""
        chain: list[Link] = []
        while True:
            link = await self._link(index)
            if link is None:
                raise NoWay("its interface is gone")
            chain.append(link)
            if link.tag is None or not link.lower or len(chain) > MAX_TAGS:
                return chain
            index = link.lower

    async def _link(self, which: int | str) -> Link | None:
        if which not in self._links:
            self._links[which] = await self._queries.link(which)
        return self._links[which]

    async def _neighbour(self, key: NeighbourKey) -> Neighbour:
        if key not in self._neighbours:
            self._neighbours[key] = await self._look_at(self._queries, key)
        return self._neighbours[key]


def _normal(host: bytes) -> bytes:
    return Address.from_mapped(host, 0).host


def _key(host: bytes) -> Host:
    return Host((ctypes.c_uint8 * 16)(*Address(host, 0).mapped))


def _cut(host: bytes, bits: int) -> bytes:
    """The network of a host: what follows the prefix is 0."""
    rest = 8 * len(host) - bits
    return (int.from_bytes(host, "big") >> rest << rest).to_bytes(len(host), "big")


def _describe(host: bytes, state: _Wanted) -> dict[str, Any]:
    way = state.way
    return {
        "host": str(ip_address(host)),
        "interface": way.exit.interface if way else None,
        "mac": way.to_mac.hex(":") if way else None,
        "vlans": [vlan for _, vlan in way.exit.tags] if way else [],
        "mtu": way.exit.mtu if way else None,
        "why": state.why,
    }
