"""The command line's end of the admin socket."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from host.errors import NotRunningError
from host.line_socket import LineSocket
from host.registry import ProcessRegistry
from host.state_dir import StateDir

_TIMEOUT_S = 10.0


def ask(state_dir: StateDir, method: str, *, timeout_s: float = _TIMEOUT_S, **params: Any) -> Any:
    """The result of a method of the running supervisor. Raises NotRunningError or ChannelError."""
    with connected(state_dir, timeout_s) as sock:
        return LineSocket(sock).request(method, **params)


@contextlib.contextmanager
def connected(state_dir: StateDir, timeout_s: float = _TIMEOUT_S) -> Iterator[socket.socket]:
    """A connection to the admin socket of the running supervisor. Raises NotRunningError."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(state_dir.admin_socket))
        except PermissionError:
            raise NotRunningError(
                f"{state_dir.admin_socket} belongs to another user; run as that user"
            ) from None
        except OSError:
            if left_behind := describe_left_behind(state_dir):
                raise NotRunningError(
                    f"the supervisor of {state_dir.path} is dead, but {left_behind} go on; `relayctl start` takes over, "
                    "`relayctl stop` ends them; `maps`, `workers` and `drops` show them"
                ) from None
            # Imported late: a command that is answered has no use for it.
            from cli.left_behind import find_data_path

            if pins := find_data_path(state_dir):
                raise NotRunningError(
                    f"every process of {state_dir.path} is dead, but XDP goes on with established calls (pins in {pins}); "
                    "`relayctl start` takes over, `relayctl stop` ends them; `maps` and `drops` show them"
                ) from None
            raise NotRunningError(
                f"nothing runs in {state_dir.path}; `relayctl start` starts it, --state-dir names another place"
            ) from None
        yield sock


def describe_left_behind(state_dir: StateDir) -> str:
    """Processes that a dead supervisor left running, in words; empty if there are none."""
    entries = ProcessRegistry(state_dir.processes_file).left_behind
    return ", ".join(f"{entry.name} (pid {entry.pid})" for entry in entries)
