"""Which server has a key, and how it is reached: one server, the master that Sentinels name, or the nodes of a Cluster."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from fleet.config import RedisConfig, RedisKind
from fleet.redis_client import Connector, Link, LinkError, Node, Trouble, closing_on_error

# Nobody needs to be asked more often, whatever fails meanwhile.
_MIN_REFRESH_S, _REFRESH_S = 0.5, 30.0
_MAX_CLUSTER_NODES = 1000
# A Sentinel answers within some round trips, five with TLS; a second one fits into the time of a lane's probe.
_SENTINEL_S = 0.5


class Servers(Protocol):
    """Where keys are. ``nodes`` may change at any time; ``on_change`` is called then."""

    nodes: frozenset[Node]
    error: str

    def node_of(self, key: bytes) -> Node | None:
        """Who has a key; None while nobody is known to."""
        ...

    async def open(self, node: Node) -> Link:
        """Raises LinkError; waits for as long as the servers let it."""
        ...

    def doubt(self) -> None:
        """Something failed that would if who has what had changed."""
        ...

    async def refresh(self) -> None:
        """Find out who has what; takes as long as the servers let it."""
        ...

    async def follow(self) -> None:
        """Keep ``nodes`` true, until cancelled."""
        ...


def make_servers(config: RedisConfig, connector: Connector, on_change: Callable[[], None]) -> Servers:
    """As the URL says."""
    target = config.target
    nodes = [Node(*node) for node in target.nodes]
    if target.kind is RedisKind.CLUSTER:
        return ClusterServers(connector, nodes, config.timeout_s, on_change)
    if target.kind is RedisKind.SENTINEL:
        return SentinelServers(connector, nodes, target.service, config.timeout_s)
    return OneServer(connector, nodes[0])


class OneServer:
    """It has everything."""

    def __init__(self, connector: Connector, node: Node) -> None:
        self.nodes = frozenset((node,))
        self.error = ""
        self._connector = connector
        self._node = node

    def node_of(self, key: bytes) -> Node | None:
        """It."""
        return self._node

    async def open(self, node: Node) -> Link:
        """Raises LinkError."""
        return await self._connector.open(node)

    def doubt(self) -> None:
        """There is no other."""

    async def refresh(self) -> None:
        """Nothing to find out."""

    async def follow(self) -> None:
        """Nothing changes."""


class SentinelServers:
    """The master of a service, whoever that is when a connection is opened. Its name stands for it."""

    def __init__(self, connector: Connector, sentinels: list[Node], service: str, timeout_s: float) -> None:
        self._service = Node(service, 0)
        self.nodes = frozenset((self._service,))
        self.error = ""
        self._connector = connector
        self._sentinels = sentinels
        self._timeout_s = timeout_s

    def node_of(self, key: bytes) -> Node | None:
        """The master."""
        return self._service

    async def open(self, node: Node) -> Link:
        """Ask one Sentinel after the other until one names a server that says itself that it is a master. Raises LinkError."""
        troubles = []
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(min(self._timeout_s, _SENTINEL_S)):
                    master = await self._ask(sentinel)
                return await self._open_master(master)
            except TimeoutError:
                troubles.append(f"{sentinel} does not answer")
            except LinkError as trouble:
                troubles.append(str(trouble))
            except asyncio.CancelledError:
                # Who opens has no more time; the next attempt must not spend its own on the same one.
                self._put_last(sentinel)
                raise
            # The next one is asked first from now on.
            self._put_last(sentinel)
        raise LinkError(Trouble.AWAY, f"no Sentinel names a master: {'; '.join(dict.fromkeys(troubles))}")

    def doubt(self) -> None:
        """A new connection asks anew."""

    async def refresh(self) -> None:
        """Nothing to find out before there is a connection."""

    async def follow(self) -> None:
        """A master that became a replica closes connections, or refuses to write."""

    def _put_last(self, sentinel: Node) -> None:
        self._sentinels = [other for other in self._sentinels if other != sentinel] + [sentinel]

    async def _ask(self, sentinel: Node) -> Node:
        link = await self._connector.open_sentinel(sentinel)
        try:
            (reply,) = await link.execute([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service.host)])
        finally:
            link.close()
        match reply:
            case [bytes(host), bytes(port)] if port.isdigit() and len(port) <= 5:
                return Node(host.decode(errors="replace"), int(port))
            case LinkError():
                raise reply
        raise LinkError(Trouble.AWAY, f"{sentinel} knows no service {self._service.host!r}")

    async def _open_master(self, master: Node) -> Link:
        link = await self._connector.open(master)
        with closing_on_error(link):
            (role,) = await link.execute([("ROLE",)])
            # One that may not be asked (ACL) is believed.
            if isinstance(role, list) and role[:1] != [b"master"]:
                raise LinkError(
                    Trouble.AWAY, f"{master} is no master any more, and Sentinels do not know yet"
                )
        return link


class ClusterServers:
    """The masters of a Cluster by slot, as its nodes tell (CLUSTER SLOTS)."""

    def __init__(
        self, connector: Connector, seeds: list[Node], timeout_s: float, on_change: Callable[[], None]
    ) -> None:
        self.nodes: frozenset[Node] = frozenset()
        self.error = "no node of the Cluster was asked yet"
        self._connector = connector
        self._seeds = seeds
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._doubted = asyncio.Event()

    def node_of(self, key: bytes) -> Node | None:
        """The master of the key's slot."""
        return self._slots[key_slot(key)]

    async def open(self, node: Node) -> Link:
        """Raises LinkError."""
        return await self._connector.open(node)

    def doubt(self) -> None:
        """Ask who has what soon."""
        self._doubted.set()

    async def follow(self) -> None:
        """Ask now and then, and soon after a doubt."""
        while True:
            try:
                async with asyncio.timeout(_REFRESH_S if self.nodes else _MIN_REFRESH_S):
                    await self._doubted.wait()
            except TimeoutError:
                pass
            self._doubted.clear()
            await self.refresh()
            # Jitter: all hosts of a fleet see a node die at once.
            await asyncio.sleep(_MIN_REFRESH_S * (0.5 + random.random()))

    async def refresh(self) -> None:
        """Ask one node after the other until one tells."""
        known = random.sample(sorted(self.nodes), len(self.nodes))
        errors = []
        for node in dict.fromkeys([*known, *self._seeds]):
            try:
                async with asyncio.timeout(self._timeout_s):
                    slots = await self._ask(node)
            except TimeoutError:
                errors.append(f"{node} does not answer")
            except LinkError as trouble:
                errors.append(str(trouble))
            else:
                self._learn(slots)
                return
        self.error = f"no node of the Cluster tells who has what: {'; '.join(errors)[:500]}"

    def _learn(self, slots: list[Node | None]) -> None:
        nodes = frozenset(node for node in slots if node is not None)
        self.error = "" if None not in slots else "some slots of the Cluster belong to no node"
        if slots != self._slots:
            self._slots, self.nodes = slots, nodes
            self._on_change()

    async def _ask(self, node: Node) -> list[Node | None]:
        link = await self._connector.open(node)
        try:
            (reply,) = await link.execute([("CLUSTER", "SLOTS")])
        finally:
            link.close()
        if isinstance(reply, LinkError):
            raise reply
        try:
            return _read_slots_untrusted(reply, node)
        except (ValueError, TypeError, IndexError, AttributeError):
            raise LinkError(Trouble.AWAY, f"{node} tells of no Cluster") from None


def _read_slots_untrusted(reply: Any, asked: Node) -> list[Node | None]:
    """From ``[[first, last, [host, port, ...] of the master, replicas...], ...]``; an empty host is the node's that was asked."""
    slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    if not reply or len(reply) > REDIS_CLUSTER_HASH_SLOTS:
        raise ValueError("no slots")
    nodes: set[Node] = set()
    covered = 0
    for first, last, (host, port, *_), *_ in reply:
        name = host.decode() if host else asked.host
        if not (0 <= first <= last < len(slots) and 0 < port < 65_536):
            raise ValueError("no slot, or no port")
        covered += last + 1 - first
        if covered > len(slots):
            raise ValueError("a slot that two nodes have")
        if name == "?":  # a node that does not know its own address
            continue
        node = Node(name, port)
        nodes.add(node)
        if len(nodes) > _MAX_CLUSTER_NODES:
            raise ValueError("too many nodes")
        slots[first : last + 1] = [node] * (last + 1 - first)
    return slots
