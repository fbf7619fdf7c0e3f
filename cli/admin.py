"""The command line's end of the admin socket."""

import socket
from typing import Any

from host.errors import NotRunningError
from host.line_socket import LineSocket
from host.state_dir import StateDir

_TIMEOUT_S = 10.0


def ask(state_dir: StateDir, method: str, **params: Any) -> Any:
    """The result of a method of the running supervisor. Raises NotRunningError or ChannelError."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(state_dir.admin_socket))
        except PermissionError:
            raise NotRunningError(
                f"{state_dir.admin_socket} belongs to another user; run as that user"
            ) from None
        except OSError:
            raise NotRunningError(
                f"nothing runs in {state_dir.path}; `relayctl start` starts it, --state-dir names another place"
            ) from None
        return LineSocket(sock).request(method, **params)
