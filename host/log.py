"""How every process of ours logs: one line an event, to standard error."""

import logging
import os

from host.errors import ConfigError

LEVEL_VARIABLE = "RELAYCTL_LOG_LEVEL"


def configure_logging() -> None:
    """Set up logging; the level is inherited by environment. Raises ConfigError."""
    level = os.environ.get(LEVEL_VARIABLE, "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(LEVEL_VARIABLE, f"{level!r} is no level; use DEBUG, INFO, WARNING or ERROR")
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s",
    )
    # Both tell at INFO of every transport that they make or end.
    for library in ("aioice", "aiortc"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Writes a line for each packet that cannot be decoded: the client, not the operator, decides how many.
    logging.getLogger("aiortc.rtcrtpreceiver").setLevel(logging.ERROR)
