"""What the agent is told at its start, as it crosses the channel from the supervisor."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fleet.config import RedisConfig, Secrets
from wire.keys import RecordKeys

_PATHS = ("password_file", "sentinel_password_file", "tls_ca", "tls_cert", "tls_key")


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """Configuration, those keys that seal what is in Redis, and the inherited ends of the lines."""

    redis: RedisConfig
    secrets: Secrets
    cluster_id: int
    keys: RecordKeys
    line_fds: tuple[int, ...]

    def to_message(self) -> dict[str, Any]:
        """The JSON form; it holds secrets and goes over a private socket only."""
        redis = {field.name: getattr(self.redis, field.name) for field in fields(self.redis)}
        redis |= {name: redis[name] and str(redis[name]) for name in _PATHS}
        return {
            "redis": redis,
            "secrets": self.secrets._asdict(),
            "cluster_id": self.cluster_id,
            "keys": self.keys.to_json(),
            "line_fds": self.line_fds,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "AgentSettings":
        """The inverse of ``to_message``."""
        redis = message["redis"]
        redis = redis | {name: redis[name] and Path(redis[name]) for name in _PATHS}
        return cls(
            redis=RedisConfig(**redis),
            secrets=Secrets(**message["secrets"]),
            cluster_id=message["cluster_id"],
            keys=RecordKeys.from_json(message["keys"]),
            line_fds=tuple(message["line_fds"]),
        )
