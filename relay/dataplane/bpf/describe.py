"""What is in the maps, in names, addresses and units: one row an element, for people and for JSON.

Times are told as ages in seconds. ``COUNTS`` are the fields that only grow, so that a second look gives a rate.
"""

import ctypes
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np

from relay.core.steering import hash_address
from relay.core.verdict import MEANINGS, Verdict
from relay.dataplane.bpf.abi import (
    MAX_GROUPS,
    MAX_SLOTS,
    SIDE_PUBLIC,
    STEERING_SIZE,
    CoreChoice,
    Direction,
    FlowFlag,
    FlowKeyC,
    Host,
    LinkPath,
    Network,
    Settings,
    SourcePrefix,
)
from relay.dataplane.bpf.programs import RelayPrograms, network_namespace
from relay.dataplane.counters import label_cells
from wire.address import Address

Row = dict[str, Any]
COUNTS = ("packets", "bytes", "count", "packets_up", "bytes_up", "packets_down", "bytes_down")
_NANO = 1e9


class MapReader:
    """Decodes the maps of one relay."""

    def __init__(self, programs: RelayPrograms) -> None:
        self._maps = programs.maps
        self._settings: Settings = programs.settings()
        self._listeners = programs.listeners()
        self._is_here = self._settings.network_namespace in (0, network_namespace())
        self._decoders: dict[str, Callable[[Any, Any], Iterator[Row]]] = {
            "settings": self._settings_rows,
            "listeners": _listener,
            "networks": lambda key, value: iter([{"network": _network(key)}]),
            "steering": lambda key, value: iter([{"place": key.value, "slot": value.value}]),
            "sockets": self._socket,
            "cores": lambda key, value: iter([{"core": key.value, "queue_packets": value.value}]),
            "heartbeat": lambda key, value: iter([{"beat_age_s": _age(value.beat_ns)}]),
            "workers": _worker,
            "counters": _counters,
            "next_hops": self._next_hop,
            "flows": self._flow,
            "provisional": self._flow,
            "buckets": self._bucket,
            "verdicts": _verdict,
            "forwarded_bytes": _forwarded_bytes,
            "core_choices": _core_choice,
        }

    def rows(self, name: str) -> list[Row]:
        """Every element of a map. Steering is summed up by slot: its places are told one by one by ``row``."""
        if name == "steering":
            return self._shares()
        return [row for key, value in self._maps[name].items() for row in self._decoders[name](key, value)]

    def find_flows(self, name: str, client: str | None = None) -> Iterator[Row]:
        """Rows of ``flows`` or ``provisional``, of one client (ADDRESS or ADDRESS:PORT), without making a row of each."""
        for keys, values in self._maps[name].batches():
            for place in range(len(keys)) if client is None else _places_of(client, keys):
                yield from self._flow(keys[place], values[place])

    def get(self, name: str, words: tuple[str, ...]) -> list[Row]:
        """The rows of one key, which is written as ``rows`` shows it. Raises ValueError with the form of a key."""
        if name == "networks":
            # The map tells only whether there is one that has the address.
            host = self._parse_host(words)
            return [row for row in self.rows(name) if host in ip_network(row["network"])]
        found = []
        for key in self._parse_key(name, words):
            value = self._maps[name].get(key)
            if value is not None:
                found += list(self._decoders[name](key, value))
        return found

    def _parse_key(self, name: str, words: tuple[str, ...]) -> Iterator[Any]:
        try:
            match name, words:
                case ("flows" | "provisional", (client,)):
                    for _, group in self._listeners.values():
                        yield FlowKeyC.of(Address.parse(client), group)
                case ("flows" | "provisional", (client, listen_text)):
                    _, group = self._listeners.get(Address.parse(listen_text), (0, MAX_GROUPS))
                    yield FlowKeyC.of(Address.parse(client), group)
                case ("buckets", (host,)):
                    yield self._source_key(Address.from_host(host, 0))
                case ("next_hops", (host,)):
                    yield Host((ctypes.c_uint8 * 16)(*Address.from_host(host, 0).mapped))
                case ("sockets", (group, slot)):
                    index = _below(group, MAX_GROUPS) * MAX_SLOTS + _below(slot, MAX_SLOTS)
                    yield ctypes.c_uint32(index)
                case ("verdicts", (label,)) if not label.isdigit():
                    yield ctypes.c_uint32(Verdict[label.upper()])
                case ("core_choices", (label,)) if not label.isdigit():
                    yield ctypes.c_uint32(CoreChoice[f"CORE_{label.upper()}"])
                case (_, (index,)) if name in _INDEXED:
                    yield ctypes.c_uint32(_below(index, self._maps[name].max_entries))
                case _:
                    raise ValueError("wrong number of words")
        except (ValueError, KeyError) as error:
            form = _KEY_FORMS.get(name, "INDEX")
            raise ValueError(f"{' '.join(words)!r} is no key of {name} ({error}); write {form}") from None

    def _parse_host(self, words: tuple[str, ...]) -> Any:
        try:
            (host,) = words
            return ip_address(host)
        except ValueError:
            raise ValueError(f"{' '.join(words)!r} is no ADDRESS") from None

    def _shares(self) -> list[Row]:
        shares = Counter(value.value for _, value in self._maps["steering"].items())
        return [
            {"slot": slot, "places": places, "share_percent": round(100 * places / STEERING_SIZE, 2)}
            for slot, places in sorted(shares.items())
        ]

    def _settings_rows(self, key: Any, value: Settings) -> Iterator[Row]:
        yield {
            "abi_version": value.abi_version,
            "build": f"{value.build:016x}",
            "loopback_clients": bool(value.loopback_clients),
            # Whoever knows the key can aim clients at one worker.
            "hash_key": "set" if any(value.hash_key) else "not set",
            "ipv4_source_bits": _bits(value.ipv4_source_mask) - 96 if value.abi_version else 0,
            "ipv6_source_bits": _bits(value.ipv6_source_mask),
            "unknown_per_s": value.unknown_per_s,
            "unknown_burst": value.unknown_burst,
            "heartbeat_timeout_s": value.heartbeat_timeout_ns / _NANO,
            "network_namespace": value.network_namespace,
            "cpumap": bool(value.cpumap),
            "fastpath": bool(value.fastpath),
            "mtu": value.mtu,
        }

    def _socket(self, key: Any, value: Any) -> Iterator[Row]:
        group, slot = divmod(key.value, MAX_SLOTS)
        yield {
            "group": group,
            "slot": slot,
            "address": self._listen_of(group),
            "socket_cookie": value.value,
        }

    def _listen_of(self, group: int) -> str | None:
        """Where the group's packets arrive."""
        return next(
            (str(address) for address, (_, number) in self._listeners.items() if number == group), None
        )

    def _flow(self, key: FlowKeyC, value: Any) -> Iterator[Row]:
        client = key.client()
        place = hash_address(client, tuple(self._settings.hash_key)) % STEERING_SIZE
        steered = self._maps["steering"].get(place)
        yield {
            "client": str(client),
            "listen": self._listen_of(key.group),
            "transceiver": str(value.transceiver.address()),
            "slot": None if steered is None else steered.value,
            "state": _flow_state(value.flags),
            "age_s": _age(value.created_ns),
            "idle_s": _age(value.last_seen_ns),
            "check_age_s": _age(value.ufrag_seen_ns),
            "packets_up": value.packets_up,
            "bytes_up": value.bytes_up,
            "packets_down": value.packets_down,
            "bytes_down": value.bytes_down,
            "client_path": self._client_path(value.client_path),
            "ufrag_tag": value.ufrag_tag.decode("ascii", errors="replace"),
        }

    def _next_hop(self, key: Host, value: Any) -> Iterator[Row]:
        host = Address.from_mapped(bytes(key.address), 0)
        yield {"transceiver_host": str(host.ip), **self._link_path(value.path), "mtu": value.mtu}

    def _link_path(self, path: LinkPath) -> Row:
        tags = [
            f"{proto:04x}:{tci & 0xFFF}"
            for proto, tci in zip(path.tag_proto, path.tag_tci, strict=True)
            if proto
        ]
        return {
            "interface": self._interface_name(path.ifindex),
            "from_mac": bytes(path.from_mac).hex(":"),
            "to_mac": bytes(path.to_mac).hex(":"),
            "vlans": " ".join(tags),
        }

    def _client_path(self, path: LinkPath) -> str:
        """Where XDP sends what is for the client; empty until it has forwarded a packet of that client's."""
        if not path.ifindex:
            return ""
        row = self._link_path(path)
        return " ".join([row["interface"], row["to_mac"], *row["vlans"].split()])

    def _interface_name(self, index: int) -> str:
        """Its number where it is gone, or of another network namespace."""
        try:
            return socket.if_indextoname(index) if self._is_here else str(index)
        except OSError:
            return str(index)

    def _bucket(self, key: SourcePrefix, value: Any) -> Iterator[Row]:
        address = Address.from_mapped(bytes(key.host), 0)
        is_v4 = address.family == 4
        bits = (
            _bits(self._settings.ipv4_source_mask) - 96 if is_v4 else _bits(self._settings.ipv6_source_mask)
        )
        filled = value.nano_tokens / _NANO + _age(value.filled_ns) * self._settings.unknown_per_s
        yield {
            "source": f"{address.ip}/{bits}",
            "tokens": round(min(filled, self._settings.unknown_burst), 1),
            "of": self._settings.unknown_burst,
            "last_packet_age_s": _age(value.filled_ns),
        }

    def _source_key(self, address: Address) -> SourcePrefix:
        mask = self._settings.ipv4_source_mask if address.family == 4 else self._settings.ipv6_source_mask
        masked = bytes(a & b for a, b in zip(address.mapped, bytes(mask), strict=True))
        return SourcePrefix((ctypes.c_uint8 * 16)(*masked))


