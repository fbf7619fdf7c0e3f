"""What ``relayctl transceivers status`` prints: load and room of each process, its place, and all that it counts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cli.render import count_of, human_bytes, human_duration, print_table

Row = dict[str, Any]

# With more processes than these, counts are of all together.
_MAX_COUNT_COLUMNS = 4
_COUNTS = (("ended", "sessions ended"), ("refused", "answered 503"), ("datagrams", "datagrams"))


def print_status(rows: Sequence[Row], *, has_fleet: bool) -> None:
    """``has_fleet``: there is a Redis, which others know of us by."""
    print_table(
        f"{count_of(len(rows), 'transceiver')}{_limits(rows)}",
        ("name", "pid", "state", "up", "CPU %", "memory", "of", "sessions", "connected", "max", "full"),
        (
            (
                row["name"],
                row["pid"],
                row["state"],
                human_duration(row["uptime_s"]),
                round(100 * row["cpu"], 1) if "cpu" in row else None,
                _bytes(row.get("rss_bytes")),
                _bytes(row.get("max_memory_bytes")),
                row["sessions"],
                row["connected"],
                row["max_sessions"],
                row["full"],
            )
            for row in rows
        ),
    )
    lease_columns = ("lease", "lease ends in") if has_fleet else ()
    print_table(
        "where and how",
        ("name", "address", "media", "Opus", "complexity", "event loop", *lease_columns),
        (
            (
                row["name"],
                row["address"],
                row.get("media"),
                row.get("opus"),
                row.get("opus_complexity"),
                row.get("event_loop"),
                *(_lease_cells(row["lease"]) if has_fleet else ()),
            )
            for row in rows
        ),
    )
    _print_counts(rows)


def _limits(rows: Sequence[Row]) -> str:
    """The CPU limit is one for all; memory may be shared among more processes than before."""
    limits = {row["max_cpu"] for row in rows if "max_cpu" in row}
    return "".join(f"; new sessions up to {100 * limit:g} % of a core" for limit in limits)


def _print_counts(rows: Sequence[Row]) -> None:
    names = [row["name"] for row in rows]
    columns = [
        Counter({(field, what): count for field, _ in _COUNTS for what, count in row.get(field, {}).items()})
        for row in rows
    ]
    if len(rows) > _MAX_COUNT_COLUMNS:
        names, columns = [f"all {len(rows)}"], [sum(columns, Counter[tuple[str, str]]())]
    keys = {key for counts in columns for key, count in counts.items() if count}
    print_table(
        "counts, each since its process began",
        ("of", "what", *names),
        (
            (words, what, *(counts[field, what] for counts in columns))
            for field, words in _COUNTS
            for _, what in sorted(key for key in keys if key[0] == field)
        ),
    )


def _lease_cells(lease: Row | None) -> tuple[str | None, ...]:
    """What the other hosts read of it in Redis."""
    if lease is None:
        return "none", None
    return f"{lease['state']}, told {human_duration(lease['age_s'])} ago", human_duration(lease["expires_s"])


def _bytes(count: float | None) -> str | None:
    return None if count is None else human_bytes(int(count))
