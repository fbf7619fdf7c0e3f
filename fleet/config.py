"""Where Redis is, and how long it is believed: the ``[redis]`` table, checked once."""

import re
import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import unquote

from host.config_table import ConfigTable
from host.errors import ConfigError
from host.state_dir import read_secret

_URL = re.compile(r"(?P<scheme>[a-z+]+)://(?P<nodes>[^/?#]*)(?P<path>/[^?#]*)?(?P<rest>[?#].*)?")
_NODE = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_EXAMPLES = (
    "redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE or redis+cluster://HOST:PORT,HOST:PORT; "
    "rediss:// and so on with TLS"
)
_REDIS_PORT, _SENTINEL_PORT = 6379, 26379
_MAX_DATABASE = 65_535


class RedisKind(StrEnum):
    """Who says which server has a key."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class RedisUrl(NamedTuple):
    """A URL taken apart. ``nodes`` are (host, port): the server, the Sentinels, or some of a Cluster's."""

    kind: RedisKind
    tls: bool
    nodes: tuple[tuple[str, int], ...]
    service: str = ""
    database: int = 0

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError with the way out; its text never repeats credentials."""
        match = _URL.fullmatch(url)
        scheme, _, kind = match["scheme"].partition("+") if match else ("", "", "")
        if match is None or scheme not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
            raise ValueError(f"needs a URL as {_EXAMPLES}")
        if "@" in match["nodes"]:
            raise ValueError(
                "holds credentials, which status and logs would show; put them into username and password_file"
            )
        if match["rest"]:
            raise ValueError(f"{match['rest']!r} is of no use in a URL here; each option is a key of [redis]")
        redis_kind = RedisKind(kind or "standalone")
        nodes = tuple(
            _parse_node(node, _SENTINEL_PORT if redis_kind is RedisKind.SENTINEL else _REDIS_PORT)
            for node in match["nodes"].split(",")
        )
        service, database = _parse_path(redis_kind, (match["path"] or "/")[1:])
        if redis_kind is RedisKind.STANDALONE and len(nodes) > 1:
            raise ValueError(
                "names several servers: say what they are (redis+sentinel:// or redis+cluster://)"
            )
        return cls(redis_kind, scheme == "rediss", nodes, service, database)


class Secrets(NamedTuple):
    """What is shown to Redis and to Sentinels; empty: nothing. Never part of a message or log."""

    password: str
    sentinel_password: str


@dataclass(frozen=True, kw_only=True)
class RedisConfig:
    """Where the fleet's Redis is.

    url: empty for none; then relays forget flows with their host, and know no other hosts.
    username: of an ACL; empty for Redis' default user.
    password_file, sentinel_password_file: 0600; read anew whenever they change.
    tls_ca: PEM of who signs the servers' certificates, None for the system's own; tls_cert, tls_key: ours, if Redis asks.
    timeout_s: how long a look-up may take. A client repeats its STUN check within 2.5 s; what takes far longer than a round
        trip is better given up.
    flow_ttl_s: how long a flow is kept that nobody tells of any more; a call without a packet ends after 60 s.
    lease_s: how long a host is believed to live since it was heard.
    """

    url: str
    username: str
    password_file: Path | None
    sentinel_password_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    timeout_s: float
    flow_ttl_s: int
    lease_s: float

    @classmethod
    def from_table(cls, table: ConfigTable) -> Self:
        """Take the ``[redis]`` table apart. Raises ConfigError."""
        config = cls(
            url=table.take("url", str, ""),
            username=table.take("username", str, ""),
            password_file=table.take_path("password_file", None),
            sentinel_password_file=table.take_path("sentinel_password_file", None),
            tls_ca=table.take_path("tls_ca", None),
            tls_cert=table.take_path("tls_cert", None),
            tls_key=table.take_path("tls_key", None),
            timeout_s=table.take("timeout_s", float, 0.25),
            flow_ttl_s=table.take_int("flow_ttl_s", 180, low=30, high=86_400),
            lease_s=table.take("lease_s", float, 10.0),
        )
        table.finish()
        config._check(table)
        return config

    @property
    def target(self) -> RedisUrl:
        """The URL, which was checked, taken apart."""
        return RedisUrl.parse(self.url)

    def read_secrets(self) -> Secrets:
        """The passwords as they are now. Raises ConfigError naming the field."""
        return Secrets(
            _read_secret("redis.password_file", self.password_file),
            _read_secret("redis.sentinel_password_file", self.sentinel_password_file),
        )

    def tls_context(self) -> ssl.SSLContext | None:
        """How the servers are known, and we to them; None without TLS. Raises ConfigError."""
        if not self.url or not self.target.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("redis.tls_ca", f"cannot load {self.tls_ca} ({error})") from None
        if self.tls_cert is not None:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    "redis.tls_cert", f"cannot load {self.tls_cert} with its key ({error})"
                ) from None
        return context

    def _check(self, table: ConfigTable) -> None:
        if not 0.01 <= self.timeout_s <= 5:
            raise ConfigError(table.field("timeout_s"), f"needs seconds from 0.01 to 5, not {self.timeout_s}")
        if not 2 <= self.lease_s <= 300:
            raise ConfigError(table.field("lease_s"), f"needs seconds from 2 to 300, not {self.lease_s}")
        if not self.url:
            return
        try:
            target = RedisUrl.parse(self.url)
        except ValueError as error:
            raise ConfigError(table.field("url"), str(error)) from None
        # What would be ignored was meant to protect something.
        for key in ("tls_ca", "tls_cert", "tls_key"):
            if getattr(self, key) is not None and not target.tls:
                raise ConfigError(table.field(key), "needs a URL with TLS (rediss://)")
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError(table.field("tls_key"), "needs tls_cert beside it")
        if self.sentinel_password_file is not None and target.kind is not RedisKind.SENTINEL:
            raise ConfigError(table.field("sentinel_password_file"), "needs a URL of Sentinels")
        if self.username and self.password_file is None:
            raise ConfigError(table.field("username"), "needs password_file beside it")
        self.read_secrets()
        self.tls_context()


def _parse_node(text: str, default_port: int) -> tuple[str, int]:
    match = _NODE.fullmatch(text)
    port = int(match["port"] or default_port) if match else 0
    if match is None or not 0 < port < 65_536:
        raise ValueError(f"{text!r} is not HOST:PORT (an IPv6 address needs brackets)")
    return match["host"].strip("[]"), port


def _parse_path(kind: RedisKind, path: str) -> tuple[str, int]:
    """Service and database."""
    service = ""
    if kind is RedisKind.SENTINEL:
        service, _, path = path.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError("names no service of the Sentinels (redis+sentinel://HOST:PORT/SERVICE)")
    if not path:
        return service, 0
    if kind is RedisKind.CLUSTER:
        raise ValueError("names a database; a Cluster has but one, so leave it out")
    if not (path.isascii() and path.isdigit() and int(path) <= _MAX_DATABASE):
        raise ValueError(f"{path!r} is no number of a database")
    return service, int(path)


def _read_secret(field: str, path: Path | None) -> str:
    if path is None:
        return ""
    try:
        secret = read_secret(path).strip()
    except ConfigError as error:
        raise ConfigError(field, str(error)) from None
    if not secret:
        raise ConfigError(field, f"{path} holds no password")
    return secret
