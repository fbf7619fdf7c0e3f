"""Looking again and again: the options of commands that watch, and their loop."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click


def interval_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --interval."""
    return click.option(
        "--interval",
        "interval_s",
        type=click.FloatRange(0.1, 3600),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help="Between two looks; rates are of this time.",
    )(command)


def watch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --interval and --count."""

    @interval_option
    @click.option("--count", type=click.IntRange(1), metavar="N", help="End after N looks; else Ctrl-C ends.")
    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return with_options


def turns(interval_s: float, count: int | None) -> Iterator[None]:
    """One turn at each interval; a terminal is cleared before each, and Ctrl-C ends without a word."""
    turn = 0
    try:
        while count is None or turn < count:
            time.sleep(interval_s)
            if sys.stdout.isatty():
                click.clear()
            yield
            turn += 1
    except KeyboardInterrupt:
        click.echo()


def watch_flag(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --watch and --interval, for ``looks``."""
    flag = click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
    return flag(interval_option(command))


def looks(interval_s: float, watch: bool) -> Iterator[None]:
    """One look now, and if watching one more at each interval."""
    if watch and sys.stdout.isatty():
        click.clear()
    yield
    if watch:
        yield from turns(interval_s, None)
