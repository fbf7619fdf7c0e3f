"""Places for transceiver processes: the sockets that each inherits, and what the operator wants of it."""

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass
from enum import Enum, auto

from host.errors import AddressInUseError, ConfigError
from host.sockets import bind_tcp, bind_udp, bound_address, take_without_checksum
from transceiver.config import TransceiverConfig
from wire.address import Address

logger = logging.getLogger(__name__)

BACKLOG = 512


class Wanted(Enum):
    """What the operator wants of a process."""

    SERVING = auto()
    DRAINED = auto()
    STOPPED = auto()
    REMOVED = auto()

    @property
    def ends_process(self) -> bool:
        """Whether it goes beyond its calls."""
        return self in (Wanted.STOPPED, Wanted.REMOVED)


@dataclass(eq=False)
class TransceiverSlot:
    """One process's sockets: ``udp`` for its calls, ``internal`` for requests that other processes pass on.

    deadline: monotonic seconds when calls that are left are ended; None: never. changing: the task that gets from what is
    to what is wanted. is_ending: that task has told the process to end, and cannot go back.
    """

    index: int
    udp: socket.socket
    internal: socket.socket
    wanted: Wanted = Wanted.SERVING
    deadline: float | None = None
    changing: asyncio.Task[None] | None = None
    is_ending: bool = False

    @property
    def name(self) -> str:
        """As operators know the process."""
        return f"transceiver-{self.index}"

    @property
    def address(self) -> Address:
        """Where relays send to."""
        return bound_address(self.udp)

    @property
    def internal_http(self) -> Address:
        """Where other processes pass requests on to; another one each time that it was shut."""
        return bound_address(self.internal)

    def shut(self) -> None:
        """Refuse what other processes pass on, so that nobody waits for a process that is not there."""
        shut(self.internal)

    def reopen(self) -> None:
        """Let it queue up again."""
        self.internal.listen(BACKLOG)

    def close(self) -> None:
        """Close both."""
        self.udp.close()
        self.internal.close()


def shut(listener: socket.socket) -> None:
    """Have a listening socket refuse connections until it listens again; a port that it asked for stays its own."""
    with contextlib.suppress(OSError):  # it is shut already
        listener.shutdown(socket.SHUT_RDWR)


class SlotMaker:
    """``left_behind`` are pids of an earlier start's processes, which may still hold addresses."""

    def __init__(self, config: TransceiverConfig, left_behind: set[int]) -> None:
        self._base = config.listen
        self._left_behind = left_behind

    def make(self, index: int) -> TransceiverSlot:
        """Raises AddressInUseError or ConfigError."""
        base = self._base
        if base.port and base.port + index > 65535:
            raise ConfigError("transceiver.listen", f"{base} leaves no port for process {index}")
        udp = self._bind_udp(Address(base.host, base.port + index) if base.port else base)
        take_without_checksum(udp)
        try:
            return TransceiverSlot(index, udp, bind_tcp("transceiver.listen", Address(base.host, 0)))
        except BaseException:
            udp.close()
            raise

    def _bind_udp(self, address: Address) -> socket.socket:
        """Any port where one that was left behind still has calls on this one; hints name whatever port it is."""
        try:
            return bind_udp("transceiver.listen", address)
        except AddressInUseError as error:
            if not error.pids or not error.pids <= self._left_behind:
                raise
            logger.warning("%s still has calls of an earlier start; taking any other port", address)
            return bind_udp("transceiver.listen", Address(address.host, 0))
