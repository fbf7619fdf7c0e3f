"""Who carried packets: XDP or the workers, on whatever host a relay runs."""

from dataclasses import dataclass
from typing import Any, Protocol


class Relay(Protocol):
    """What tells of itself."""

    def status(self) -> Any:
        """As ``relayctl status --json``."""
        ...

    def ask(self, method: str) -> Any:
        """As ``relayctl METHOD --json``."""
        ...


def worker_packets(status: Any) -> int:
    """What all workers together have seen."""
    return sum(worker["packets"] for worker in status["relay"]["workers"])


@dataclass(frozen=True)
class Carried:
    """What carried packets up to now: workers' packets, XDP's by verdict, and the packets of flows whose call is up.

    Flows of calls that ended stay for a while, and would take their counts with them.
    """

    by_workers: int
    stun: int
    up: int
    down: int
    flow_up: int
    flow_down: int

    @classmethod
    def now(cls, relay: Relay) -> "Carried":
        """As the supervisor tells."""
        flows = [flow for flow in relay.ask("flows") if flow["state"] == "assured"]
        status = relay.status()
        verdicts = status["relay"]["xdp_verdicts"]
        return cls(
            worker_packets(status),
            verdicts["forward_stun"],
            verdicts["forward_flow"],
            verdicts["forward_client"],
            sum(flow["packets_up"] for flow in flows),
            sum(flow["packets_down"] for flow in flows),
        )

    def minus(self, before: "Carried") -> dict[str, int]:
        """What has come since."""
        return {name: value - getattr(before, name) for name, value in vars(self).items()}
