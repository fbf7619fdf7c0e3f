"""Two hosts that share a Redis: what each knows of the other, and that one takes the calls that the other does not."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import redis as redis_py

from cli.main import EXIT_FAILED, EXIT_USAGE
from host.keystore import load_keys
from tests.cli.relayctl import Relayctl
from tests.cli.transceiver_host import Row, TransceiverHost
from tests.host.deadline import wait_until
from tests.redis.server import RedisServer, redis_server
from tests.transceiver.whip import FRAGMENT, TRICKLE
from wire.address import Address
from wire.flow_record import FlowRecord, seal_flow

pytestmark = pytest.mark.slow

_CONFIG = """\
[redis]
url = "{url}"
lease_s = 2
[relay]
fleet_listen = ["{host}:0"]
[transceiver]
listen = "{host}:0"
"""


def host_on(
    address: str, directory: Path, url: str, keys: Path | None = None, more: str = ""
) -> TransceiverHost:
    """A started relayctl whose every socket is on that loopback address; ``more`` is of its [transceiver]."""
    relayctl = Relayctl(directory / f"state-{address}")
    relayctl.listen = relayctl.listen.replace("127.0.0.1", address)
    relayctl.http = relayctl.http.replace("127.0.0.1", address)
    config = directory / f"{address}.toml"
    config.write_text(_CONFIG.format(url=url, host=address) + more)
    if keys is not None:
        relayctl.state_dir.mkdir(mode=0o700)
        shutil.copy2(keys, relayctl.state_dir / "keys.json")
    try:
        relayctl.start("--config", str(config))
    except BaseException:
        relayctl.clean_up()
        raise
    return TransceiverHost(relayctl)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer
) -> Iterator[tuple[TransceiverHost, TransceiverHost]]:
    """Two hosts that know of each other."""
    directory = tmp_path_factory.mktemp("hosts")
    first = host_on("127.0.0.1", directory, redis.url)
    try:
        second = host_on("127.0.0.2", directory, redis.url, first.relayctl.state_dir / "keys.json")
        try:
            await_others(first, second)
            yield first, second
        finally:
            second.relayctl.clean_up()
    finally:
        first.relayctl.clean_up()


def await_others(*hosts: TransceiverHost, count: int = 2) -> None:
    """Wait until each host knows of so many transceivers."""

    def all_know() -> bool:
        return all(len(host.ask("fleet")["transceivers"]) == count for host in hosts)

    wait_until(all_know, f"{count} leases")


def sessions_of(host: TransceiverHost) -> int:
    return sum(row["sessions"] for row in host.rows())


def test_each_host_shows_both(hosts: tuple[TransceiverHost, TransceiverHost]) -> None:
    first, second = hosts
    here, there = sorted(first.relayctl.json("fleet", "transceivers"), key=lambda lease: not lease["here"])
    assert (here["here"], there["here"]) == (True, False)
    assert here["host_id"] != there["host_id"]
    assert there["address"] == second.row("transceiver-0")["address"]
    assert (there["state"], there["sessions"], there["max_sessions"]) == ("ready", 0, 200)
    assert 0 <= there["age_s"] <= 2 - there["expires_s"] + 0.1 <= 2.1
    text = first.relayctl.run("fleet").stdout
    for words in (
        "connected for",
        "2 transceivers of 2 hosts: 0 of 400 sessions (0 %)",
        f"{here['host_id'][:6]} *",
        there["address"],
    ):
        assert words in text
    assert "redis redis://127.0.0.1:" in first.relayctl.run("status").stdout


def test_other_host_takes_the_calls_of_one_that_drains(
    hosts: tuple[TransceiverHost, TransceiverHost],
) -> None:
    first, second = hosts
    assert first.relayctl.run("transceivers", "drain", "transceiver-0").returncode == 0
    answers = [first.offer() for _ in range(5)]
    assert [status for status, _, _ in answers] == [201] * 5
    assert (sessions_of(first), sessions_of(second)) == (0, 5)
    location = first.relayctl.url + answers[0][1].lstrip("/")
    trickle = Request(location, TRICKLE.encode(), FRAGMENT | {"If-Match": "*"}, method="PATCH")
    with urlopen(trickle, timeout=5) as response:
        assert response.status == 204
    assert [first.hang_up(location) for _, location, _ in answers] == [200] * 5
    assert sessions_of(second) == 0

    call = first.relayctl.run("probe", first.relayctl.url, "--duration", "1")
    assert (call.returncode, call.stderr) == (0, "")
    assert second.relayctl.listen in call.stdout

    second.relayctl.run("transceivers", "drain", "transceiver-0")
    status, _, seconds = first.offer()
    assert (status, seconds < 1) == (503, True), "also while its lease still says that it takes calls"
    for host in hosts:
        host.relayctl.run("transceivers", "start", "transceiver-0")
    assert first.offer()[0] == 201
    assert sessions_of(first) == 1


def test_other_host_takes_the_calls_of_one_without_memory(
    hosts: tuple[TransceiverHost, TransceiverHost], redis: RedisServer, tmp_path: Path
) -> None:
    keys = hosts[0].relayctl.state_dir / "keys.json"
    full = host_on("127.0.0.3", tmp_path, redis.url, keys, "max_memory_mb = 1\n")
    try:
        await_others(full, *hosts, count=3)
        before = sum(map(sessions_of, hosts))
        answers = [full.offer() for _ in range(3)]
        assert [status for status, _, _ in answers] == [201] * 3
        assert (sessions_of(full), sum(map(sessions_of, hosts))) == (0, before + 3)
        assert [full.hang_up(location) for _, location, _ in answers] == [200] * 3
        [status] = full.relayctl.json("transceivers", "status")
        assert (status["full"], status["refused"]) == ("memory", {})
        told = [lease["full"] for lease in hosts[0].ask("fleet")["transceivers"] if not lease["here"]]
        assert sorted(told, key=str) == [None, "memory"]
        leases: list[Row] = []

        def has_lease() -> bool:
            leases.append(lease_of(full))
            return bool(leases[-1])

        wait_until(has_lease, "Redis has its lease")
        assert leases[-1]["state"] == "ready"
        assert 0 < leases[-1]["expires_s"] <= 2
        wait_until(
            lambda: "ready, told " in full.relayctl.run("transceivers", "status").stdout, "it is shown"
        )
    finally:
        full.relayctl.clean_up()
    await_others(*hosts)


def lease_of(host: TransceiverHost) -> Row:
    """What the fleet sees of its first transceiver; empty while that is nothing."""
    [status] = host.relayctl.json("transceivers", "status")
    return status["lease"] or {}


def test_cache_is_shown(hosts: tuple[TransceiverHost, TransceiverHost], redis: RedisServer) -> None:
    relayctl = hosts[0].relayctl
    client, vip = Address.parse("192.0.2.2:50215"), Address.parse(relayctl.listen)
    record = FlowRecord(client, vip, Address.parse("127.0.0.2:42411"), "AYczYvZy")
    now = int(time.clock_gettime(time.CLOCK_REALTIME))
    sealed = seal_flow(load_keys(relayctl.state_dir / "keys.json"), record, now - 12)
    with redis_py.Redis(redis.host, redis.port) as cache:
        cache.set(f"relayctl:1:flow:{client}>{vip}", sealed, ex=168)
        cache.set(f"relayctl:1:flow:192.0.2.3:50215>{vip}", sealed, ex=168)
    text = relayctl.run("cache", "get", str(client), "--vip", str(vip)).stdout
    for words in (f"{client}\n", "hit", "127.0.0.2:42411", "AYczYvZy", "s ago", "2m "):
        assert words in text
    assert "forged" in relayctl.run("cache", "get", "192.0.2.3:50215", "--vip", str(vip)).stdout
    [row] = relayctl.json("cache", "get", "192.0.2.1:4000", "--vip", relayctl.listen)
    assert (row["state"], row["transceiver"]) == ("miss", None)
    text = relayctl.run("cache", "get", "192.0.2.1:4000", "--vip", relayctl.listen).stdout
    assert text.startswith("192.0.2.1:4000\n")
    assert "miss" in text
    stats = relayctl.json("cache", "stats")
    assert stats["state"] == "connected"
    text = relayctl.run("cache", "stats").stdout
    for words in (
        "redis connected for",
        "reads: breaker closed",
        "writes: breaker closed",
        "server 127.0.0.1:",
        "master",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("192.0.2.1",), "'192.0.2.1' is no address with a port"),
        (("2001:db8::1",), "'2001:db8::1' is no address with a port"),
        (("somebody",), "'somebody' is no IP address"),
        (("192.0.2.1:1", "--vip", "nowhere"), "--vip: 'nowhere' is no"),
    ],
)
def test_wrong_client_is_explained(
    hosts: tuple[TransceiverHost, TransceiverHost], arguments: tuple[str, ...], words: str
) -> None:
    done = hosts[0].relayctl.run("cache", "get", *arguments)
    assert (done.returncode, done.stdout) == (EXIT_USAGE, "")
    assert words in done.stderr


def test_redis_away_is_said_and_ends_nothing(
    hosts: tuple[TransceiverHost, TransceiverHost], redis: RedisServer
) -> None:
    first, second = hosts
    redis.kill()
    wait_until(lambda: first.ask("fleet")["redis"]["state"] == "away", "it is seen to be away")
    text = first.relayctl.run("fleet").stdout
    assert "other hosts as last heard" in text or "of other hosts nothing is known" in text
    await_others(first, second, count=1)
    text = first.relayctl.run("fleet").stdout
    for words in ("away for", "of other hosts nothing is known now", "1 transceiver of 1 host"):
        assert words in text
    assert "away" in first.relayctl.run("status").stdout
    stats = first.relayctl.run("cache", "stats")
    assert (stats.returncode, "away" in stats.stdout) == (0, True)
    assert (first.offer()[0], first.health()) == (201, 200)
    redis.start()
    await_others(first, second)


def test_without_redis_there_is_this_host(relayctl: Relayctl) -> None:
    relayctl.start()
    text = relayctl.run("fleet").stdout
    assert "no Redis is configured" in text
    assert "1 transceiver of 1 host: 0 of 200 sessions (0 %)" in text
    assert "\nredis" not in relayctl.run("status").stdout
    for command in (("get", "192.0.2.1:4000"), ("stats",)):
        done = relayctl.run("cache", *command)
        assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
        assert "there is no Redis to ask" in done.stderr
