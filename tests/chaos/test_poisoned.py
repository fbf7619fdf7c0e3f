"""A Redis that somebody else writes to: a relay that has lost its flows believes none of it, and sends no packet elsewhere.

Clients here send media and no checks, so that the cache alone can bring them back. Those that are poisoned have their
sessions at B; who writes to the cache wants their packets to go to A.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from host.keystore import load_keys
from tests.chaos.members import Client, Members, Transceiver
from tests.e2e.instance import Instance, running, wait_until
from tests.e2e.namespaces import Host
from tests.measured import note_measured
from tests.redis.server import RedisServer, redis_server
from wire.address import Address
from wire.errors import WireError
from wire.flow_record import FlowRecord, open_flow_untrusted, seal_flow
from wire.keys import FleetKey, KeyRing
from wire.spp import SppHeader

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_ANY_PORT = Address.parse("198.51.100.2:0")
_VIP, _OTHER_VIP = Address.parse("127.0.0.1:3478"), Address.parse("127.0.0.1:3479")
_UNTOUCHED = 8
_HUGE_BYTES = 50 * 1024 * 1024
# What a genuine value may be late or early by (seconds): its TTL and the clocks' skew.
_STALE_S, _SOON_S = 180 + 60 + 30, 60 + 30


@dataclass
class Scene:
    """What poison is made of.

    neighbour: a client whose session is truly at A. twins: by the name of a client, one with its very address, that has a
    session at A by another VIP. earlier: what the relay wrote of a client when it had its session at A.
    """

    keys: KeyRing
    redis: "redis.Redis"
    a: Transceiver
    b: Transceiver
    neighbour: Client
    twins: dict[str, Client]
    earlier: dict[str, bytes]
    now_s: int = 0

    def value(self, client: Client) -> bytes:
        """What is in Redis now."""
        value = self.redis.get(key_of(client))
        assert isinstance(value, bytes)
        return value

    def sealed(self, client: Client, transceiver: Transceiver, age_s: int) -> bytes:
        """As the relay would have sealed it so long ago."""
        record = FlowRecord(*client.path, transceiver.address, client.tag)
        return seal_flow(self.keys, record, self.now_s - age_s)


def key_of(client: Client) -> str:
    return f"relayctl:1:flow:{client.path.client}>{client.path.proxy}"


Poison = Callable[[Scene, Client], None]


def puts(make: Callable[[Scene, Client], bytes]) -> Poison:
    """A value in the place of the client's."""

    def poison(scene: Scene, client: Client) -> None:
        scene.redis.set(key_of(client), make(scene, client), ex=180)

    return poison


def _flip(value: bytes, index: int) -> bytes:
    return value[:index] + bytes((value[index] ^ 1,)) + value[index:][1:]


def _delete(scene: Scene, client: Client) -> None:
    scene.redis.delete(key_of(client))


def _make_huge(scene: Scene, client: Client) -> None:
    scene.redis.setrange(key_of(client), _HUGE_BYTES - 1, b"x")


def _make_list(scene: Scene, client: Client) -> None:
    scene.redis.delete(key_of(client))
    scene.redis.rpush(key_of(client), scene.sealed(client, scene.a, 5))


def _make_hash(scene: Scene, client: Client) -> None:
    scene.redis.delete(key_of(client))
    scene.redis.hset(key_of(client), "value", scene.sealed(client, scene.a, 5))


def _seal_with_another_key(scene: Scene, client: Client) -> bytes:
    keys = KeyRing([FleetKey(scene.keys.sealing.key_id, os.urandom(32))], scene.keys.sealing.key_id)
    return seal_flow(keys, FlowRecord(*client.path, scene.a.address, client.tag), scene.now_s)


