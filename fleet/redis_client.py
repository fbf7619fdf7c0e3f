"""One connection to one Redis server, on redis-py's connections: pipelines in, replies out, every error one of our own.

redis-py's clients, pools and cluster retry, reconnect and refresh by themselves, each with times of its own. Here whoever
calls sets one deadline around everything (asyncio.timeout) and decides what comes next; so only its connections are used.
Nothing in here waits forever but for the server. What a server sends may be anything.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from redis.asyncio import Connection, SSLConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet.config import RedisConfig, Secrets

Command = tuple[bytes | str | int | float, ...]
# What a broken-in-upon server may write into a log line.
_MAX_ERROR_CHARS = 200
# 64 KB: a pipeline of 512 look-ups is answered in about 30.
_READ_BYTES = 65_536


class Trouble(StrEnum):
    """What can be wrong, as far as it makes a difference to what is done."""

    TIMEOUT = "timeout"  # no answer in time
    AWAY = "away"  # no connection, no log-in, or nobody behind it who could answer
    REFUSED = "refused"  # it answers, and will not do this
    MOVED = "moved"  # another node of the Cluster has it
    WRONG_TYPE = "wrong_type"  # somebody else wrote something else there


class LinkError(Exception):
    """Raised for a whole pipeline, or in the place of one reply. The text is for an operator."""

    def __init__(self, kind: Trouble, text: str) -> None:
        super().__init__(text)
        self.kind = kind


Reply = bytes | int | list[Any] | LinkError | None


class Node(NamedTuple):
    """A server."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:  # the name of a service that Sentinels know
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Link:
    """One open connection. Whoever gets a LinkError, or gives up waiting, closes it: its replies are out of step."""

    def __init__(self, connection: Connection, node: Node) -> None:
        self._connection = connection
        self.node = node

    async def execute(self, commands: Sequence[Command]) -> list[Reply]:
        """One reply a command; those that Redis refused are LinkError. Raises LinkError if there are no replies."""
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(commands))
            return [await self._read_reply() for _ in commands]
        except LinkError:
            raise
        except Exception as error:
            raise _explain(self.node, error) from error

    async def is_stale(self) -> bool:
        """Whether the server has closed it, or said what nobody asked for."""
        try:
            return bool(await self._connection.can_read())
        except (RedisError, OSError):
            return True

    def close(self) -> None:
        """At once; what is under way fails."""
        _abort(self._connection)

    async def _read_reply(self) -> Reply:
        try:
            reply: Reply = await self._connection.read_response()
        except ResponseError as error:
            return _explain(self.node, error)
        return reply


class Connector:
    """Opens connections as configured. ``secrets`` may be replaced at any time."""

    def __init__(self, config: RedisConfig, secrets: Secrets, tls: ssl.SSLContext | None) -> None:
        self.secrets = secrets
        self._username = config.username
        self._database = config.target.database
        self._tls = tls

    async def open(self, node: Node) -> Link:
        """A server that holds data. Raises LinkError."""
        return await self._open(
            node,
            username=self._username or None,
            password=self.secrets.password or None,
            db=self._database,
        )

    async def open_sentinel(self, node: Node) -> Link:
        """A Sentinel. Raises LinkError."""
        return await self._open(node, password=self.secrets.sentinel_password or None)

    async def _open(self, node: Node, **options: Any) -> Link:
        options |= {
            "host": node.host,
            "port": node.port,
            # Who calls has one deadline around all.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            # A lane asks by itself, once a second, when it is idle.
            "health_check_interval": 0,
            # RESP2: every server speaks it, needs no HELLO of an ACL user, and never talks unasked.
            "protocol": 2,
            # One round trip less for each connection, and no CLIENT that an ACL must allow.
            "driver_info": None,
            "socket_read_size": _READ_BYTES,
        }
        if self._tls is None:
            connection = Connection(**options)
        else:
            connection = SSLConnection(**options)
            # Loaded while we could still read the key.
            connection.ssl_context.context = self._tls
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            _abort(connection)
            raise
        except Exception as error:
            _abort(connection)
            raise _explain(node, error) from error
        return Link(connection, node)


def _abort(connection: Connection) -> None:
    """The public ``disconnect`` first sends what is left, which a frozen server never takes."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    connection._close()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def closing_on_error(link: Link) -> Iterator[None]:
    """Close the link if the block does not come to its end."""
    try:
        yield
    except BaseException:
        link.close()
        raise


# In this order: each before the class that it is derived from. redis-py's own classes are known nowhere else.
_EXPLANATIONS: tuple[tuple[type[Exception], Trouble, str], ...] = (
    (AuthenticationError, Trouble.AWAY, "refuses our log-in; mend redis.username and redis.password_file"),
    (BusyLoadingError, Trouble.AWAY, "is loading its data"),
    (MasterDownError, Trouble.AWAY, "is a replica without its master"),
    (ClusterDownError, Trouble.AWAY, "belongs to a Cluster that is down"),
    (
        AskError,
        Trouble.MOVED,
        "has given the key to another node (write redis+cluster:// if this is a Cluster)",
    ),
    (TryAgainError, Trouble.MOVED, "is moving the key"),
    (OutOfMemoryError, Trouble.REFUSED, "is full; raise its maxmemory, or let it evict (allkeys-lru)"),
    (ReadOnlyError, Trouble.REFUSED, "is a read-only replica; name its master"),
    (NoPermissionError, Trouble.REFUSED, "does not permit it; see docs/operating.md for the ACL"),
    (ResponseError, Trouble.REFUSED, "refuses"),
    (RedisTimeoutError, Trouble.AWAY, "does not answer"),
    (RedisConnectionError, Trouble.AWAY, "cannot be reached"),
    (OSError, Trouble.AWAY, "cannot be reached"),
)


def _explain(node: Node, error: Exception) -> LinkError:
    said = " ".join(str(error).split())[:_MAX_ERROR_CHARS]
    if isinstance(error, ResponseError) and said.startswith("WRONGTYPE"):
        return LinkError(Trouble.WRONG_TYPE, said)
    for kind, trouble, words in _EXPLANATIONS:
        if isinstance(error, kind):
            return LinkError(trouble, f"{node} {words} ({said})" if said else f"{node} {words}")
    # Whatever else its bytes made of redis-py: it is no Redis.
    return LinkError(Trouble.AWAY, f"{node} does not speak as Redis does ({type(error).__name__}: {said})")
