"""Calls of the client's host, of stock aiortc: by ``relayctl probe``, or for as long as a test takes."""

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.measured import note_measured
from tests.vm.losses import LossWatch
from tests.vm.site import Site, TransceiverNode, wait_for
from tests.vm.ssh import Host, RemoteError

# Of the echo when a call is hung up: a host that is short of CPU time decodes late.
_SILENT_S = 5.0
_END_S = 60.0


class LineProcess:
    """A command on a host that prints lines of JSON until its standard input ends."""

    def __init__(self, host: Host, command: list[str], order: dict[str, Any], errors: Path) -> None:
        self._name = f"{host.target}: {Path(command[-1]).name}"
        self._errors = errors
        self._process: subprocess.Popen[str] = host.start(*command, errors=errors)
        self._lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those up to now."""
        return list(self._lines)

    def latest(self) -> dict[str, Any] | None:
        """The last line up to now. Raises RemoteError if the command has ended by itself."""
        lines = self.lines
        if self._process.poll() is not None and not (lines and lines[-1].get("over")):
            raise RemoteError(
                f"{self._name} ended by itself, exit code {self._process.returncode}: {self._said()}"
            )
        return lines[-1] if lines else None

    def end(self) -> dict[str, Any] | None:
        """End its input, and wait for its end; its last line, if it is that of an orderly end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        last = self._lines[-1] if self._lines else {}
        return last if last.get("over") else None

    def must_end(self) -> dict[str, Any]:
        """The same; raises RemoteError if its end was another."""
        last = self.end()
        if last is None:
            raise RemoteError(f"{self._name} did not come to an orderly end: {self._said()}")
        return last

    def _said(self) -> str:
        return self._errors.read_text(errors="replace").strip()[-2000:] or "it says nothing"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                self._lines.append(json.loads(line))


class Call:
    """A call that is up. ``to`` is the host of its transceiver; ``flow`` what the relay says of it."""

    def __init__(self, site: Site, to: TransceiverNode, process: LineProcess, losses: LossWatch) -> None:
        self.site = site
        self.to = to
        self._process = process
        self._losses = losses
        self.wait_for_packets(25)

    @property
    def received(self) -> int:
        """Packets of the echo up to now, as of a second ago at most."""
        return int((self._process.latest() or {}).get("downlink", {}).get("received", 0))

    def wait_for_packets(self, count: int, timeout_s: float | None = None) -> None:
        """Until so many more have come back."""
        least = self.received + count
        timeout_s = self.site.inventory.command_s if timeout_s is None else timeout_s
        wait_for(lambda: self.received >= least, timeout_s, f"{count} more packets of the echo")

    def latest(self) -> dict[str, Any]:
        """What it counted up to now."""
        return self._process.latest() or {}

    def flow(self) -> dict[str, Any]:
        """The relay's flow of this call, when it is the only one to that host."""
        addresses = self.site.client.addresses()

        def found() -> dict[str, Any] | None:
            flows = [
                flow
                for flow in self.site.relay.flows_of(addresses)
                if self.site.transceiver_of(flow["transceiver"]) is self.to
            ]
            return flows[0] if len(flows) == 1 else None

        return wait_for(found, self.site.inventory.command_s, f"one flow to {self.to.name}")

    def hang_up(self) -> dict[str, Any]:
        """End it in order; what it counted."""
        return self._process.must_end()

    def hang_up_without_loss(self, what: str) -> dict[str, Any]:
        """The same, of a call that was to lose nothing; ``what`` is the name of the line in the report."""
        report = self.hang_up()
        self._wait_for_end_of_session()
        note_measured(f"{what}: {told(report)}")
        if report["packets_lost"]:
            self.note_losses(what)
        check(report, self.site.inventory.max_loss)
        return report

    def note_losses(self, what: str) -> None:
        """What the hosts on its way have counted as lost since it began, for the report."""
        for line in self._losses.told():
            note_measured(f"{what}, counted as lost by {line}")

    def _wait_for_end_of_session(self) -> None:
        wait_for(lambda: not self.to.sessions(), self.site.inventory.command_s, "end of the session")


def told(report: dict[str, Any]) -> str:
    """One line."""
    up, down, trip = report["uplink"], report["downlink"], report["round_trip_ms"]
    words = [
        f"{up.get('sent')} sent, {up.get('lost')} lost",
        f"{down.get('received')} back, {down.get('lost')} lost",
    ]
    words.append(f"round trip {trip['p50']} ms, p99 {trip['p99']} ms")
    if "longest_gap_s" in report:
        words.append(f"longest gap {report['longest_gap_s']:g} s")
    words.append(f"up in {report['phases_ms'].get('audio', 0) / 1000:.1f} s")
    return "; ".join(words)


def check(report: dict[str, Any], max_loss: float) -> None:
    """A call that held: the tone came back to its end, and no more than so many percent of its packets are lost."""
    assert report["state"] == "connected", f"the call ended by itself: {report['state']}"
    assert report["heard"], "the echo carried no tone"
    assert report["silent_s"] < _SILENT_S, f"silent for the last {report['silent_s']} s"
    packets = report["uplink"]["sent"] + report["downlink"]["received"]
    loss = 100 * report["packets_lost"] / packets
    assert loss <= max_loss, f"{report['packets_lost']} of {packets} packets lost: {told(report)}"


@contextlib.contextmanager
def line_process(host: Host, command: list[str], order: dict[str, Any]) -> Iterator[LineProcess]:
    """Ended with the block."""
    with tempfile.TemporaryDirectory() as directory:
        process = LineProcess(host, command, order, Path(directory) / "errors")
        try:
            yield process
        finally:
            process.end()


@contextlib.contextmanager
def calling(site: Site, to: TransceiverNode | None = None, *, message_bytes: int = 0) -> Iterator[Call]:
    """A call, to the first transceivers' host unless said otherwise, until ``hang_up`` or the end of the block.

    message_bytes: with messages of that length on a data channel of their own.
    """
    to = site.transceivers[0] if to is None else to
    order = {"url": to.entry.url, "token": to.token(), "setup_s": site.inventory.command_s}
    order |= {"message_bytes": message_bytes}
    losses = LossWatch([node.host for node in (site.client, site.relay, to)])
    with line_process(site.client.host, site.client.script("caller"), order) as process:
        wait_for(process.latest, 2 * site.inventory.command_s, f"a call to {to.name}")
        yield Call(site, to, process, losses)


def probe(site: Site, to: TransceiverNode, duration_s: float) -> dict[str, Any]:
    """``relayctl probe``, as an operator calls it; its report."""
    # Not as an argument, which every user of the host could read.
    with_token = 'read -r RELAYCTL_BEARER_TOKEN; export RELAYCTL_BEARER_TOKEN; exec relayctl probe "$@"'
    command = ["sh", "-c", with_token, "probe", to.entry.url, "--duration", f"{duration_s:g}", "--json"]
    command += ["--max-loss", f"{site.inventory.max_loss:g}"]
    timeout_s = duration_s + 2 * site.inventory.command_s
    done = site.client.host.try_run(*command, timeout_s=timeout_s, given=to.token() + "\n")
    assert done.returncode == 0, f"relayctl probe {to.entry.url} exited with {done.returncode}: {done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report
