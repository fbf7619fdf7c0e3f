"""A master with a replica, and three Sentinels that make the replica master when the master is gone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.host.deadline import wait_until
from tests.redis.server import RedisServer, all_started

SERVICE = "flows"
_QUORUM = 2
_DOWN_AFTER_MS, _FAILOVER_TIMEOUT_MS = 1000, 5000
_READY_TIMEOUT_S = 15.0


class SentinelSet:
    """Five processes on loopback; ``servers`` are the master that it began with and its replica."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        # A replica is sent the data at once, and by way of no file.
        quick = (
            "--repl-diskless-sync",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        )
        master = RedisServer(directory / "master", *quick)
        replica = RedisServer(directory / "replica", *quick, "--replicaof", master.host, str(master.port))
        self.servers = [master, replica]
        self.sentinels = []
        for number in range(3):
            config_file = directory / f"sentinel-{number}.conf"
            config_file.write_text(
                f"sentinel monitor {SERVICE} {master.host} {master.port} {_QUORUM}\n"
                f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} {_FAILOVER_TIMEOUT_MS}\n"
            )
            sentinel = RedisServer(directory / f"sentinel-{number}", "--sentinel", config_file=config_file)
            self.sentinels.append(sentinel)

    @property
    def url(self) -> str:
        """As relayctl takes it."""
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    def master(self) -> RedisServer:
        """Who is master now, as the first Sentinel says."""
        answer = self.sentinels[0].cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        port = int(answer.split()[1])
        return next(server for server in self.servers if server.port == port)

    def wait_until_ready(self) -> None:
        """Until a failover would succeed: all Sentinels know of each other and of a replica that is in step."""

        def is_ready() -> bool:
            known = (_pairs(sentinel.cli("SENTINEL", "MASTER", SERVICE)) for sentinel in self.sentinels)
            in_sight = all(k["num-slaves"] == "1" and k["num-other-sentinels"] == "2" for k in known)
            return in_sight and self.servers[1].info("master_link_status") == "up"

        wait_until(is_ready, "Sentinels that know of all", _READY_TIMEOUT_S)


@contextlib.contextmanager
def sentinel_set(directory: Path) -> Iterator[SentinelSet]:
    """For the life of the block, ready."""
    made = SentinelSet(directory)
    with all_started([*made.servers, *made.sentinels]):
        made.wait_until_ready()
        yield made


def _pairs(answer: str) -> dict[str, str]:
    lines = answer.splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=False))
