"""One ICE-lite agent, what its client and an attacker do to it, and the time."""

from tests.transceiver.checks import CREDENTIAL, RELAY, client, write_check
from transceiver.ice import CheckResult, Credential, IceLiteAgent, Path
from wire.address import Address
from wire.stun import parse_stun_untrusted

HOME, MOBILE, ATTACKER = client(1), client(2), client(666)


class Call:
    """One agent, what its client does, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.agent = IceLiteAgent(CREDENTIAL, self.now)
        self.record = 0

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def receive(self, datagram: bytes, path: Path, relay: Address = RELAY) -> CheckResult:
        message = parse_stun_untrusted(datagram)
        return self.agent.receive_check(datagram, message, message.ufrags_untrusted, path, relay, self.now)

    def check(
        self,
        path: Path,
        *,
        use_candidate: bool = False,
        credential: Credential = CREDENTIAL,
        relay: Address = RELAY,
    ) -> CheckResult:
        """A fresh check arrives from ``path``."""
        return self.receive(write_check(credential, use_candidate=use_candidate), path, relay)

    def connect(self, path: Path = HOME) -> None:
        """Check, DTLS handshake, done."""
        self.check(path)
        self.dtls(path)
        self.agent.complete_handshake()

    def dtls(self, path: Path, relay: Address = RELAY) -> None:
        """A handshake record arrives."""
        if self.agent.receive_datagram(500, path):
            self.agent.receive_dtls(path, relay)

    def media(self, path: Path, *, newest: bool = True, relay: Address = RELAY) -> None:
        """A packet arrives and passes authentication."""
        if self.agent.receive_datagram(160, path):
            self.agent.authenticate(path, relay, newest=newest, now=self.now)

    def talk(self, path: Path, seconds: float = 1.0) -> None:
        """Media every 20 ms."""
        for _ in range(round(seconds / 0.02)):
            self.wait(0.02)
            self.media(path)

    def sends_to(self, length: int = 100, *, dtls: bool = False) -> Path | None:
        """Where ``length`` bytes would go now."""
        destination = self.agent.destination(length, dtls=dtls, now=self.now)
        return destination[0] if destination else None
