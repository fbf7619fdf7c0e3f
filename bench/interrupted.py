"""SIGTERM as Ctrl-C."""

import os
import signal


def end_as_interrupted() -> None:
    """SIGTERM as Ctrl-C: namespaces and processes are removed. pyroute2 forks, and ends its children by SIGTERM."""
    pid = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != pid:
            os._exit(128 + number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
