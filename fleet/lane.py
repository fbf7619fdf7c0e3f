"""A lane: work of one kind towards one server, with its own connection, deadline and breaker; and a set of them, one a server.

One pipeline is under way at a time. What comes meanwhile waits and shares the next one, by key, so nothing is there
twice; a pipeline that is not answered in time fails, with its connection. An idle lane asks PING, so that what is told of
Redis is true also when nobody needs it.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from fleet.breaker import Breaker
from fleet.redis_client import Command, Link, LinkError, Node, Reply, Trouble
from fleet.servers import Servers

# How long an idle lane believes that its server is there; after a failure it wants to know.
_IDLE_S, _UNSURE_S = 1.0, 0.1
# A connection costs several round trips, and more with TLS; only a probe has time for it.
_CONNECT_S = 1.0
_PING: Command = ("PING",)
# Turns of the event loop from a reply that can be read to a pipeline that is done, and one more.
_LATE_TURNS = 4

logger = logging.getLogger("fleet.agent")

Item = TypeVar("Item")


class Work(Protocol[Item]):
    """What a lane does in bulk."""

    def commands(self, batch: dict[bytes, Item]) -> list[Command]:
        """One for each."""
        ...

    def settle(self, batch: dict[bytes, Item], replies: Sequence[Reply]) -> None:
        """Each has its reply."""
        ...

    def abandon(self, batch: dict[bytes, Item]) -> None:
        """These will have none."""
        ...


@dataclass(frozen=True, kw_only=True)
class LaneRules:
    """deadline_s: of a pipeline. max_commands: in one. gather_s: how long the first of a pipeline waits for others."""

    deadline_s: float
    max_commands: int
    gather_s: float = 0.0


class _Errand(NamedTuple):
    commands: list[Command]
    done: asyncio.Future[list[Reply]]
    is_vital: bool


class Lane(Generic[Item]):
    """See the top of this file. ``on_return``: it works (again); what Redis holds may be old."""

    def __init__(
        self,
        node: Node,
        servers: Servers,
        work: Work[Item],
        rules: LaneRules,
        counts: Counter[str],
        on_return: Callable[[], None],
    ) -> None:
        self.node = node
        self.breaker = Breaker()
        self.pending: dict[bytes, Item] = {}
        # Of the last pipelines, in seconds.
        self.durations: deque[float] = deque(maxlen=512)
        self.has_worked = False
        self._servers = servers
        self._work = work
        self._rules = rules
        self._counts = counts
        self._on_return = on_return
        self._errands: deque[_Errand] = deque()
        self._link: Link | None = None
        self._wake = asyncio.Event()
        # What was refused last: a probe tries that again, as a PING would be answered by a server that is full.
        self._refused: Command | None = None

    @property
    def is_working(self) -> bool:
        """Whether what is sent now can be expected to be answered."""
        return self.has_worked and self.breaker.is_closed

    @property
    def error(self) -> str:
        """Why not."""
        return self.breaker.error or ("" if self.has_worked else f"connecting to {self.node}")

    def add(self, key: bytes, item: Item) -> None:
        """Work for the next pipeline; in place of what waits under that key."""
        self.pending[key] = item
        self._wake.set()

    async def execute(self, commands: list[Command], *, is_vital: bool = True) -> list[Reply]:
        """A pipeline of its own, before what waits. Raises LinkError, at once while the breaker is open.

        ``is_vital``: without it the lane is of no use, so the breaker opens where all of it is refused.
        """
        if not self.breaker.is_closed:
            raise LinkError(Trouble.AWAY, self.breaker.error)
        done: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._errands.append(_Errand(commands, done, is_vital))
        self._wake.set()
        return await done

    def hurry(self) -> None:
        """Have the next probe now."""
        self.breaker.hurry(time.monotonic())
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled; what waits then is abandoned."""
        try:
            while True:
                try:
                    await self._take_turn()
                except Exception:
                    logger.exception("a defect in the lane to %s", self.node)
                    self._fail(LinkError(Trouble.AWAY, f"a defect in the lane to {self.node}; see the log"))
        finally:
            self._drop_link()
            # Whoever still has this lane is told so at once.
            self.breaker.trip(time.monotonic(), str(self._farewell()))
            self._abandon_all(self._farewell())

    async def _take_turn(self) -> None:
        if not self.breaker.is_closed:
            await self._wait(self.breaker.probe_at - time.monotonic())
            if self.breaker.begin_probe(time.monotonic()):
                await self._probe()
        elif not self.has_worked or not (self._errands or self.pending or await self._wait_idle()):
            await self._attempt([_PING])
        else:
            await self._work_off()

    async def _wait_idle(self) -> bool:
        """Whether there is work, rather than nothing for a while."""
        await self._wait(_UNSURE_S if self.breaker.failures else _IDLE_S)
        return bool(self._errands or self.pending)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._connect()
        except TimeoutError:
            self._fail(LinkError(Trouble.TIMEOUT, f"{self.node} does not let us in within {_CONNECT_S:g} s"))
        except LinkError as trouble:
            self._fail(trouble)
        else:
            await self._attempt([_harmless(self._refused) if self._refused else _PING])

    async def _work_off(self) -> None:
        self._wake.clear()
        if self._errands:
            commands, done, is_vital = self._errands.popleft()
            try:
                outcome = await self._attempt(commands, is_vital=is_vital)
            except BaseException:
                if not done.done():
                    done.set_exception(self._farewell())
                raise
            if done.done():
                return
            if isinstance(outcome, LinkError):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)
            return
        if self._rules.gather_s and len(self.pending) < self._rules.max_commands:
            await asyncio.sleep(self._rules.gather_s)
        batch = dict(islice(self.pending.items(), self._rules.max_commands))
        for key in batch:
            del self.pending[key]
        try:
            outcome = await self._attempt(self._work.commands(batch))
        except BaseException:
            self._work.abandon(batch)
            raise
        if isinstance(outcome, LinkError):
            self._work.abandon(batch)
        else:
            self._work.settle(batch, outcome)

    async def _attempt(self, commands: list[Command], *, is_vital: bool = True) -> list[Reply] | LinkError:
        """Replies, or why there are none; the breaker has heard of it."""
        began = time.monotonic()
        try:
            replies = await _in_time(self._rules.deadline_s, self._execute(commands))
        except TimeoutError:
            trouble = LinkError(
                Trouble.TIMEOUT, f"{self.node} does not answer within {self._rules.deadline_s:g} s"
            )
            self._counts["timeouts"] += 1
            self._fail(trouble, timed_out_since=began)
            return trouble
        except LinkError as trouble:
            self._fail(trouble)
            return trouble
        self.durations.append(time.monotonic() - began)
        self._judge(commands, replies, is_vital=is_vital)
        return replies

    async def _execute(self, commands: list[Command]) -> list[Reply]:
        await self._connect()
        assert self._link is not None
        return await self._link.execute(commands)

    async def _connect(self) -> None:
        if self._link is not None and await self._link.is_stale():
            self._drop_link()
        if self._link is None:
            self._link = await self._servers.open(self.node)
            if self.has_worked:
                self._counts["reconnects"] += 1
                if self.breaker.is_closed:
                    self._on_return()

    def _judge(self, commands: list[Command], replies: list[Reply], *, is_vital: bool) -> None:
        troubles = [reply for reply in replies if isinstance(reply, LinkError)]
        if any(trouble.kind is Trouble.MOVED for trouble in troubles):
            self._counts["moved"] += 1
            self._servers.doubt()
        serious = [t for t in troubles if t.kind in (Trouble.AWAY, Trouble.REFUSED)]
        self._counts["refused"] += len(serious)
        if len(serious) == len(replies):
            if not is_vital:
                return
            self._refused = commands[0]
            self._open_breaker(serious[0])
            # A master that became a replica: there is another one.
            self._drop_link()
            return
        if commands != [_PING]:
            self._refused = None
        if self.breaker.succeed() or not self.has_worked:
            self.has_worked = True
            self._on_return()

    def _fail(self, trouble: LinkError, timed_out_since: float | None = None) -> None:
        self._drop_link()
        self._servers.doubt()
        if self.breaker.fail(time.monotonic(), str(trouble), timed_out_since=timed_out_since):
            self._abandon_all(trouble)

    def _open_breaker(self, trouble: LinkError) -> None:
        self._servers.doubt()
        if self.breaker.trip(time.monotonic(), str(trouble)):
            self._abandon_all(trouble)

    def _farewell(self) -> LinkError:
        return LinkError(Trouble.AWAY, f"{self.node} is asked no more")

    def _abandon_all(self, trouble: LinkError) -> None:
        while self._errands:
            done = self._errands.popleft().done
            if not done.done():
                done.set_exception(trouble)
        if self.pending:
            batch = dict(self.pending)
            self.pending.clear()
            self._work.abandon(batch)

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _harmless(refused: Command) -> Command:
    """What a server refuses for the same reasons, and which undoes nothing that others have written since.

    A SET becomes one of an empty value, which nobody takes for an entry, where there is none.
    """
    if refused[0] != "SET":
        return refused
    return ("SET", refused[1], b"", "EX", 1, "NX")


