"""Order within every flow, and nothing doubled, through userspace workers that are killed meanwhile.

A worker may batch, gather and split packets as it likes: at each end a flow's packets come in the order in which they were
sent, each once and as it was. What a killed worker had taken from its sockets is gone with it; all else is in the sockets,
which the next one inherits.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.flood.calls import CallsJob
from bench.flood.running_calls import CallsReport, RunningCalls, running_calls
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, running, wait_until
from tests.e2e.three_hosts import IPV4, Site, introduce, two_armed
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.alone, pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

FLOWS, SECONDS, WORKERS = 300, 60.0, 2
KILLED_AFTER_S = (8.0, 20.0, 32.0, 44.0)
# An Opus mix; no two packets of a flow in succession have one size.
SIZES = (40, 80, 110, 160, 60, 95, 128, 240)
# What a worker had taken when it was killed had been sent shortly before.
DEATH_S = 0.5
SETTLE_S = 1.5
_CONFIG = """
[fleet]
keys_file = "keys.json"
[relay]
transceiver_networks = ["10.0.1.0/24"]
# all flows come from one address
unknown_per_s = 1000000
unknown_burst = 1000000
"""


@contextlib.contextmanager
def carried(site: Site, directory: Path) -> Iterator[tuple[Instance, RunningCalls]]:
    """A relay without XDP, and calls through it to four sockets of transceivers."""
    config = directory / "relay.toml"
    config.write_text(_CONFIG)
    command = ["--role", "relay", "--config", str(config), "--dataplane", "userspace"]
    command += ["--listen", IPV4.vip, "--fleet-listen", IPV4.fleet_listen, "--workers", str(WORKERS)]
    job = CallsJob(
        client_namespace=site.client.name,
        transceiver_namespace=site.transceiver.name,
        vip=IPV4.vip,
        client_ips=(IPV4.client_ip,),
        transceivers=tuple(f"{IPV4.transceiver_ip}:{port}" for port in range(5000, 5004)),
        keys_file=str(directory / "keys.json"),
        flows=FLOWS,
        packets_per_s=17,
        sizes=SIZES,
        check_interval_s=1.0,
        dtls_every=25,
        burst_every=40,
    )
    with contextlib.ExitStack() as stack:
        with site.relay:
            relay = stack.enter_context(running(directory / "relay", *command))
        introduce(site.client, site.relay, IPV4.vip.partition(":")[0])
        introduce(site.relay, site.transceiver, IPV4.transceiver_ip)
        yield relay, stack.enter_context(running_calls(job))


def kill_worker(relay: Instance, slot: int) -> tuple[float, float]:
    """Kill one, and wait for its successor: when it was killed, and when the next one served."""
    worker = relay.status()["relay"]["workers"][slot]
    killed_at = time.monotonic()
    os.kill(worker["pid"], signal.SIGKILL)

    def is_back() -> bool:
        now = relay.status()["relay"]["workers"][slot]
        return bool(now["restarts"] > worker["restarts"] and now["state"] == "ready")

    wait_until(is_back, 10, "the worker's return")
    return killed_at, time.monotonic()


def lost_in(report: CallsReport, span: int) -> dict[str, int]:
    """By kind, of what was sent then."""
    return {kind: count.lost for kind, count in vars(report.spans[span]).items()}


def test_order_is_kept_and_nothing_doubled_while_workers_die(
    own_network: Network | None, tmp_path: Path
) -> None:
    need_network(own_network)
    with two_armed() as site, carried(site, tmp_path) as (relay, calls):
        began, served_again_after_ms = time.monotonic(), []
        deaths: list[tuple[float, float]] = []
        for number, after_s in enumerate(KILLED_AFTER_S):
            time.sleep(max(0.0, began + after_s - time.monotonic()))
            killed_at, served_at = kill_worker(relay, number % WORKERS)
            deaths.append((killed_at - DEATH_S, killed_at))
            served_again_after_ms.append(round((served_at - killed_at) * 1000))
        time.sleep(max(0.0, began + SECONDS - time.monotonic()))
        ended = time.monotonic()
        time.sleep(SETTLE_S)
        report = calls.report([(began, ended), *deaths])
        relay_said = relay.status()["relay"]
    whole, at_deaths = lost_in(report, 0), [lost_in(report, 1 + i) for i in range(len(deaths))]
    sent = {kind: count.sent for kind, count in vars(report.spans[0]).items()}
    elsewhere = {kind: whole[kind] - sum(death[kind] for death in at_deaths) for kind in whole}
    print_report(
        f"order, {FLOWS} flows for {SECONDS:g} s, {len(deaths)} workers killed -9 (userspace)",
        {
            "sent": sent,
            "late": report.late,
            "doubled": report.doubled,
            "damaged": report.damaged,
            "lost at each death": [sum(death.values()) for death in at_deaths],
            "lost elsewhere": elsewhere,
            "served again after_ms": served_again_after_ms,
            "generator behind_ms": round(report.behind_s * 1000),
            "drops": {
                name: n for name, n in relay_said["verdicts"].items() if name.startswith("drop_") and n
            },
        },
    )
    # the calls themselves kept up
    assert (report.own_drops, report.send_errors, report.stray) == (0, 0, 0)
    assert sent["up"] + sent["down"] >= 8_000 * SECONDS
    assert [worker["restarts"] for worker in relay_said["workers"]] == [2, 2]
    assert (report.late, report.doubled, report.damaged) == (0, 0, 0)
    assert elsewhere == dict.fromkeys(elsewhere, 0)
