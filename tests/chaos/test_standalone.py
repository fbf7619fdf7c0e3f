"""One Redis that is killed, frozen, slow, full, closed to us or no Redis at all, while twenty calls go on."""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.chaos.entries import entries_at
from tests.chaos.site import CONFIG, Site, Trouble, live_through, site_running
from tests.e2e.instance import running
from tests.e2e.namespaces import Host
from tests.measured import note_measured
from tests.ports import free_port
from tests.redis.noise import noise_server
from tests.redis.proxy import SlowProxy, slow_proxy
from tests.redis.server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_USER, _PASSWORD = "relayctl", "a password of tests"
# As docs/operating.md says, and nothing more.
_RIGHTS = (
    "+ping",
    "+set",
    "+getrange",
    "+pttl",
    "+zadd",
    "+zrem",
    "+zremrangebyscore",
    "+zrevrangebyscore",
    "+del",
)
_ACL = ("--user", _USER, "on", f">{_PASSWORD}", "~relayctl:*", *_RIGHTS)
_AWAY, _DEGRADED = "away", "degraded"
# Each way, so that an answer takes twice as long.
_SLOW_S = 0.2
# What a start may take longer than another on a busy machine.
_START_S = 3.0
_NOISE_S = 8.0


@dataclass
class Stand:
    """relayctl reaches Redis by the proxy."""

    redis: RedisServer
    proxy: SlowProxy
    site: Site
    at_start: dict[str, Any]


