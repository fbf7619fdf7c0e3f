"""How long a call takes from the POST to its first echoed packet, by length of the media path.

Clients are stock: aiortc and Chromium, through the real relay in userspace mode. A path in user space between them and the
relay delays every datagram; signaling is not delayed. When the first echoed RTP packet reaches the client is seen there.
"""

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Page

from bench.chromium import chromium
from bench.errors import BenchError
from bench.path import Direction, Impairment, Kind, ThreadedPath, path_in_thread
from bench.peers.process import running
from bench.peers.relayctl import RELAYCTL
from bench.progress import Progress
from bench.transceiver.results import PhasesRow
from bench.transceiver.variants import free_port
from cli.call import EchoCall
from host.errors import OperatorError
from wire.address import Address

PHASES = ("answered", "ice", "dtls", "audio")
ROUND_TRIPS_MS = (0, 50, 100, 200)
CLIENTS = ("aiortc", "Chromium")
_TIMEOUT_S = 15.0
_CONFIG = """
[transceiver]
processes = 1
requests_per_s = 1000000.0
request_burst = 100000
"""
# Phases in ms; performance.timeOrigin is wall-clock time.
_CALL = """async () => {
    const wall = () => performance.timeOrigin + performance.now();
    const pc = window.benchPc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    pc.addTrack(stream.getAudioTracks()[0], stream);
    await pc.setLocalDescription(await pc.createOffer());
    const posted = wall(), phases = {};
    const note = (phase) => { phases[phase] ??= wall() - posted; };
    pc.addEventListener("iceconnectionstatechange", () => {
        if (["connected", "completed"].includes(pc.iceConnectionState)) note("ice");
    });
    const connected = new Promise((resolve, reject) => {
        pc.addEventListener("connectionstatechange", () => {
            if (pc.connectionState === "connected") { note("dtls"); resolve(); }
            if (pc.connectionState === "failed") reject(new Error("connection failed"));
        });
    });
    const headers = {"Content-Type": "application/sdp"};
    const response = await fetch("/whip", {method: "POST", headers, body: pc.localDescription.sdp});
    if (response.status !== 201) throw new Error(`${response.status} ${await response.text()}`);
    const answer = await response.text();
    note("answered");
    window.benchLocation = response.headers.get("Location");
    await pc.setRemoteDescription({type: "answer", sdp: answer});
    await Promise.race([connected, new Promise((_, reject) => setTimeout(reject, 10000, new Error("no DTLS")))]);
    return {posted, phases};
}"""
_HANG_UP = """async () => {
    benchPc.getSenders().forEach((sender) => sender.track?.stop());
    benchPc.close();
    await fetch(benchLocation, {method: "DELETE"});
}"""


@dataclass(frozen=True)
class _Site:
    """``vip`` is what clients are told, ``listen`` where the relay is."""

    url: str
    vip: Address
    listen: Address


def measure_phases(
    clients: Sequence[str], round_trips_ms: Sequence[float], *, calls: int, shown: Progress
) -> list[PhasesRow]:
    """Calls of each kind one after the other, at each length of the path; a first one of each kind is not counted."""
    rows: list[PhasesRow] = []
    with _site() as site:
        for client in clients:
            try:
                with _CALLERS[client](site) as call:
                    _one(site, call, 0.0)
                    for round_trip_ms in round_trips_ms:
                        shown.advance(f"setup of {client}, round trip {round_trip_ms:g} ms")
                        row = PhasesRow(client=client, round_trip_ms=round_trip_ms)
                        rows.append(row)
                        for _ in range(calls):
                            for phase, value in _one(site, call, round_trip_ms / 1000).items():
                                row.phases_ms.setdefault(phase, []).append(round(value, 2))
            except (BenchError, OperatorError, Error, OSError) as error:
                why_not = str(error).splitlines()[0]
                rows.append(PhasesRow(client=client, round_trip_ms=0.0, why_not=why_not))
    return rows


_Call = Callable[[ThreadedPath], dict[str, float]]


def _one(site: _Site, call: _Call, round_trip_s: float) -> dict[str, float]:
    """One call on a path of its own. Raises BenchError."""
    way = Impairment(delay_s=round_trip_s / 2)
    with path_in_thread(site.vip, site.listen, up=way, down=way) as path:
        return call(path)


@contextlib.contextmanager
def _aiortc(site: _Site) -> Iterator[_Call]:
    async def call(path: ThreadedPath) -> dict[str, float]:
        async with EchoCall(site.url, setup_timeout_s=_TIMEOUT_S) as made:
            phases = dict((await made.report()).phases_ms)
            phases["audio"] = 1000 * (_first_echo_s(path) - made.posted_at)
            return {phase: phases[phase] for phase in PHASES}

    yield lambda path: asyncio.run(call(path))


@contextlib.contextmanager
def _chromium(site: _Site) -> Iterator[_Call]:
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as context:
        page = context.pages[0]
        page.goto(site.url)
        yield lambda path: _call_of_page(page, path)


def _call_of_page(page: Page, path: ThreadedPath) -> dict[str, float]:
    made: dict[str, Any] = page.evaluate(_CALL)
    try:
        ahead = time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()
        audio = 1000 * (_first_echo_s(path) + ahead) - made["posted"]
        return {**made["phases"], "audio": audio}
    finally:
        page.evaluate(_HANG_UP)


def _first_echo_s(path: ThreadedPath) -> float:
    deadline = time.monotonic() + _TIMEOUT_S
    while (at := path.first_left_s(Direction.DOWN, Kind.RTP)) is None:
        if time.monotonic() > deadline:
            raise BenchError("no packet of the echo came")
        time.sleep(0.02)
    return at


_CALLERS: dict[str, Callable[[_Site], contextlib.AbstractContextManager[_Call]]] = {
    "aiortc": _aiortc,
    "Chromium": _chromium,
}


@contextlib.contextmanager
def _site() -> Iterator[_Site]:
    """Relay and one transceiver as an operator starts them, echoing as they do by themselves."""
    vip, listen = (Address.from_host("127.0.0.1", free_port(socket.SOCK_DGRAM)) for _ in range(2))
    http = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    with tempfile.TemporaryDirectory(prefix="relaybench-") as directory:
        config, state_dir = Path(directory, "relayctl.toml"), Path(directory, "state")
        config.write_text(_CONFIG)
        state_dir.mkdir()
        command = [str(RELAYCTL), "start", "--state-dir", str(state_dir), "--config", str(config)]
        command += ["--workers", "1", "--dataplane", "userspace", "--http", http]
        command += ["--listen", str(listen), "--vip", str(vip)]
        log = Path(directory, "log")
        with running(contextlib.nullcontext(), command, log, lambda said: "Ctrl-C stops" in said):
            yield _Site(f"http://{http}/", vip, listen)