async def _in_time(seconds: float, work: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
    """Raises TimeoutError; not if the reply is there, and it is only we who are late, on a machine that is overloaded."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(_LATE_TURNS):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        raise TimeoutError
    finally:
        task.cancel()
        if not task.done():
            await asyncio.wait({task})


class Lanes(Generic[Item]):
    """A lane to each server that there is."""

    def __init__(self, servers: Servers, make: Callable[[Node], Lane[Item]]) -> None:
        self._servers = servers
        self._make = make
        self._lanes: dict[Node, tuple[Lane[Item], asyncio.Task[None]]] = {}

    def __iter__(self) -> Iterator[Lane[Item]]:
        return iter([lane for lane, _ in self._lanes.values()])

    def __len__(self) -> int:
        """How much waits in all of them."""
        return sum(len(lane.pending) for lane, _ in self._lanes.values())

    def follow(self) -> None:
        """Begin lanes to new servers, and end those to servers that are gone."""
        for node in self._lanes.keys() - self._servers.nodes:
            _, task = self._lanes.pop(node)
            task.cancel()
        for node in self._servers.nodes - self._lanes.keys():
            lane = self._make(node)
            self._lanes[node] = lane, asyncio.create_task(lane.run(), name=f"lane to {node}")

    def of(self, key: bytes) -> Lane[Item] | None:
        """The lane to who has a key, if it is believed to work."""
        node = self._servers.node_of(key)
        found = self._lanes.get(node) if node is not None else None
        return found[0] if found is not None and found[0].breaker.is_closed else None

    async def execute(self, key: bytes, commands: list[Command], *, is_vital: bool = True) -> list[Reply]:
        """A pipeline to who has a key: see ``Lane.execute``. Raises LinkError."""
        lane = self.of(key)
        if lane is None:
            raise LinkError(Trouble.AWAY, self.error or "no server is known that has it")
        return await lane.execute(commands, is_vital=is_vital)

    @property
    def error(self) -> str:
        """Why not all of them work; empty if they do."""
        return next((lane.error for lane in self if not lane.is_working), self._servers.error)

    async def close(self) -> None:
        """End all."""
        tasks = [task for _, task in self._lanes.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
