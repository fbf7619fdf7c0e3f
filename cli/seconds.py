"""How long calls may go on: the bounds that every option for it has."""

import click

_MAX_DRAIN_S = 7 * 86400.0


def check_seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """The callback of such an option. Raises BadParameter."""
    if value is not None and not 0 <= value <= _MAX_DRAIN_S:  # not a number is in no range
        raise click.BadParameter(f"needs seconds from 0 to {_MAX_DRAIN_S:g}")
    return value
