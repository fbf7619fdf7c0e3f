"""What a flood did, as a row of a table: for a terminal, as Markdown, and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_MIB = 1024 * 1024
_COLUMNS = (
    "flood",
    "offered/s",
    "read/s",
    "kernel dropped/s",
    "calls lost up, down",
    "checks answered",
    "forwarded/s",
    "provisional flows",
    "worker RSS, MiB",
    "worker CPU",
    "new clients waited",
    "counters that rose",
)


@dataclass(frozen=True)
class Loss:
    """Of the calls, in percent: packets sent within the flood that never came; checks sent then that were answered."""

    up_percent: float
    down_percent: float
    answered_percent: float
    sent: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class FloodRow:
    """One flood. Rates are a second of it.

    offered, read: packets that were sent, and those that the worker read; socket_drops: packets, those of calls among
        them, that found no room in the relay's public and fleet sockets. forwarded: requests that came to their transceiver.
    provisional_flows: the most that were seen; provisional_cap: what is allowed. rss_*: bytes of the worker.
    cpu_percent: of the worker, of a core. rose: counters, but for what was forwarded.
    is_named: whether a counter that tells of this attack is among them.
    newcomers_s: how long new clients waited for their first answer; None: for nothing.
    own_drops: packets that the measurement itself lost.
    """

    name: str
    what: str
    seconds: float
    offered_per_s: int
    read_per_s: int
    socket_drops: dict[str, int]
    forwarded_per_s: int
    loss: Loss
    provisional_flows: int
    provisional_cap: int
    rss_before: int
    rss_after: int
    cpu_percent: float
    rose: dict[str, int]
    is_named: bool
    newcomers_s: Sequence[float | None]
    own_drops: int

    def to_json(self) -> dict[str, Any]:
        """The row for programs."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """In the order of the columns."""
        loss = self.loss
        return (
            self.what,
            f"{self.offered_per_s:,}",
            f"{self.read_per_s:,}",
            f"{round(sum(self.socket_drops.values()) / self.seconds):,}" if self.seconds else "-",
            f"{loss.up_percent:.2f} %, {loss.down_percent:.2f} %",
            f"{loss.answered_percent:.1f} %",
            f"{self.forwarded_per_s:,}",
            f"{self.provisional_flows:,} of {self.provisional_cap:,}",
            f"{self.rss_before / _MIB:.0f} → {self.rss_after / _MIB:.0f}",
            f"{self.cpu_percent:.0f} %",
            self._newcomers(),
            ", ".join(f"{name} {count:,}" for name, count in sorted(self.rose.items(), key=lambda c: -c[1])),
        )

    def _newcomers(self) -> str:
        answered = sorted(waited for waited in self.newcomers_s if waited is not None)
        of_all = f"{len(answered)} of {len(self.newcomers_s)}"
        if not answered:
            return of_all
        return f"{statistics.median(answered) * 1000:.0f} ms, at most {answered[-1] * 1000:.0f} ms, {of_all}"


def print_rows(rows: Sequence[FloodRow]) -> None:
    """To standard output; a column a flood, as there are more kinds of figures than floods."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for cells in zip(_COLUMNS, *(row.cells() for row in rows), strict=True):
        table.add_row(*map(Text, cells))
    for column in table.columns:
        column.max_width, column.overflow = 36, "fold"
    console = Console()
    console.width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(table)


def as_markdown(rows: Sequence[FloodRow]) -> str:
    """For docs/security.md; a column a flood."""
    table = list(zip(_COLUMNS, *(row.cells() for row in rows), strict=True))
    lines = [_line(table[0]), _line(["---"] * len(table[0]))]
    return "\n".join([*lines, *map(_line, table[1:])])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
