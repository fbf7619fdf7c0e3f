"""Waiting for calls to end, with what is left shown: a bar on a terminal, else a line for each change."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn

from cli.render import count_of, human_duration
from host.errors import OperatorError

_POLL_S = 0.25
_SAY_AGAIN_S = 10.0

Rows = list[dict[str, Any]]


class Ended(Enum):
    """What is waited for."""

    DRAINED = "drained"
    STOPPED = "stopped"
    REMOVED = "removed"


class _Left:
    """What is left of some transceivers' calls."""

    def __init__(self, rows: Rows, names: Sequence[str], until: Ended) -> None:
        self.rows = [row for row in rows if row["name"] in names]
        self.sessions = sum(row["sessions"] for row in self.rows)
        deadlines = [row["deadline_s"] for row in self.rows if row["deadline_s"] is not None]
        self.seconds = max(deadlines, default=None)
        self.serving = [row["name"] for row in self.rows if row["wanted"] == "serving"]
        self.is_over = all(_has_come_to(row, until) for row in self.rows)

    def __str__(self) -> str:
        ends = "" if self.seconds is None else f", ended in {human_duration(self.seconds)}"
        return f"{count_of(self.sessions, 'session')} left{ends}"


def _has_come_to(row: dict[str, Any], until: Ended) -> bool:
    if until is Ended.REMOVED:  # then it is not in the list
        return False
    if until is Ended.DRAINED:
        return row["wanted"] != "serving" and not row["sessions"]
    return bool(row["state"] == "stopped")


def follow(look: Callable[[], Rows], first: Rows, names: Sequence[str], until: Ended) -> None:
    """Return when all of ``names`` have come to that. Raises OperatorError if one takes calls again meanwhile."""
    left = _Left(first, names, until)
    shown = _Bar(left.sessions) if sys.stdout.isatty() else _Lines()
    try:
        with shown:
            while not left.is_over:
                if left.serving:
                    raise OperatorError(f"{', '.join(left.serving)} was told to take calls again")
                shown.show(left)
                time.sleep(_POLL_S)
                left = _Left(look(), names, until)
    except KeyboardInterrupt:
        going_on = "draining" if until is Ended.DRAINED else f"on the way to be {until.value}"
        click.echo(
            f"\nstill {going_on}: {left}; `relayctl transceivers list` shows it, `relayctl transceivers start` ends it",
            err=True,
        )
        raise
    for name in dict.fromkeys(names):
        state = next((row["state"] for row in left.rows if row["name"] == name), until.value)
        click.echo(f"{name} {state}")


class _Lines(AbstractContextManager["_Lines"]):
    def __init__(self) -> None:
        self._said, self._said_at = -1, 0.0

    def show(self, left: _Left) -> None:
        now = time.monotonic()
        if left.sessions and (left.sessions != self._said or now - self._said_at >= _SAY_AGAIN_S):
            click.echo(left)
            self._said, self._said_at = left.sessions, now

    def __exit__(self, *exc_info: object) -> None:
        return


class _Bar(AbstractContextManager["_Bar"]):
    def __init__(self, sessions: int) -> None:
        self._total = sessions
        self._progress = Progress(BarColumn(), TextColumn("{task.description}"), transient=True)
        self._task = self._progress.add_task("", total=sessions or None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def show(self, left: _Left) -> None:
        self._progress.update(self._task, description=str(left), completed=self._total - left.sessions)

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()
