"""The master of a Sentinel set, or one of a Cluster's, is killed while twenty calls go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos.entries import entries_at, entries_of
from tests.chaos.site import Trouble, live_through, site_running
from tests.e2e.namespaces import Host
from tests.redis.cluster import RedisCluster, redis_cluster
from tests.redis.sentinel import sentinel_set

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_TROUBLED = frozenset({"away", "degraded"})
# Sentinels make another master after about 2.4 s, a Cluster after about 4.
_SENTINEL_S, _CLUSTER_S = 6.0, 9.0


def test_calls_go_on_when_sentinels_choose_another_master(network: Host, tmp_path: Path) -> None:
    with sentinel_set(tmp_path / "redis") as sentinels:
        old, new = sentinels.servers

        def entries() -> dict[str, int]:
            master = sentinels.master()
            return entries_at(master.host, master.port)()

        @contextlib.contextmanager
        def made() -> Iterator[None]:
            old.kill()
            yield

        with site_running(network, tmp_path / "site", sentinels.url, entries) as site:
            live_through(
                site,
                Trouble(
                    "Sentinel's master killed",
                    made,
                    _TROUBLED,
                    "no Sentinel names a master|cannot be reached",
                    hold_s=0.0,
                    recovered_s=_SENTINEL_S,
                    lasts=False,
                ),
            )
            assert sentinels.master() is new


def test_calls_go_on_when_a_master_of_a_cluster_is_killed(network: Host, tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "redis") as cluster:
        # The one that has the leases: it is heard of soonest. Flows are spread over all.
        number = _master_of(cluster, "relayctl:1:{fleet}")
        old, new = cluster.masters[number], cluster.nodes[number + 3]
        other = cluster.masters[number - 1]
        entries = entries_of(lambda: redis.RedisCluster(host=other.host, port=other.port, socket_timeout=2))

        @contextlib.contextmanager
        def made() -> Iterator[None]:
            old.kill()
            yield

        with site_running(network, tmp_path / "site", cluster.url, entries) as site:
            live_through(
                site,
                Trouble(
                    "a master of a Cluster killed",
                    made,
                    _TROUBLED,
                    "cannot be reached",
                    hold_s=0.0,
                    recovered_s=_CLUSTER_S,
                    lasts=False,
                ),
            )
            assert new.info("role") == "master"


def _master_of(cluster: RedisCluster, key: str) -> int:
    slot = int(cluster.nodes[0].cli("CLUSTER", "KEYSLOT", key))
    ours = [node.cli("CLUSTER", "MYID") for node in cluster.masters]
    for line in cluster.nodes[0].cli("CLUSTER", "NODES").splitlines():
        node, *_, slots = line.split()
        if "-" in slots and int(slots.split("-")[0]) <= slot <= int(slots.split("-")[1]):
            return ours.index(node)
    raise AssertionError(f"nobody has slot {slot}")
