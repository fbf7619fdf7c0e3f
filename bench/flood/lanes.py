"""What came of numbered packets: one lane for each flow and kind, noted at both ends by the same process."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Lane:
    """Packets of one flow in one direction. ``damaged``: came with another length or end than they were sent with."""

    sent_at: list[float] = field(default_factory=list)
    came: bytearray = field(default_factory=bytearray)
    next_number: int = 0
    late: int = 0
    doubled: int = 0
    damaged: int = 0

    def send(self, now: float) -> int:
        """The number of the packet that is sent now."""
        self.sent_at.append(now)
        self.came.append(0)
        return len(self.came) - 1

    def receive(self, number: int) -> None:
        """Note one that came; one that was never sent is damaged."""
        if number >= len(self.came):
            self.damaged += 1
            return
        if self.came[number]:
            self.doubled += 1
        elif number < self.next_number:
            self.late += 1
        else:
            self.next_number = number + 1
        self.came[number] = 1


@dataclass(frozen=True)
class Count:
    """Packets sent within a span of time, and how many of those never came."""

    sent: int
    lost: int

    @property
    def percent(self) -> float:
        """What was lost."""
        return 100 * self.lost / self.sent if self.sent else 0.0


def count(lanes: list[Lane], begin: float, end: float) -> Count:
    """All lanes together, of what was sent from ``begin`` to before ``end``."""
    sent = lost = 0
    for lane in lanes:
        came = np.frombuffer(bytes(lane.came), dtype=np.uint8)
        sent_at = np.array(lane.sent_at)
        within = (sent_at >= begin) & (sent_at < end)
        sent += int(within.sum())
        lost += int((within & (came == 0)).sum())
    return Count(sent, lost)