@pytest.fixture(scope="module")
def stand(network: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """relayctl and its calls, which began before there was a Redis."""
    directory = tmp_path_factory.mktemp("standalone")
    password_file = directory / "password"
    password_file.write_text(_PASSWORD)
    password_file.chmod(0o600)
    config = f'{CONFIG}username = "{_USER}"\npassword_file = "{password_file}"\n'
    redis = RedisServer(directory / "redis", *_ACL, port=free_port(socket.SOCK_STREAM))
    began = time.monotonic()
    with running(directory / "without", "--listen", "127.0.0.1:3477", "--dataplane", "userspace"):
        start_without_s = round(time.monotonic() - began, 1)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(slow_proxy((redis.host, redis.port)))
        proxy.refuse()
        url = f"redis://{proxy.host}:{proxy.port}/0"
        entries = entries_at(redis.host, redis.port)
        with site_running(network, directory / "site", url, entries, config) as site:
            at_start = {
                "start_s": site.started_s,
                "start_without_s": start_without_s,
                "fleet": site.fleet(),
                "calls": len([seen for seen in site.calls.look() if seen.state == "connected"]),
            }
            stack.callback(redis.kill)
            redis.start()
            proxy.accept()
            began = time.monotonic()
            site.wait_for_state({"connected"}, 5)
            at_start["connected_s"] = round(time.monotonic() - began, 2)
            at_start["cached_s"] = round(site.wait_until_cached(), 2)
            yield Stand(redis, proxy, site, at_start)


def test_redis_is_down_when_relayctl_starts(stand: Stand) -> None:
    seen = stand.at_start
    times = {name: seen[name] for name in ("start_s", "start_without_s", "calls", "connected_s", "cached_s")}
    note_measured(f"down at the start: {seen['fleet']['state']}: {seen['fleet']['why']}, {times}")
    assert seen["calls"] == 20
    assert seen["fleet"]["state"] == _AWAY
    assert "cannot be reached" in seen["fleet"]["why"]
    assert seen["connected_s"] < 4
    assert seen["start_s"] < 2 * seen["start_without_s"] + _START_S


@contextlib.contextmanager
def killed(stand: Stand) -> Iterator[None]:
    """SIGKILL, nobody listens; then it comes back with nothing."""
    stand.redis.kill()
    stand.proxy.refuse()
    try:
        yield
    finally:
        stand.redis.start()
        stand.proxy.accept()


@contextlib.contextmanager
def reset(stand: Stand) -> Iterator[None]:
    """SIGKILL, and something before it accepts connections and ends them."""
    stand.redis.kill()
    try:
        yield
    finally:
        stand.redis.start()


@contextlib.contextmanager
def frozen(stand: Stand) -> Iterator[None]:
    """SIGSTOP: it is connected and never answers."""
    stand.redis.freeze()
    try:
        yield
    finally:
        stand.redis.thaw()


@contextlib.contextmanager
def slow(stand: Stand) -> Iterator[None]:
    """Each answer takes longer than a look-up may."""
    stand.proxy.delay_s = _SLOW_S
    try:
        yield
    finally:
        stand.proxy.delay_s = 0.0


@contextlib.contextmanager
def stalled(stand: Stand) -> Iterator[None]:
    """What is between reads nothing more."""
    stand.proxy.stall()
    try:
        yield
    finally:
        stand.proxy.go_on()


@contextlib.contextmanager
def full(stand: Stand) -> Iterator[None]:
    """It takes no write, for want of memory."""
    stand.redis.cli("CONFIG", "SET", "maxmemory", "100kb", "maxmemory-policy", "noeviction")
    try:
        yield
    finally:
        stand.redis.cli("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def read_only(stand: Stand) -> Iterator[None]:
    """It is a replica of nobody: it reads what it has, and takes no write."""
    stand.redis.cli("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        stand.redis.cli("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def stale(stand: Stand) -> Iterator[None]:
    """It is a replica of nobody, and does not even read."""
    stand.redis.cli("CONFIG", "SET", "replica-serve-stale-data", "no")
    try:
        with read_only(stand):
            yield
    finally:
        stand.redis.cli("CONFIG", "SET", "replica-serve-stale-data", "yes")


@contextlib.contextmanager
def wrong_password(stand: Stand) -> Iterator[None]:
    """The password was changed, and who had the old one was thrown out."""
    stand.redis.cli("ACL", "SETUSER", _USER, "resetpass", ">another")
    stand.redis.cli("CLIENT", "KILL", "USER", _USER)
    try:
        yield
    finally:
        stand.redis.cli("ACL", "SETUSER", _USER, "resetpass", f">{_PASSWORD}")


@contextlib.contextmanager
def no_right_to_write(stand: Stand) -> Iterator[None]:
    """Connections go on; what they may do is less."""
    stand.redis.cli("ACL", "SETUSER", _USER, "-@write")
    try:
        yield
    finally:
        stand.redis.cli("ACL", "SETUSER", _USER, *_RIGHTS)


@contextlib.contextmanager
def agent_frozen(stand: Stand) -> Iterator[None]:
    """The process that speaks with Redis does nothing; its lines fill up. The supervisor may kill it for that."""
    agent = stand.site.agent()
    agent.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.resume()


Made = Callable[[Stand], contextlib.AbstractContextManager[None]]
_SILENT = "does not answer|does not let us in"
CASES: list[tuple[str, Made, set[str], str, dict[str, Any]]] = [
    ("killed", killed, {_AWAY}, "cannot be reached", {}),
    ("killed behind a proxy", reset, {_AWAY}, "cannot be reached", {"hold_s": 1.5}),
    ("frozen", frozen, {_AWAY}, _SILENT, {}),
    ("slow", slow, {_DEGRADED}, f"reads: .*({_SILENT})", {}),
    ("stalled", stalled, {_AWAY}, _SILENT, {}),
    ("full", full, {_DEGRADED}, "writes: .*is full", {}),
    ("read-only", read_only, {_DEGRADED}, "writes: .*read-only replica", {}),
    ("stale replica", stale, {_AWAY}, "replica without its master", {"hold_s": 1.5}),
    ("wrong password", wrong_password, {_AWAY}, "refuses our log-in", {}),
    ("no right to write", no_right_to_write, {_DEGRADED}, "writes: .*does not permit", {"hold_s": 1.5}),
    # status waits a second for it
    ("agent frozen", agent_frozen, {_AWAY}, "the agent .* does not answer", {"max_status_s": 2.0, "lasts": False}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "made", "states", "why", "more"), CASES, ids=[case[0] for case in CASES])
def test_calls_go_on(
    stand: Stand, name: str, made: Made, states: set[str], why: str, more: dict[str, Any]
) -> None:
    trouble = Trouble(name, lambda: made(stand), frozenset(states), why, **more)
    live_through(stand.site, trouble)


def test_calls_go_on_when_redis_is_no_redis(stand: Stand) -> None:
    """It talks nonsense of every kind, some of it without end."""
    with noise_server() as noise:

        @contextlib.contextmanager
        def made() -> Iterator[None]:
            stand.proxy.lead_to((noise.host, noise.port))
            try:
                yield
            finally:
                stand.proxy.lead_to((stand.redis.host, stand.redis.port))

        # Some of it sounds like Redis for a moment.
        states = frozenset({_AWAY, _DEGRADED})
        live_through(stand.site, Trouble("noise", made, states, ".", hold_s=_NOISE_S, lasts=False))
        note_measured(f"noise: {dict(noise.said)}")
        assert len(noise.said) >= 4


def test_calls_go_on_when_the_agent_is_killed(stand: Stand) -> None:
    """And what it had told Redis is gone, too: the next one has everything told again."""
    agent = stand.site.agent()

    @contextlib.contextmanager
    def made() -> Iterator[None]:
        agent.send_signal(signal.SIGKILL)
        stand.redis.cli("FLUSHALL")
        yield

    live_through(
        stand.site,
        Trouble(
            "agent killed",
            made,
            frozenset({_AWAY, "connected"}),
            "the agent .* does not answer|connecting to|^connected",
            hold_s=1.5,
        ),
    )
    assert stand.site.agent().pid != agent.pid
    assert stand.site.fleet()["agent"]["restarts"] >= 1
