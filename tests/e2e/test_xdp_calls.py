"""Real calls through XDP and the reuseport program, over a veth pair between two hosts."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cli.call import EchoCall
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.syscall import open_program
from tests.e2e.conftest import Network
from tests.e2e.instance import RELAYCTL, Instance, bound_ports, pids_here, print_report, wait_until
from tests.e2e.xdp import SIGNALING, VIP, attached, need_network, xdp_relay
from wire.ufrag import ufrag_tag

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

NO_CAPABILITY = "0000000000000000"


def process_status(task: Path) -> dict[str, str]:
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def json_of(instance: Instance, *arguments: str) -> list[dict[str, object]]:
    shown = instance.run(*arguments, "--json")
    assert shown.returncode == 0, shown.stderr
    return list(json.loads(shown.stdout))


async def test_call_is_carried_and_nothing_is_left_after_stop(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2") as instance:
        pins = PinDir(instance.state_dir.path)
        (attachment,) = attached(network)
        assert attachment.mode == "native"
        async with EchoCall(instance.url, bearer_token=instance.token) as call:
            await asyncio.sleep(2)
            (session,) = instance.sessions()
            (flow,) = json_of(instance, "maps", "show", "flows", "--client", str(session["client"]))
            assert (flow["client"], flow["listen"]) == (session["client"], VIP)
            assert flow["ufrag_tag"] == ufrag_tag(str(session["server_ufrag"]))
            # the slot that the table leads to is the worker that carries it
            (carried,) = instance.ask("flows", client=session["client"])
            assert flow["slot"] == carried["worker"]
            report = await call.report()
            assert report.heard
            assert report.packets_lost == 0
        relay = instance.status()["relay"]
        assert relay["dataplane"] == "xdp"
        # every packet of the client's came through XDP
        assert relay["xdp_verdicts"]["hand_up"] >= relay["verdicts"]["forward_flow"] > 100
        assert relay["events"]["flow_refused"] == 0
        pids = instance.pids()
        ports = bound_ports(pids)
        stopped = await asyncio.to_thread(instance.run, "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert [pid for pid in pids if psutil.pid_exists(pid) and pid != instance.process.pid] == []
        assert attached(network) == []
        assert not pins.exists
        with pytest.raises(FileNotFoundError):
            os.close(open_program(attachment.program_id))
        with network.there:
            assert bound_ports(pids_here()) & ports == set()


async def test_workers_hold_no_capability_and_run_as_the_user_that_is_named(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    config = tmp_path / "relayctl.toml"
    config.write_text('[host]\nuser = "nobody"\n')
    with xdp_relay(network, tmp_path / "s", "--config", str(config)) as instance:
        async with EchoCall(instance.url, bearer_token=instance.token) as call:
            await asyncio.sleep(1)
            assert (await call.report()).packets_lost == 0
        tasks = [task for pid in instance.pids()[1:] for task in Path(f"/proc/{pid}/task").iterdir()]  # noqa: ASYNC240
        assert len(tasks) >= 4
        for task in tasks:
            status = process_status(task)
            assert {status[field] for field in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {
                NO_CAPABILITY
            }
            assert status["NoNewPrivs"] == "1"
            assert set(status["Uid"].split()) == {"65534"}
            assert status["Groups"] == ""


async def test_killed_supervisor_leaves_a_data_path_that_the_next_takes_over(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(xdp_relay(network, tmp_path / "s", "--workers", "2"))
        async with contextlib.AsyncExitStack() as calls_stack:
            calls = [
                await calls_stack.enter_async_context(EchoCall(first.url, bearer_token=first.token))
                for _ in range(4)
            ]
            await asyncio.sleep(1)
            old_pids = first.pids()[1:]
            (before,) = attached(network)
            first.kill_supervisor()
            await asyncio.sleep(2)
            # Without a supervisor: workers go on, and the maps tell of them.
            said = first.run("status")
            assert said.returncode == 3
            assert "worker-0 (pid" in said.stderr
            assert "go on" in said.stderr
            assert {row["state"] for row in json_of(first, "workers")} == {"left behind"}
            assert len(json_of(first, "maps", "show", "flows")) >= 4
            with network.there:
                status = first.run("bpf", "status")
            assert "the supervisor is dead" in status.stdout
            assert "native" in status.stdout
            assert first.run("drops").returncode == 0

            second = await asyncio.to_thread(
                stack.enter_context, xdp_relay(network, tmp_path / "s", "--workers", "2")
            )
            assert second.status()["relay"]["kernel"]["adopted"]
            assert attached(network) == [before]
            assert len(json_of(second, "maps", "show", "flows")) >= 4
            await asyncio.sleep(2)
            reports = [await call.report() for call in calls]
            assert all(report.heard for report in reports)
            lost = sum(report.packets_lost for report in reports)
            answered = [len(report.round_trips_ms) for report in reports]
            await asyncio.sleep(0.5)
            after = [len((await call.report()).round_trips_ms) for call in calls]
            assert all(more > before for more, before in zip(after, answered, strict=True))
            assert lost == 0
            print_report("supervisor killed -9 and started anew, 4 calls (XDP)", {"lost": lost})
        # The old transceiver ends with its last call.
        wait_until(
            lambda: not any(psutil.pid_exists(pid) for pid in old_pids), 10, "end of the old processes"
        )


def test_stop_ends_what_a_dead_supervisor_left(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2") as instance:
        pids = instance.pids()[1:]
        instance.kill_supervisor()
        refused = instance.run("bpf", "unload")
        assert refused.returncode == 1
        assert "--force" in refused.stderr
        with network.there:
            stopped = instance.run("stop")
        assert stopped.returncode == 0
        assert "worker-0" in stopped.stdout
        assert "XDP on eth0" in stopped.stdout
        # what has ended is still there until process 1 has reaped it
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 20, "end of the processes")
        assert attached(network) == []
        assert not PinDir(instance.state_dir.path).exists
        assert instance.run("stop").returncode == 3


async def test_stop_says_goodbye_for_the_calls_of_an_earlier_start(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(xdp_relay(network, tmp_path / "s", "--workers", "1"))
        async with EchoCall(first.url, bearer_token=first.token) as call:
            first.kill_supervisor()
            second = await asyncio.to_thread(
                stack.enter_context, xdp_relay(network, tmp_path / "s", "--workers", "1")
            )
            assert {entry["name"].split("-")[0] for entry in second.status()["left_behind"]} == {
                "transceiver"
            }
            stopped = await asyncio.to_thread(second.run, "stop", "--drain", "1")
            assert stopped.returncode == 0, stopped.stderr
            for _ in range(20):
                if call.peer.connectionState == "closed":
                    break
                await asyncio.sleep(0.1)
            assert call.peer.connectionState == "closed"


async def test_stop_in_another_network_namespace_is_refused(
    own_network: Network | None, tmp_path: Path
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "1") as instance:
        instance.kill_supervisor()
        for command in (("stop",), ("bpf", "unload", "--force")):
            refused = instance.run(*command)  # from the client's host
            assert refused.returncode == 1
            assert "another network namespace" in refused.stderr
        assert "another network namespace" in instance.run("bpf", "status").stdout
        assert len(attached(network)) == 1
        assert len(json_of(instance, "workers", "--interval", "0.1")) == 1
        with network.there:
            assert instance.run("stop").returncode == 0
        assert attached(network) == []


def test_few_capabilities_are_enough_to_start_and_to_stop(
    own_network: Network | None, tmp_path: Path
) -> None:
    """Root in a container: no CAP_SYS_ADMIN, no CAP_SYS_PTRACE."""
    network = need_network(own_network)
    kept = "{p.Cap.BPF, p.Cap.PERFMON, p.Cap.NET_ADMIN, p.Cap.KILL, p.Cap.DAC_OVERRIDE}"
    drop = f"import os, sys, pyprctl as p; [p.capbset_drop(c) for c in p.capbset_probe() - {kept}]"
    command = [sys.executable, "-c", f"{drop}; os.execv(sys.argv[1], sys.argv[1:])", str(RELAYCTL), "start"]
    command += ["--daemon", "--state-dir", str(tmp_path / "s"), "--listen", VIP, "--interface", "eth0"]
    command += ["--http", SIGNALING, "--insecure", "--dataplane", "xdp", "--workers", "1"]
    with network.there:
        started = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert started.returncode == 0, started.stderr
        stop = [str(RELAYCTL), "stop", "--state-dir", str(tmp_path / "s")]
        stopped = subprocess.run(stop, capture_output=True, text=True, timeout=60, check=False)
    assert stopped.returncode == 0, stopped.stderr
    assert attached(network) == []
    assert not PinDir(tmp_path / "s").exists
    assert "Traceback" not in (tmp_path / "s" / "relayctl.log").read_text()


@pytest.mark.parametrize(
    "after", ["worker-0 ready", "adopted the data path", "native XDP on eth0", "took over"]
)
def test_take_over_that_is_told_to_end_leaves_nothing_or_all(
    own_network: Network | None, tmp_path: Path, after: str
) -> None:
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s", "--workers", "2", "--transceivers", "1") as first:
        first.kill_supervisor()
        command = [str(RELAYCTL), "start", "--state-dir", str(tmp_path / "s"), "--listen", VIP]
        command += ["--interface", "eth0", "--http", SIGNALING, "--insecure", "--workers", "2"]
        with network.there:
            second = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert second.stderr is not None
        while after not in second.stderr.readline():
            assert second.poll() is None
        second.terminate()
        second.communicate(timeout=30)
        has_pins = PinDir(tmp_path / "s").exists
        assert bool(attached(network)) == has_pins
        serving = json_of(first, "workers", "--interval", "0.1") if has_pins else []
        if has_pins:
            assert {row["state"] for row in serving} == {"left behind"}
            assert len(serving) == 2
        else:
            wait_until(lambda: first.run("stop").returncode == 3, 10, "end of what was left behind")


def test_addresses_of_every_kind_are_shown_whole(own_network: Network | None, tmp_path: Path) -> None:
    network = need_network(own_network)
    network.there.add_address("eth0", "fd00::1", 64)
    arguments = ("--listen", "[2001:db8::10]:3478", "--listen", "[fd00::1]:3478", "--workers", "1")
    with xdp_relay(network, tmp_path / "s", *arguments) as instance:
        for name in ("listeners", "sockets"):
            shown = instance.run("maps", "show", name).stdout
            for address in (VIP, "[2001:db8::10]:3478", "[fd00::1]:3478"):
                assert address in shown