_INDEXED = (
    "settings",
    "listeners",
    "heartbeat",
    "steering",
    "cores",
    "workers",
    "counters",
    "verdicts",
    "forwarded_bytes",
    "core_choices",
)
_KEY_FORMS = {
    "flows": "CLIENT:PORT [LISTEN:PORT], as 203.0.113.7:5000",
    "provisional": "CLIENT:PORT [LISTEN:PORT], as 203.0.113.7:5000",
    "listeners": "GROUP",
    "buckets": "the source's ADDRESS",
    "next_hops": "the transceiver's ADDRESS",
    "forwarded_bytes": "0 (up) or 1 (down)",
    "networks": "an ADDRESS in it",
    "sockets": "GROUP SLOT",
    "steering": "PLACE, a number below 16381",
    "workers": "SLOT",
    "counters": "SLOT",
    "verdicts": "a verdict, as drop_martian",
    "cores": "CORE",
    "core_choices": "a choice, as redirected",
}
_CHOICE_MEANINGS = {
    CoreChoice.CORE_REDIRECTED: "goes on at its worker's core",
    CoreChoice.CORE_LOCAL: "arrived at its worker's core",
    CoreChoice.CORE_UNKNOWN: "no worker beats, or its core has no queue",
    CoreChoice.CORE_TOO_LONG: "too long to be checked here",
    CoreChoice.CORE_CHECKSUM_INCOMPLETE: "its sender left the UDP checksum to the NIC, or it is wrong",
}


