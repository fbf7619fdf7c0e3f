"""A MuxConnection by itself, with everything around it fake."""

from collections import Counter
from typing import Any

from tests.transceiver.checks import CREDENTIAL, RELAY, VIP, VIP_V6, Clock, write_check
from tests.transceiver.processes import KEYS
from transceiver.connection import MuxConnection
from transceiver.hub import Hub, HubSettings
from transceiver.ice import IceLiteAgent, Path
from transceiver.mux import Mux
from wire.address import Address
from wire.stun import parse_stun_untrusted


class Tally:
    """Counts what is dropped."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()

    def count(self, outcome: str) -> None:
        self.counters[outcome] += 1


class FakeMux:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Path, Address]] = []

    def send(self, datagram: bytes, path: Path, relay: Address) -> None:
        self.sent.append((datagram, path, relay))


class Standalone:
    """A MuxConnection, and what is around it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.agent = IceLiteAgent(CREDENTIAL, self.clock())
        self.mux = FakeMux()
        self.tally = Tally()
        mux: Any = self.mux
        assert hasattr(Mux, "send")
        self.connection = MuxConnection(self.agent, mux, self.clock, self.tally)

    def check(self, path: Path) -> None:
        datagram = write_check()
        message = parse_stun_untrusted(datagram)
        self.agent.receive_check(datagram, message, message.ufrags_untrusted, path, RELAY, self.clock())
        self.connection.path_validated()


def make_hub() -> Hub:
    """A hub whose socket sends nothing."""
    lone = Standalone()
    mux: Any = lone.mux
    return Hub(HubSettings(address=RELAY, vips=(VIP, VIP_V6), cluster_id=1), KEYS, mux, lone.clock)
