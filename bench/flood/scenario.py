"""Calls beside floods, through a relay in userspace mode: what each flood costs the calls, the relay and whoever begins a call.

One worker has a core to itself; all else, the generator first of all, is on another one. The generator's frames are live
(``bench/live_frames.py``), so what the relay's host does with a packet up to its socket is done on the generator's core.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.errors import BenchError
from bench.flood.attacks import Attack
from bench.flood.generator import Flood, Report
from bench.flood.rows import FloodRow, Loss
from bench.flood.running_calls import CallsReport
from bench.flood.site import FloodedRelay, FloodSite, flood_site
from bench.progress import Progress
from bench.topology import Host
from relay.core.policy import RelayPolicy

# More than any core makes.
FULL_SPEED = 100_000_000
# The generator compiles its program first; in the end what is on its way has to come.
_LEAD_S, _SETTLE_S, _SAMPLE_S = 1.0, 1.5, 0.25
_NEWCOMER_INTERVAL_S = 0.5


@dataclass
class _Watched:
    """The relay before a flood, in it and after it."""

    relay: FloodedRelay
    worker: psutil.Process = field(init=False)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    provisional_flows: int = 0

    def __post_init__(self) -> None:
        self.worker = self.relay.worker()
        self.began = time.monotonic()
        self._counters, self._drops = self.relay.counters(), self.relay.socket_drops()
        self.rss_before = self.worker.memory_info().rss

    def sample(self) -> None:
        """What it does now."""
        self.provisional_flows = max(self.provisional_flows, self.relay.provisional_flows())
        # /proc/PID/stat may stand still
        cpu_s = int(Path(f"/proc/{self.worker.pid}/schedstat").read_text().split()[0]) / 1e9
        self.cpu.append((time.monotonic(), cpu_s))

    def cpu_percent(self, begin: float, end: float) -> float:
        """Of a core, within that time."""
        within = [sample for sample in self.cpu if begin <= sample[0] <= end]
        if len(within) < 2:
            return 0.0
        (first, cpu_first), (last, cpu_last) = within[0], within[-1]
        return 100 * (cpu_last - cpu_first) / (last - first)

    def rose(self) -> dict[str, int]:
        """Counters, and by how much."""
        now = self.relay.counters()
        return {
            name: count - self._counters[name] for name, count in now.items() if count > self._counters[name]
        }

    def dropped(self) -> dict[str, int]:
        """By sockets that were full."""
        return {side: count - self._drops[side] for side, count in self.relay.socket_drops().items()}


def measure_floods(
    attacks: Sequence[Attack], *, seconds: float, rate: int, progress: Progress
) -> list[FloodRow]:
    """One flood after the other against one relay. ``rate``: packets/s. Raises BenchError."""
    progress.expect(len(attacks))
    rows = []
    with flood_site() as site:
        for attack in attacks:
            progress.advance(f"{attack.name}: {attack.what}")
            flood = site.flood(attack, rate=rate, seconds=seconds)
            rows.append(_measure(site, attack, flood))
    return rows


def _measure(site: FloodSite, attack: Attack, flood: Flood) -> FloodRow:
    watched, requests = _Watched(site.relay), site.attacked.requests
    with _generator(site.hosts.client, flood) as generator:
        time.sleep(_LEAD_S)
        with site.newcomers(int(flood.seconds / _NEWCOMER_INTERVAL_S), _NEWCOMER_INTERVAL_S) as newcomers:
            while generator.poll() is None:
                watched.sample()
                time.sleep(_SAMPLE_S)
            waited_s = newcomers.waited_s()
        said, _ = generator.communicate()
    if generator.returncode:
        raise BenchError(f"{attack.name}: the generator ended with {generator.returncode}")
    sent = Report(**json.loads(said))
    time.sleep(_SETTLE_S)
    ended = sent.started_s + sent.seconds
    rose = watched.rose()
    calls = site.calls.report([(sent.started_s, ended), (watched.began, time.monotonic())])
    seconds = sent.seconds or flood.seconds
    return FloodRow(
        name=attack.name,
        what=attack.what,
        seconds=round(seconds, 2),
        offered_per_s=round(sent.offered / seconds),
        read_per_s=round(_read(rose, calls) / seconds),
        socket_drops=watched.dropped(),
        forwarded_per_s=round((site.attacked.requests - requests) / seconds),
        loss=_loss(calls),
        provisional_flows=watched.provisional_flows,
        provisional_cap=RelayPolicy(cluster_id=0, vips=(), transceiver_networks=()).max_provisional_flows,
        rss_before=watched.rss_before,
        rss_after=watched.worker.memory_info().rss,
        cpu_percent=round(watched.cpu_percent(sent.started_s, ended), 1),
        rose={name: count for name, count in rose.items() if not name.startswith("forward_")},
        is_named=bool(attack.named_by & set(rose)),
        newcomers_s=waited_s,
        own_drops=calls.own_drops + calls.send_errors,
    )


@contextmanager
def _generator(host: Host, flood: Flood) -> Iterator[subprocess.Popen[str]]:
    with host:
        process = subprocess.Popen(
            flood.command(), cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _read(rose: dict[str, int], calls: CallsReport) -> int:
    """What the worker took from its sockets but for the calls' packets: the flood's, and a few of newcomers."""
    ours = calls.spans[1].checks
    taken = sum(count for name, count in rose.items() if name.startswith("drop_") or name == "forward_stun")
    return max(0, taken - (ours.sent - ours.lost))


def _loss(calls: CallsReport) -> Loss:
    flood = calls.spans[0]
    return Loss(
        up_percent=round(flood.up.percent, 4),
        down_percent=round(flood.down.percent, 4),
        answered_percent=round(100 - flood.answers.percent, 2),
        sent=flood.up.sent + flood.down.sent,
        lost=flood.up.lost + flood.down.lost,
    )
