"""The registry: leases of transceivers and relays, renewed while they live, read by every host.

    relayctl:1:{fleet}                              ZSET of the leases' names by when they lapse (unix s)
    relayctl:1:{fleet}:transceiver:10.0.1.7:5000    what wire/lease.py seals, with a time to live
    relayctl:1:{fleet}:relay:<host id>

``{fleet}`` puts all of them into one slot of a Cluster. How long a lease is believed goes by our own clock, from when its
stamp was first seen: one that nobody renews lapses, also when somebody keeps putting it back.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fleet.flow_cache import CLOCK_SKEW_S, unix_s
from fleet.redis_client import Command, LinkError, Reply
from wire.errors import WireError
from wire.keys import KeyRing, RecordKeys
from wire.lease import MAX_LEASE_BYTES, open_lease_untrusted, seal_lease

logger = logging.getLogger(__name__)

Execute = Callable[[bytes, list[Command]], Awaitable[list[Reply]]]

MAX_LEASES = 1024
# Only what opens is remembered; so many hosts' leases at once are not to be expected, also while hosts come and go.
_MAX_SEEN = 4 * MAX_LEASES
_LEASES_A_PIPELINE = 256
_MAX_NAME_BYTES = 128
_HOST_FIELDS = {"host_id": str, "host_name": str, "version": str, "started_at": str}
# What readers rely on; whoever seals a lease may tell more.
_FIELDS: dict[str, dict[str, type]] = {
    "transceiver": {
        "name": str,
        "address": str,
        "internal_http": str,
        "state": str,
        "sessions": int,
        "connected": int,
        "max_sessions": int,
        **_HOST_FIELDS,
    },
    "relay": {
        "dataplane": str,
        "vips": list,
        "workers": int,
        "flows": int,
        "assured_flows": int,
        "state": str,
        **_HOST_FIELDS,
    },
}


class Registry:
    """Our leases there, and everybody's here."""

    def __init__(
        self, keys: KeyRing | RecordKeys, cluster_id: int, lease_s: float, counts: Counter[str]
    ) -> None:
        self.index = f"relayctl:{cluster_id}:{{fleet}}".encode()
        self._keys = keys
        self._lease_s = lease_s
        self._counts = counts
        # Stamp of each lease, and when (monotonic) we first saw it; as long as anything older could be believed.
        self._seen: dict[str, tuple[int, float]] = {}
        self._too_long: set[str] = set()

    async def renew(self, execute: Execute, leases: dict[str, dict[str, Any]]) -> None:
        """Write our leases, in one pipeline. Raises LinkError."""
        now = unix_s()
        commands: list[Command] = []
        for name, document in leases.items():
            try:
                sealed = seal_lease(self._keys, name, document, int(now))
            except ValueError as error:
                self._tell_once(name, error)
                continue
            commands.append(("ZADD", self.index, now + self._lease_s, name))
            commands.append(("SET", self._key(name), sealed, "PX", int(1000 * self._lease_s)))
        if commands:
            await _all(execute, self.index, commands)
        # What lapsed long ago, by anybody's clock. By itself: a Redis that is full does this and nothing else.
        await _all(execute, self.index, [("ZREMRANGEBYSCORE", self.index, "-inf", now - CLOCK_SKEW_S)])

    async def give_up(self, execute: Execute, names: list[str]) -> None:
        """Take our leases back: nobody needs to wait until they lapse. Raises LinkError."""
        if names:
            await _all(execute, self.index, [("ZREM", self.index, *names), ("DEL", *map(self._key, names))])

    async def read(self, execute: Execute) -> list[dict[str, Any]]:
        """The living leases, each with its ``kind``, ``age_s`` and ``expires_s``. Raises LinkError."""
        since = unix_s() - CLOCK_SKEW_S
        (names,) = await _all(
            execute, self.index, [("ZREVRANGEBYSCORE", self.index, "+inf", since, "LIMIT", 0, MAX_LEASES)]
        )
        told = names[:MAX_LEASES] if isinstance(names, list) else []
        known = [name for name in map(_read_name, told) if name]
        values: list[Reply] = []
        for start in range(0, len(known), _LEASES_A_PIPELINE):
            batch = known[start : start + _LEASES_A_PIPELINE]
            # One byte more than is good, as with flows.
            values += await execute(
                self.index, [("GETRANGE", self._key(name), 0, MAX_LEASE_BYTES) for name in batch]
            )
        leases = [self._open(name, value) for name, value in zip(known, values, strict=True) if value != b""]
        self._forget_unbelievable()
        return [lease for lease in leases if lease is not None]

    def _open(self, name: str, value: Reply) -> dict[str, Any] | None:
        now = time.monotonic()
        try:
            if not isinstance(value, bytes):
                raise ValueError("no value of ours")
            document, stamp = open_lease_untrusted(self._keys, name, value)
            _check(name, document)
            last_stamp, seen_at = self._seen.get(name, (0, now))
            if stamp < last_stamp or not self._oldest_stamp() <= stamp <= unix_s() + CLOCK_SKEW_S:
                raise ValueError("older than it may be, or from the future")
        except (WireError, ValueError):
            self._counts["leases_forged"] += 1
            return None
        if stamp > last_stamp:
            seen_at = now
            self._seen[name] = stamp, now
        age_s = now - seen_at
        if age_s > self._lease_s:
            return None
        kind = name.partition(":")[0]
        return {
            **document,
            "kind": kind,
            "age_s": round(age_s, 2),
            "expires_s": round(self._lease_s - age_s, 2),
        }

    def _forget_unbelievable(self) -> None:
        """Stamps that are refused by themselves from now on; not what is missing from one answer, which may come back."""
        oldest = self._oldest_stamp()
        newest_first = sorted(self._seen.items(), key=lambda item: item[1][0], reverse=True)
        self._seen = {name: seen for name, seen in newest_first[:_MAX_SEEN] if seen[0] >= oldest}

    def _oldest_stamp(self) -> float:
        return unix_s() - self._lease_s - CLOCK_SKEW_S

    def _key(self, name: str) -> bytes:
        return self.index + b":" + name.encode()

    def _tell_once(self, name: str, error: ValueError) -> None:
        if name not in self._too_long:
            self._too_long.add(name)
            logger.error("others cannot be told of %s: %s", name, error)


async def _all(execute: Execute, key: bytes, commands: list[Command]) -> list[Reply]:
    replies = await execute(key, commands)
    for reply in replies:
        if isinstance(reply, LinkError):
            raise reply
    return replies


def _read_name(name: Any) -> str | None:
    """A name of ours; anybody may have put others there."""
    if not isinstance(name, bytes) or len(name) > _MAX_NAME_BYTES or not name.isascii():
        return None
    text = name.decode()
    return text if text.partition(":")[0] in _FIELDS else None


def _check(name: str, document: dict[str, Any]) -> None:
    """Raises ValueError unless a lease tells what its readers rely on."""
    for field, kind in _FIELDS[name.partition(":")[0]].items():
        value = document.get(field)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"a lease without {field}")
    if not all(isinstance(vip, str) for vip in document.get("vips", ())):
        raise ValueError("a lease whose vips are no text")
