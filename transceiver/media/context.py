"""What the parts of a session's media path share."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from transceiver.media.effort import Effort
from transceiver.media.settings import AudioSettings
from transceiver.media.ticker import Ticker


class PeerObserver(Protocol):
    """Counts what a session drops."""

    def count(self, outcome: str) -> None:
        """One more of that outcome."""
        ...


class MediaContext(NamedTuple):
    """``clock`` is monotonic seconds."""

    settings: AudioSettings
    effort: Effort
    clock: Callable[[], float]
    ticker: Ticker
    observer: PeerObserver
