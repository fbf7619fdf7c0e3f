"""One host's transceivers in tests: offers without a call behind them, and what is told of each process."""

import time
from contextlib import closing
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cli.admin import ask
from host.keystore import load_keys
from host.state_dir import StateDir
from tests.cli.relayctl import Relayctl
from tests.host.deadline import wait_until
from tests.transceiver.offers import VOICE
from transceiver.signaling.resources import INTERNAL_HEADER

SDP = {"Content-Type": "application/sdp"}
Row = dict[str, Any]


class TransceiverHost:
    """A relayctl, asked by its admin socket and by HTTP."""

    def __init__(self, relayctl: Relayctl) -> None:
        self.relayctl = relayctl
        self._state_dir = StateDir(relayctl.state_dir)

    def ask(self, method: str, **params: Any) -> Any:
        """What the supervisor answers."""
        return ask(self._state_dir, method, timeout_s=40, **params)

    def row(self, name: str) -> Row:
        """What is told of one process."""
        return next(row for row in self.rows() if row["name"] == name)

    def rows(self) -> list[Row]:
        """What is told of all of them."""
        listed: list[Row] = self.ask("transceivers")
        return listed

    def states(self) -> dict[str, str]:
        """State by name."""
        return {row["name"]: row["state"] for row in self.rows()}

    def await_state(self, name: str, state: str) -> None:
        """Wait until a process is in that state."""
        wait_until(lambda: self.states().get(name) == state, f"{name} is {state}")

    def offer(self) -> tuple[int, str, float]:
        """POST by the public listener: (status, Location, seconds)."""
        return _post(f"{self.relayctl.url}whip", SDP)

    def occupy(self, name: str) -> str:
        """A session on one process, which lasts 30 s without a client; its Location."""
        lease = next(t for t in self.ask("fleet")["transceivers"] if t["name"] == name)
        keys = load_keys(self._state_dir.keys_file)
        headers = {INTERNAL_HEADER: keys.sealing.internal_http}
        status, location, _ = _post(f"http://{lease['internal_http']}/whip", SDP | headers)
        assert status == 201
        return location

    def hang_up(self, location: str) -> int:
        """DELETE by the public listener; its status."""
        request = Request(f"{self.relayctl.url}{location.lstrip('/')}", method="DELETE")
        try:
            with urlopen(request, timeout=10) as response:
                return int(response.status)
        except HTTPError as error:
            with closing(error):
                return error.code

    def health(self) -> int:
        """The status of /healthz."""
        try:
            with urlopen(f"{self.relayctl.url}healthz", timeout=5) as response:
                return int(response.status)
        except HTTPError as error:
            with closing(error):
                return error.code


def _post(url: str, headers: dict[str, str]) -> tuple[int, str, float]:
    began = time.monotonic()
    try:
        with urlopen(Request(url, VOICE.encode(), headers), timeout=10) as response:
            return response.status, response.headers["Location"], time.monotonic() - began
    except HTTPError as error:
        with closing(error):
            status, retry_after = error.code, error.headers["Retry-After"]
    assert (status == 503) == (retry_after == "5"), "who is refused is told when to try again"
    return status, "", time.monotonic() - began
