"""One look at a relay, through its supervisor or, where that is dead or busy, through the pinned maps."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import psutil

from cli.admin import ask
from host.errors import NotRunningError, OperatorError
from host.state_dir import StateDir
from relay.core.verdict import Verdict
from relay.dataplane.bpf.describe import MapReader
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import RelayPrograms


@dataclass(frozen=True)
class RelayView:
    """Counts since the start. ``workers`` have slot, pid, core, state, packets, flows and assured_flows."""

    workers: list[dict[str, Any]]
    xdp_verdicts: dict[str, int]
    worker_verdicts: dict[str, int]
    is_supervised: bool


def open_pins(state_dir: StateDir) -> RelayPrograms:
    """The maps of a relay, live or left behind. Raises NotRunningError with what else there is to look at."""
    pins = PinDir(state_dir.path)
    if pins.exists:
        return pins.open()
    status = ask(state_dir, "status")
    relay = status.get("relay")
    if relay is None:
        raise NotRunningError("no relay runs here, only transceivers; BPF maps are a relay's")
    if relay["dataplane"] == "xdp":
        raise OperatorError(
            f"{pins.path} is not to be seen from here: the relay was started in another mount namespace (`ip netns exec` "
            f"makes one); look with `nsenter --mount --target {status['pid']} relayctl …`"
        )
    raise NotRunningError(
        f"the relay runs on the userspace data path ({relay['reason']}), which has no BPF maps; "
        "`relayctl flows`, `workers` and `drops` show what it knows"
    )


def look(state_dir: StateDir) -> RelayView:
    """Raises NotRunningError."""
    if state_dir.is_running():
        relay = ask(state_dir, "status").get("relay")
        if relay is None:
            raise NotRunningError("no relay runs here, only transceivers")
        xdp = relay["xdp_verdicts"]
        by_workers = {label: count - xdp.get(label, 0) for label, count in relay["verdicts"].items()}
        return RelayView(relay["workers"], xdp, by_workers, is_supervised=True)
    if not PinDir(state_dir.path).exists:
        ask(state_dir, "status")  # says what there is
    programs = open_pins(state_dir)
    try:
        return _look_at_maps(MapReader(programs))
    finally:
        programs.close()


def _look_at_maps(reader: MapReader) -> RelayView:
    cells: dict[int, Counter[str]] = {}
    for row in reader.rows("counters"):
        cells.setdefault(row["slot"], Counter())[row["counter"]] = row["count"]
    labels = [verdict.label for verdict in Verdict]
    by_workers: Counter[str] = Counter()
    for counts in cells.values():
        by_workers.update({label: counts[label] for label in labels})
    workers = []
    for worker in reader.rows("workers"):
        counts = cells.get(worker["slot"], Counter())
        if not psutil.pid_exists(worker["pid"]):
            continue
        workers.append(
            {
                **worker,
                "state": "left behind",
                "packets": sum(counts[label] for label in labels),
                "flows": counts["flows"],
                "assured_flows": counts["assured_flows"],
            }
        )
    xdp = {row["verdict"]: row["packets"] for row in reader.rows("verdicts")}
    return RelayView(workers, xdp, {label: by_workers[label] for label in labels}, is_supervised=False)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, exact to the scheduler's clock; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/schedstat") as schedstat:
            return int(schedstat.read().split()[0]) / 1e9
    except (OSError, ValueError):
        return 0.0
