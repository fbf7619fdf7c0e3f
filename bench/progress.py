"""What a run is doing, on standard error; standard output is for results."""

from collections.abc import Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console


class Progress:
    """One line that moves in a terminal, and nothing but the starts of measurements elsewhere."""

    def __init__(self, name: str, progress: rich.progress.Progress, console: Console) -> None:
        self._name, self._progress, self._console = name, progress, console
        self._task = progress.add_task(name, total=None)

    def expect(self, turns: int) -> None:
        """So many turns are to come."""
        self._progress.update(self._task, total=turns, completed=0)

    def say(self, what: str) -> None:
        """What happens now."""
        self._progress.update(self._task, description=f"{self._name}: {what}")

    def advance(self, what: str) -> None:
        """A turn begins."""
        self._progress.update(self._task, advance=1, description=f"{self._name}: {what}")


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """For the life of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"bench {name} …", highlight=False)
    columns = (
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as made:
        yield Progress(name, made, console)
