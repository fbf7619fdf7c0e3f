"""Errors that an operator can act on: each message names what is wrong and the way out."""

from collections.abc import Collection


class OperatorError(Exception):
    """Base of what the command line prints without a traceback."""


class ConfigError(OperatorError):
    """A setting cannot be used; ``field`` is its full name, as ``relay.workers``."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class AddressInUseError(OperatorError):
    """Other processes, ``pids`` where we may know them, hold an address that we were told to bind."""

    def __init__(self, message: str, pids: Collection[int] = ()) -> None:
        super().__init__(message)
        self.pids = frozenset(pids)


class AlreadyRunningError(OperatorError):
    """The state directory belongs to a live supervisor."""


class NotRunningError(OperatorError):
    """No live supervisor owns the state directory."""


class StartError(OperatorError):
    """A process of ours did not come up."""
