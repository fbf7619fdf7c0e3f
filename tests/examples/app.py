"""An example as a user would start it, beside a relay that runs alone."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.instance import Instance, free_port, running, udp_socket_inodes, wait_until

_EXAMPLES = Path(__file__).parents[2] / "examples"
# Importing them takes seconds, more beside other tests.
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class App:
    """An example that serves. ``vip`` is what its answers should name."""

    url: str
    vip: str
    relay: Instance
    process: subprocess.Popen[bytes]

    def udp_addresses(self) -> list[str]:
        """Where its UDP sockets are bound; one that is not bound counts, too."""
        pid = self.process.pid
        bound = [
            f"{connection.laddr.ip}:{connection.laddr.port}"
            for connection in psutil.Process(pid).net_connections("udp")
        ]
        assert len(bound) == len(udp_socket_inodes(pid))
        return bound

    def terminate(self) -> None:
        """As Ctrl-C, systemd or Kubernetes end it."""
        self.process.terminate()

    def wait(self) -> int:
        """Its exit status; killed if it does not end."""
        try:
            return self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def serving(python: Path, script: str, directory: Path) -> Iterator[App]:
    """A relay without transceivers and the example behind it; both ended, and neither left a traceback."""
    vip, http = f"127.0.0.1:{free_port()}", free_port(socket.SOCK_STREAM)
    config, log = directory / "relayctl.toml", directory / f"{script}.log"
    config.write_text(f'[relay]\nlisten = ["{vip}"]\n')
    start = ("--config", str(config), "--role", "relay")
    with running(directory / "state", *start) as relay, log.open("wb") as output:
        environment = {
            **os.environ,
            "RELAYCTL_CONFIG": str(config),
            "RELAYCTL_STATE_DIR": str(relay.state_dir.path),
        }
        command = [str(python), str(_EXAMPLES / script), "--port", str(http)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        app = App(f"http://127.0.0.1:{http}", vip, relay, process)

        def serves() -> bool:
            assert process.poll() is None, f"{script} ended:\n{log.read_text()}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", http)) == 0

        try:
            wait_until(serves, _START_TIMEOUT_S, script)
            yield app
        finally:
            app.terminate()
            status = app.wait()
    # uvicorn ends itself by the signal once it has cleaned up
    assert status in (0, -signal.SIGTERM), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