# What is in Redis instead, and which count of the agent or of the relay tells.
POISONS: list[tuple[str, Poison, str]] = [
    ("nothing", _delete, "misses"),
    ("empty", puts(lambda scene, client: b""), "misses"),
    ("garbage", puts(lambda scene, client: os.urandom(48)), "forged"),
    ("garbage with the key's id", puts(lambda scene, client: scene.value(client)[:1] + os.urandom(47)), "forged"),
    ("cut", puts(lambda scene, client: scene.value(client)[:-1]), "forged"),
    ("cut to its head", puts(lambda scene, client: scene.value(client)[:1]), "forged"),
    ("longer", puts(lambda scene, client: scene.value(client) + b"\0"), "forged"),
    ("huge", _make_huge, "forged"),
    ("a list", _make_list, "forged"),
    ("a hash", _make_hash, "forged"),
    ("key id changed", puts(lambda scene, client: _flip(scene.value(client), 0)), "forged"),
    ("tag changed", puts(lambda scene, client: _flip(scene.value(client), 4)), "forged"),
    ("stamp changed", puts(lambda scene, client: _flip(scene.value(client), 18)), "forged"),
    ("address changed", puts(lambda scene, client: _flip(scene.value(client), 40)), "forged"),
    ("A, sealed with another key", puts(_seal_with_another_key), "forged"),
    ("value of a client of A", puts(lambda scene, client: scene.value(scene.neighbour)), "forged"),
    ("value of its address at another VIP", puts(lambda scene, client: scene.value(scene.twins[client.name])), "forged"),
    ("A, of long ago", puts(lambda scene, client: scene.sealed(client, scene.a, _STALE_S)), "stale"),
    ("B, of long ago", puts(lambda scene, client: scene.sealed(client, scene.b, _STALE_S)), "stale"),
    ("A, from the future", puts(lambda scene, client: scene.sealed(client, scene.a, -_SOON_S)), "stale"),
    ("its own of an earlier session", puts(lambda scene, client: scene.earlier[client.name]), "recall_unconfirmed"),
    ("its own of an earlier session, again", puts(lambda scene, client: scene.earlier[client.name]), "recall_unconfirmed"),
]  # fmt: skip
_OLD = "recall_unconfirmed"
_HAS_A_TWIN = "value of its address at another VIP"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@contextlib.contextmanager
def relay(directory: Path, url: str) -> Iterator[Instance]:
    arguments = ["--role", "relay", "--fleet-listen", "127.0.0.1:5000", "--workers", "2"]
    for vip in (_VIP, _OTHER_VIP):
        arguments += ["--listen", str(vip)]
    with running(directory / "state", *arguments, "--dataplane", "userspace", "--redis", url) as instance:
        yield instance


def kill_all(instance: Instance) -> None:
    """Relay, workers and agent, at once: no flow is left but in Redis."""
    pids = instance.pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    instance.process.wait()


@dataclass
class Cast:
    """Everybody. ``poisoned`` are in the order of POISONS."""

    members: Members
    neighbour: Client
    twins: dict[str, Client]
    untouched: list[Client]
    poisoned: list[Client]

    @property
    def at_a(self) -> list[Client]:
        """Whose packets are to reach A."""
        return [self.neighbour, *self.twins.values()]

    @property
    def everybody(self) -> list[Client]:
        return [*self.at_a, *self.untouched, *self.poisoned]


def make_cast(members: Members) -> Cast:
    a, b = members.add_transceiver(), members.add_transceiver()
    untouched = [members.add_client(f"untouched {n}", _ANY_PORT, _VIP, b) for n in range(_UNTOUCHED)]
    poisoned = [members.add_client(name, _ANY_PORT, _VIP, b) for name, _, _ in POISONS]
    twins = {
        client.name: members.add_client(f"twin of {client.name}", client.path.client, _OTHER_VIP, a)
        for client in poisoned
        if client.name == _HAS_A_TWIN
    }
    return Cast(members, members.add_client("neighbour", _ANY_PORT, _VIP, a), twins, untouched, poisoned)