def _places_of(client: str, keys: Any) -> list[int]:
    """Which keys of an array are of that client."""
    found = np.frombuffer(keys, dtype=np.dtype(FlowKeyC))
    try:
        host, port = Address.from_host(str(ip_address(client)), 0).mapped, None
    except ValueError:
        address = Address.parse(client)
        host, port = address.mapped, address.port
    is_wanted = (found["client_host"] == np.frombuffer(host, dtype=np.uint8)).all(axis=1)
    if port is not None:
        is_wanted &= found["client_port"] == port
    return [int(place) for place in np.flatnonzero(is_wanted)]


def _below(text: str, bound: int) -> int:
    number = int(text)
    if not 0 <= number < bound:
        raise ValueError(f"not below {bound}")
    return number


def _age(then_ns: int) -> float:
    return round((time.monotonic_ns() - then_ns) / _NANO, 1)


def _bits(mask: Any) -> int:
    return int.from_bytes(bytes(mask), "big").bit_count()


def _side(side: int) -> str:
    return "public" if side == SIDE_PUBLIC else "fleet"


def _network(key: Network) -> str:
    address = Address.from_mapped(bytes(key.host), 0)
    bits = key.prefix_length - (96 if address.family == 4 else 0)
    return f"{address.ip}/{bits}"


def _flow_state(flags: int) -> str:
    if flags & FlowFlag.FLOW_IS_ASSURED:
        return "released" if flags & FlowFlag.FLOW_IS_RELEASED else "assured"
    return "provisional"


def _listener(key: Any, value: Any) -> Iterator[Row]:
    if value.side:
        yield {
            "group": key.value,
            "address": str(value.listen.address()),
            "side": _side(value.side),
            "told": str(value.told.address()) if value.side == SIDE_PUBLIC else None,
        }


def _worker(key: Any, value: Any) -> Iterator[Row]:
    if value.pid:
        yield {
            "slot": key.value,
            "pid": value.pid,
            "core": value.core,
            "up_s": _age(value.started_ns),
            "beat_age_s": _age(value.beat_ns),
        }


def _counters(key: Any, value: Any) -> Iterator[Row]:
    for label, count in label_cells(value.cells).items():
        if count:
            yield {"slot": key.value, "counter": label, "count": count}


def _verdict(key: Any, value: Any) -> Iterator[Row]:
    verdict = Verdict(key.value)
    yield {
        "verdict": verdict.label,
        "drop_reason": verdict.label.removeprefix("drop_") if verdict.is_drop else None,
        "packets": sum(value),
        "by_cpu": list(value),
        "meaning": MEANINGS[verdict],
    }


def _forwarded_bytes(key: Any, value: Any) -> Iterator[Row]:
    direction = Direction(key.value).name.removeprefix("DIRECTION_").lower()
    yield {"direction": direction, "bytes": sum(value), "by_cpu": list(value)}


def _core_choice(key: Any, value: Any) -> Iterator[Row]:
    choice = CoreChoice(key.value)
    yield {
        "choice": choice.label,
        "packets": sum(value),
        "by_cpu": list(value),
        "meaning": _CHOICE_MEANINGS[choice],
    }
