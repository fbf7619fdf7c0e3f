"""A Redis Cluster: three masters, and a replica of each that takes over when its master is gone."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.host.deadline import wait_until
from tests.ports import free_port
from tests.redis.server import RedisServer, all_started

_SLOTS = 16_384
_MASTERS = 3
_NODE_TIMEOUT_MS = 2000
_READY_TIMEOUT_S = 20.0


class RedisCluster:
    """Six nodes on loopback: masters first, then the replica of each in the same order."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS)]
        arguments += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
        # The nodes' ports towards each other.
        self._bus_ports = [free_port(socket.SOCK_STREAM) for _ in range(2 * _MASTERS)]
        self.nodes = [
            RedisServer(directory / f"node-{number}", *arguments, "--cluster-port", str(bus_port))
            for number, bus_port in enumerate(self._bus_ports)
        ]

    @property
    def masters(self) -> list[RedisServer]:
        """Who was master at first."""
        return self.nodes[:_MASTERS]

    @property
    def url(self) -> str:
        """As relayctl takes it."""
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes[:_MASTERS])

    def join(self) -> None:
        """Give the masters all slots, have the nodes meet, and wait until every replica is in step."""
        first, *others = self.nodes
        share = -(-_SLOTS // _MASTERS)
        for number, master in enumerate(self.masters):
            last = min((number + 1) * share, _SLOTS) - 1
            master.cli("CLUSTER", "ADDSLOTSRANGE", str(number * share), str(last))
            # Epochs that differ: nobody has to settle who goes first.
            master.cli("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node, bus_port in zip(others, self._bus_ports[1:], strict=True):
            assert first.cli("CLUSTER", "MEET", node.host, str(node.port), str(bus_port)) == "OK"
        wait_until(self._knows_all, "nodes that know of each other", _READY_TIMEOUT_S)
        for master, replica in zip(self.masters, self.nodes[_MASTERS:], strict=True):
            assert replica.cli("CLUSTER", "REPLICATE", master.cli("CLUSTER", "MYID")) == "OK"
        wait_until(self.is_whole, "a Cluster with replicas in step", _READY_TIMEOUT_S)

    def is_whole(self) -> bool:
        """Every slot is served, and every replica is in step with its master."""
        served = all("cluster_state:ok" in node.cli("CLUSTER", "INFO") for node in self.nodes)
        # Before that no replica stands for election.
        return served and all(node.info("master_link_status") == "up" for node in self.nodes[_MASTERS:])

    def _knows_all(self) -> bool:
        known = (node.cli("CLUSTER", "NODES").splitlines() for node in self.nodes)
        return all(len(lines) == len(self.nodes) and "handshake" not in "".join(lines) for lines in known)


@contextlib.contextmanager
def redis_cluster(directory: Path) -> Iterator[RedisCluster]:
    """For the life of the block, whole."""
    cluster = RedisCluster(directory)
    with all_started(cluster.nodes):
        cluster.join()
        yield cluster
