"""What systemd, or whoever else has started us, is told: datagrams to the socket that NOTIFY_SOCKET names (sd_notify(3))."""

import logging
import socket
from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """Nobody, where ``address`` is empty. Nothing here raises: a service that is not heard still serves."""

    def __init__(self, address: str = "") -> None:
        self.address = address

    @classmethod
    def take_from(cls, environment: MutableMapping[str, str]) -> "ServiceManager":
        """As the environment names it, which then names it no more: our processes have nothing to tell."""
        return cls(environment.pop(VARIABLE, ""))

    @property
    def environment(self) -> dict[str, str]:
        """What a successor of ours needs to tell it."""
        return {VARIABLE: self.address} if self.address else {}

    def tell(self, **variables: str | int) -> None:
        """Variables of sd_notify(3), as ``READY=1, STATUS="running"``; one line each."""
        if not self.address:
            return
        lines = (f"{name}={' '.join(str(value).splitlines())}" for name, value in variables.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), _sockaddr(self.address))
        except (OSError, ValueError) as error:
            logger.warning("%s %s does not take %s: %s", VARIABLE, self.address, ", ".join(variables), error)


def _sockaddr(address: str) -> str:
    """@ stands for the zero byte that an abstract address begins with (unix(7)). Raises ValueError."""
    if address.startswith("@"):
        return "\0" + address[1:]
    if not address.startswith("/"):
        raise ValueError("this is neither a path nor an abstract UNIX socket")
    return address