def test_poison_redirects_no_packet(network: Host, cache: RedisServer, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        client_of_redis = stack.enter_context(redis.Redis(host=cache.host, port=cache.port))
        with relay(tmp_path, cache.url) as instance:
            keys = load_keys(instance.state_dir.keys_file)
            members = Members(keys)
            stack.callback(members.close)
            cast = make_cast(members)
            a, b = cast.neighbour.transceiver, cast.untouched[0].transceiver
            scene = Scene(keys, client_of_redis, a, b, cast.neighbour, cast.twins, {})
            earlier = [
                client for client, (*_, told) in zip(cast.poisoned, POISONS, strict=True) if told == _OLD
            ]
            have_a_session(members, earlier, a)
            wait_until(lambda: cache_tells_the_truth(scene, earlier), 3, "their flows in the cache")
            scene.earlier = {client.name: scene.value(client) for client in earlier}
            kill_all(instance)
        a.sessions.clear()
        with relay(tmp_path, cache.url) as instance:
            have_a_session(members, [*cast.untouched, *cast.poisoned], b)
            have_a_session(members, cast.at_a, a)
            wait_until(lambda: cache_tells_the_truth(scene, cast.everybody), 3, "all flows in the cache")
            kill_all(instance)
        scene.now_s = int(time.clock_gettime(time.CLOCK_REALTIME))
        for client, (_, poison, _) in zip(cast.poisoned, POISONS, strict=True):
            poison(scene, client)
        with relay(tmp_path, cache.url) as instance:
            wait_until(lambda: instance.status()["fleet"]["state"] == "connected", 3, "Redis")
            look_at_what_comes(instance, cast, a, b)
            # Their own checks bring them back, and the truth with them.
            have_a_session(members, cast.poisoned, b)
            assert set(a.payload) == paths(cast.at_a)
            wait_until(
                lambda: cache_tells_the_truth(scene, cast.everybody), 3, "a cache that tells the truth"
            )


def look_at_what_comes(instance: Instance, cast: Cast, a: Transceiver, b: Transceiver) -> None:
    """Everybody sends media and no checks."""
    for client in cast.everybody:
        client.came, client.first_sent_at = 0, 0.0
    for transceiver in (a, b):
        transceiver.forget_counts()
    cast.members.run(1.0, cast.everybody)
    back = [*cast.at_a, *cast.untouched]
    silent = [client.name for client in back if not client.came]
    # Long enough for the others to be asked for again.
    cast.members.run(2.5, cast.everybody)
    status = instance.status()
    counts, events = status["fleet"]["counts"], status["relay"]["events"]
    took_ms = [
        1000 * (c.transceiver.first_at[c.path] - c.first_sent_at) for c in back if c.name not in silent
    ]
    astray = sum(n for path, n in a.payload.items() if path not in paths(cast.at_a))
    told = {name: counts[name] for name in ("hits", "misses", "forged", "stale")}
    told |= {name: events[name] for name in ("flow_recalled", "recall_missed", "recall_unconfirmed")}
    note_measured(
        f"poisoned: {len(cast.poisoned)} clients, {astray} bytes of theirs at A, {sum(a.questions.values())} questions there; "
        f"{len(took_ms)} of {len(back)} others are back after at most {max(took_ms, default=0):.1f} ms; {told}"
    )
    assert astray == 0
    assert silent == []
    earlier = {c.path for c, (*_, told) in zip(cast.poisoned, POISONS, strict=True) if told == _OLD}
    assert set(a.questions) == paths(cast.at_a) | earlier, "only what could be true is asked for"
    assert set(a.payload) == paths(cast.at_a)
    assert set(b.payload) == paths(cast.untouched)
    assert events["flow_recalled"] == len(back)
    counted = {**counts, **events}
    for name in {told for _, _, told in POISONS}:
        assert counted[name] >= sum(told == name for _, _, told in POISONS), name
    assert max(took_ms) < 1000


def have_a_session(members: Members, clients: list[Client], transceiver: Transceiver) -> None:
    """By checks, until media flow both ways."""
    for client in clients:
        client.came = 0
        members.lead(client, transceiver)
        members.check(client)
    members.run(0.3)
    members.run(0.3, clients)
    assert [client.name for client in clients if not client.came] == []


def paths(clients: list[Client]) -> set[SppHeader]:
    return {client.path for client in clients}


def cache_tells_the_truth(scene: Scene, clients: list[Client]) -> bool:
    for client in clients:
        try:
            value = scene.redis.get(key_of(client))
            assert isinstance(value, bytes | None)
            record, _ = open_flow_untrusted(scene.keys, *client.path, value or b"")
        except (WireError, redis.ResponseError):
            return False
        if (record.transceiver, record.ufrag_tag) != (client.transceiver.address, client.tag):
            return False
    return True
