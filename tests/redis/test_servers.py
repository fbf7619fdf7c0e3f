"""The servers of the tests do what tests rely on: they fail, fail over, and end with their block."""

import socket
import ssl
import time
from pathlib import Path

import psutil
import pytest
import redis

from tests.host.deadline import wait_until
from tests.redis.certificates import make_tls_files
from tests.redis.cluster import redis_cluster
from tests.redis.noise import ANSWERS, noise_server
from tests.redis.proxy import slow_proxy
from tests.redis.sentinel import sentinel_set
from tests.redis.server import redis_server

pytestmark = pytest.mark.slow


def test_killed_server_comes_back_empty_on_its_port(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.cli("SET", "a", "1")
        server.kill()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((server.host, server.port), 1)
        server.start()
        assert server.cli("DBSIZE") == "0"
    assert _redis_processes() == 0


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_server_is_trusted_by_its_authority(tmp_path: Path, *, mutual: bool) -> None:
    files = make_tls_files(tmp_path / "tls", mutual=mutual)
    with redis_server(tmp_path / "redis", tls=files) as server:
        assert server.url.startswith("rediss://")
        assert server.cli("PING") == "PONG"
        context = ssl.create_default_context(cafile=str(files.authority))
        if mutual:
            context.load_cert_chain(files.certificate, files.key)
        with (
            socket.create_connection((server.host, server.port), 1) as plain,
            context.wrap_socket(plain, server_hostname=server.host) as tls,
        ):
            tls.sendall(b"PING\r\n")
            assert tls.recv(100) == b"+PONG\r\n"


def test_proxy_delays_stalls_and_cuts(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, slow_proxy((server.host, server.port)) as proxy:
        with socket.create_connection((proxy.host, proxy.port), 1) as client:
            for delay_s in (0.0, 0.1, 0.0):
                proxy.delay_s = delay_s
                began = time.monotonic()
                client.sendall(b"PING\r\n")
                assert client.recv(100) == b"+PONG\r\n"
                assert 2 * delay_s <= time.monotonic() - began < 2 * delay_s + 0.1
            proxy.stall()
            client.settimeout(0.3)
            time.sleep(0.05)
            client.sendall(b"PING\r\n")
            with pytest.raises(TimeoutError):
                client.recv(100)
            proxy.go_on()
            assert client.recv(100) == b"+PONG\r\n"
            proxy.cut()
            assert client.recv(100) == b""


def test_sentinels_make_the_replica_master(tmp_path: Path) -> None:
    with sentinel_set(tmp_path) as sentinels:
        old, new = sentinels.servers
        assert sentinels.master() is old
        old.cli("SET", "a", "1")
        wait_until(lambda: new.cli("GET", "a") == "1", "the value at the replica", 2)
        old.kill()
        wait_until(lambda: sentinels.master() is new, "a new master", 10)
        wait_until(lambda: new.cli("SET", "a", "2") == "OK", "a master that takes writes", 2)
    assert _redis_processes() == 0


def test_cluster_goes_on_without_a_master(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        first, replica = cluster.masters[0], cluster.nodes[3]
        client = redis.RedisCluster(host=cluster.masters[1].host, port=cluster.masters[1].port)
        for number in range(20):
            client.set(f"key {number}", number)
        client.close()
        held = first.cli("DBSIZE")
        wait_until(lambda: replica.cli("DBSIZE") == held != "0", "what it holds at its replica", 2)
        first.kill()
        wait_until(lambda: replica.info("role") == "master", "its replica as master", 15)
        assert replica.cli("DBSIZE") == held
    assert _redis_processes() == 0


@pytest.mark.parametrize("kind", ANSWERS)
def test_noise_is_heard(kind: str) -> None:
    with noise_server(kind) as server:
        with socket.create_connection((server.host, server.port), 1) as client:
            client.sendall(b"*1\r\n$4\r\nPING\r\n")
            heard = client.recv(100)
            assert bool(heard) == bool(ANSWERS[kind](b"*1"))
        assert server.said == {kind: 1}


def _redis_processes() -> int:
    """Ours."""
    return sum(
        "redis" in child.name() and child.status() != psutil.STATUS_ZOMBIE
        for child in psutil.Process().children(recursive=True)
    )
