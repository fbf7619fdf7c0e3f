"""How we log in to Redis: password, ACL user, TLS; and what an operator reads when we may not."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.line import Found
from tests.fleet.bench import fleet_bench, flow
from tests.redis.server import RedisServer, redis_server

# What docs/operating.md names: for the cache and the registry, and for `relayctl cache stats`.
_COMMANDS = "+ping +set +getrange +pttl +zadd +zrem +zremrangebyscore +zrevrangebyscore +del"
_STATS_COMMANDS = "+dbsize +info"


def secret(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


async def test_password_wrong_at_the_start_and_mended(redis: RedisServer, tmp_path: Path) -> None:
    redis.cli("config", "set", "requirepass", "right")
    file = secret(tmp_path / "password", "wrong\n")
    async with fleet_bench(redis.url, tmp_path, password_file=file) as bench:
        status = await bench.reaches("away", why="redis.password_file")
        assert "wrong" not in str(status).replace("WRONGPASS", "")
        assert (await bench.ask([flow()]))[0].found is Found.UNAVAILABLE
        file.write_text("right\n")
        await bench.reaches("connected")


async def test_no_password_where_one_is_needed(redis: RedisServer, tmp_path: Path) -> None:
    redis.cli("config", "set", "requirepass", "right")
    async with fleet_bench(redis.url, tmp_path) as bench:
        await bench.reaches("away", why="log-in")


def permit(redis: RedisServer, commands: str) -> None:
    """The user relay these commands, and nobody else anything."""
    redis.cli(
        "acl", "setuser", "relay", "on", ">right", "resetkeys", "~relayctl:*", "-@all", *commands.split()
    )
    redis.cli("acl", "setuser", "default", "off")


async def test_cache_stats_that_are_not_permitted_cost_no_look_up(redis: RedisServer, tmp_path: Path) -> None:
    permit(redis, _COMMANDS)
    file = secret(tmp_path / "password", "right")
    async with fleet_bench(redis.url, tmp_path, username="relay", password_file=file) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.written(1)
        for _ in range(3):
            stats = await bench.methods["cache_stats"]()
            assert "does not permit" in stats["servers"][0]["error"]
            assert stats["reads"]["state"] == "closed"
            assert (await bench.ask([flow()]))[0].found is Found.HIT
        assert (await bench.status())["state"] == "connected"


async def test_an_acl_user_needs_no_more_than_the_docs_name(redis: RedisServer, tmp_path: Path) -> None:
    permit(redis, f"{_COMMANDS} {_STATS_COMMANDS}")
    file = secret(tmp_path / "password", "right")
    async with fleet_bench(redis.url, tmp_path, username="relay", password_file=file, lease_s=2.0) as bench:

        async def presence() -> dict[str, object]:
            return {
                "relay": {
                    "vips": [],
                    "workers": 1,
                    "flows": 0,
                    "assured_flows": 0,
                    "state": "running",
                    "dataplane": "",
                }
            }

        bench.service.announce(presence)
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.written(1)
        assert (await bench.ask([flow()]))[0].found is Found.HIT
        assert not (await bench.methods["cache_stats"]())["servers"][0]["error"]
        assert (await bench.methods["cache_get"](client=str(flow().client), vip=str(flow().vip)))[0][
            "state"
        ] == "hit"
        counts = (await bench.status())["counts"]
        assert counts["refused"] == 0


async def test_an_acl_user_that_may_not_write(redis: RedisServer, tmp_path: Path) -> None:
    redis.cli("acl", "setuser", "relay", "on", ">right", "~*", "+@read", "+ping")
    file = secret(tmp_path / "password", "right")
    async with fleet_bench(redis.url, tmp_path, username="relay", password_file=file) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.reaches("degraded", why="does not permit")
        assert (await bench.ask([flow()]))[0].found is Found.MISS


def make_certificates(directory: Path) -> None:
    """ca.pem, and cert.pem with key.pem that it has signed for 127.0.0.1."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    for file, subject, public_key, extension in [
        ("ca.pem", ca_name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None)),
        (
            "cert.pem",
            name,
            key.public_key(),
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
        ),
    ]:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=file == "ca.pem")
            .sign(ca_key, hashes.SHA256())
        )
        (directory / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@pytest.fixture
def tls_redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis that asks for a client's certificate."""
    make_certificates(tmp_path)
    with redis_server(tmp_path / "probe") as plain:
        port = plain.port
    server = RedisServer(
        tmp_path / "redis",
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "yes"),
        *("--tls-ca-cert-file", str(tmp_path / "ca.pem")),
        *("--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem")),
        port=port,
    )
    server.start()
    yield f"rediss://127.0.0.1:{port}"
    server.kill()


async def test_tls(tls_redis: str, tmp_path: Path) -> None:
    files = {f"tls_{name}": tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    async with fleet_bench(tls_redis, tmp_path, **files) as bench:
        await bench.reaches("connected")
        bench.line.tell([flow().pack()])
        await bench.written(1)
        assert (await bench.ask([flow()]))[0].found is Found.HIT


async def test_a_server_that_nobody_vouches_for(tls_redis: str, tmp_path: Path) -> None:
    async with fleet_bench(tls_redis, tmp_path) as bench:
        await bench.reaches("away", why="certificate")


def test_the_agent_is_the_only_one_that_loads_redis() -> None:
    code = "import sys, cli.main, relay.worker, transceiver.process; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
