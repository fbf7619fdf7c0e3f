"""Transceivers of other hosts that may take a session when none of this host does. Pure: ``now`` is monotonic seconds.

What is known of them is as old as their leases, so each session that one was given counts until the next word, and at most
until a lease must have told of it: the next one may be no news, if the session has ended by then. One that failed is left
alone for a while.

What is passed on carries the fleet's credential. An address such as 127.0.0.1 is another process on each machine, so it is
used only where the lease says that it is of this one.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wire.address import Address

MAX_TRANSCEIVERS = 16
_FAILED_FOR_S = 5.0
# Hosts tell of themselves every second, or two under load, and look as often.
_GIVEN_FOR_S = 5.0


@dataclass(frozen=True)
class Transceiver:
    """One of them, as its lease tells."""

    internal_http: Address
    sessions: int
    max_sessions: int

    def to_message(self) -> dict[str, Any]:
        """The JSON form."""
        return {**vars(self), "internal_http": str(self.internal_http)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Transceiver":
        """The inverse of ``to_message``. Raises KeyError, TypeError or ValueError."""
        return cls(
            Address.parse(str(message["internal_http"])),
            int(message["sessions"]),
            int(message["max_sessions"]),
        )


def usable(leases: Iterable[Mapping[str, Any]], machine: str) -> list[Transceiver]:
    """Those of other hosts' leases that take sessions, the least loaded first, a bounded number.

    machine: this one's, as leases of hosts on it say; empty if it is not known.
    """
    found = []
    for lease in leases:
        try:
            transceiver = Transceiver.from_message(lease)
            is_usable = (
                lease["kind"] == "transceiver"
                and lease["state"] == "ready"
                and lease.get("full") is None  # sessions, memory or CPU; older versions do not tell
                and lease["expires_s"] > 0
                and (not _is_local(transceiver.internal_http) or _is_of(machine, lease))
            )
        except (KeyError, TypeError, ValueError):  # another version's
            continue
        if is_usable and 0 <= transceiver.sessions < transceiver.max_sessions:
            found.append(transceiver)
    return sorted(found, key=lambda t: t.sessions / t.max_sessions)[:MAX_TRANSCEIVERS]


def _is_local(address: Address) -> bool:
    """Whether it leads every machine to itself."""
    return address.ip.is_loopback or address.ip.is_unspecified  # a connection to 0.0.0.0 goes to 127.0.0.1


def _is_of(machine: str, lease: Mapping[str, Any]) -> bool:
    return bool(machine) and lease.get("machine") == machine


class Elsewhere:
    """What a process knows of them."""

    def __init__(self) -> None:
        self._transceivers: list[Transceiver] = []
        # Until when each counts, the first to lapse first.
        self._given: deque[tuple[float, Address]] = deque()
        self._failed_until: dict[Address, float] = {}

    def update(self, transceivers: list[Transceiver]) -> None:
        """The word that is true now."""
        self._transceivers = transceivers
        self._given.clear()

    def best(self, now: float, tried: Collection[Address] = ()) -> Address | None:
        """The least loaded one that is not among ``tried``; None if there is none."""
        self._failed_until = {address: until for address, until in self._failed_until.items() if until > now}
        while self._given and self._given[0][0] <= now:
            self._given.popleft()
        given = Counter(address for _, address in self._given)
        loads = {
            t.internal_http: (t.sessions + given[t.internal_http]) / t.max_sessions
            for t in self._transceivers
            if t.internal_http not in tried and t.internal_http not in self._failed_until
        }
        best = min(loads, key=lambda address: loads[address], default=None)
        return best if best is not None and loads[best] < 1 else None

    def note_given(self, address: Address, now: float) -> None:
        """It took a session."""
        self._given.append((now + _GIVEN_FOR_S, address))

    def note_failed(self, address: Address, now: float) -> None:
        """It did not, for whatever reason."""
        self._failed_until[address] = now + _FAILED_FOR_S
