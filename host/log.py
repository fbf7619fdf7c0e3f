"""How every process of ours logs: one line an event, to standard error."""

import logging
import os

LEVEL_VARIABLE = "RELAYCTL_LOG_LEVEL"


def configure_logging() -> None:
    """Set up logging; the level is inherited from the supervisor by environment."""
    logging.basicConfig(
        level=os.environ.get(LEVEL_VARIABLE, "INFO"),
        format="%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s",
    )
    # Both tell at INFO of every transport that they make or end.
    for library in ("aioice", "aiortc"):
        logging.getLogger(library).setLevel(logging.WARNING)
