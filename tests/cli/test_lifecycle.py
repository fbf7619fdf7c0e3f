"""Start, look, restart, stop: with real processes, and what happens when each of them goes wrong."""

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from cli.main import EXIT_FAILED, EXIT_NOT_RUNNING, EXIT_TAKEN, EXIT_USAGE
from host.channel import ChannelError
from host.line_socket import LineSocket
from tests.cli.relayctl import RELAYCTL, Relayctl, free_tcp, free_udp
from tests.host.deadline import wait_until
from tests.host.unprivileged import run_unprivileged

pytestmark = pytest.mark.slow

Another = Callable[[], Relayctl]


def took(kind: socket.SocketKind, address: str) -> "closing[socket.socket]":
    """Take an address ourselves."""
    host, port = address.rsplit(":", 1)
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind((host, int(port)))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return closing(sock)


def own_name() -> str:
    return f"pid {os.getpid()} ({psutil.Process().name()})"


def assert_nothing_left(relayctl: Relayctl) -> None:
    """No process, no socket, no pid file, and the addresses are free."""
    relayctl.await_end()
    assert not (relayctl.state_dir / "admin.sock").exists()
    assert not (relayctl.state_dir / "pid").exists()
    for kind, address in ((socket.SOCK_DGRAM, relayctl.listen), (socket.SOCK_STREAM, relayctl.http)):
        with took(kind, address):
            pass


# the life of one


def test_daemon_from_start_to_stop(relayctl: Relayctl) -> None:
    started = relayctl.run("start", "--daemon", *relayctl.ports(), "--workers", "2", "--transceivers", "1")
    assert (started.returncode, started.stderr) == (0, "")
    pid = relayctl.pid()
    assert started.stdout.startswith(f"started (pid {pid}), log in {relayctl.state_dir}/relayctl.log\n")
    assert relayctl.listen in started.stdout
    assert relayctl.url in started.stdout

    status = relayctl.status()
    assert (status["pid"], status["state"], status["state_dir"]) == (
        pid,
        "running",
        str(relayctl.state_dir),
    )
    assert status["relay"]["vips"] == [{"listen": relayctl.listen, "vip": relayctl.listen}]
    assert [w["state"] for w in status["relay"]["workers"]] == ["ready", "ready"]
    assert status["transceivers"]["http"] == relayctl.url
    assert status["transceivers"]["bearer_token_file"] is None
    assert [t["state"] for t in status["transceivers"]["processes"]] == ["ready"]
    pids = {p["pid"] for p in (*status["relay"]["workers"], *status["transceivers"]["processes"])}
    assert pids | {pid} == {process.pid for process in relayctl.processes()}

    text = relayctl.run("status").stdout
    for words in (
        f"running, pid {pid}",
        f"listen {relayctl.listen}",
        relayctl.url,
        "worker-1",
        "transceiver-0",
    ):
        assert words in text

    assert relayctl.json("flows") == []
    assert relayctl.json("sessions") == []
    assert "0 flows" in relayctl.run("flows").stdout
    assert "0 sessions" in relayctl.run("sessions").stdout

    stopped = relayctl.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped (pid {pid})\n")
    assert_nothing_left(relayctl)
    assert relayctl.run("status").returncode == EXIT_NOT_RUNNING


def test_state_is_private(relayctl: Relayctl) -> None:
    relayctl.start()
    assert stat.S_IMODE(relayctl.state_dir.stat().st_mode) == 0o700
    for name in ("admin.sock", "keys.json", "lock"):
        assert stat.S_IMODE((relayctl.state_dir / name).stat().st_mode) == 0o600


def test_environment_names_state_directory_and_configuration(relayctl: Relayctl, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[fleet]\ncluster_id = 70000")
    place = {"RELAYCTL_STATE_DIR": str(relayctl.state_dir)}
    done = relayctl.run("start", *relayctl.ports(), RELAYCTL_CONFIG=str(config))
    assert done.returncode == EXIT_USAGE
    assert "fleet.cluster_id" in done.stderr
    relayctl.start()
    from_environment = subprocess.run(
        [str(RELAYCTL), "status"],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"pid {relayctl.pid()}" in from_environment.stdout


def test_file_is_read_and_flags_override_it(relayctl: Relayctl, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f"[relay]\nlisten = ['{relayctl.listen}']\nworkers = 2\n"
        f"[transceiver]\nhttp = '203.0.113.10:80'\nprocesses = 1\n"
    )
    done = relayctl.run("start", "--daemon", "--config", str(config), "--http", relayctl.http)
    assert done.returncode == 0, done.stderr
    status = relayctl.status()
    assert status["relay"]["vips"][0]["listen"] == relayctl.listen
    assert len(status["relay"]["workers"]) == 2
    assert len(status["transceivers"]["processes"]) == 1
    assert status["transceivers"]["http"] == relayctl.url


def test_two_instances_live_side_by_side(another: Another) -> None:
    first, second = another(), another()
    first.start()
    second.start()
    assert first.status()["pid"] != second.status()["pid"]
    assert first.run("stop").returncode == 0
    assert second.status()["state"] == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_foreground_says_where_it_is_and_ends_by_signal(relayctl: Relayctl, number: signal.Signals) -> None:
    process = relayctl.start_foreground()
    said = (relayctl.state_dir.parent / f"{relayctl.state_dir.name}.out").read_text()
    for words in (relayctl.listen, relayctl.url, str(relayctl.state_dir), "workers: 1", "transceivers 1"):
        assert words in said
    assert relayctl.status()["pid"] == process.pid
    process.send_signal(number)
    assert process.wait(20) == 0
    assert_nothing_left(relayctl)
    said = (relayctl.state_dir.parent / f"{relayctl.state_dir.name}.out").read_text()
    assert "Traceback" not in said


def test_foreground_is_ended_by_stop(relayctl: Relayctl) -> None:
    process = relayctl.start_foreground()
    assert relayctl.run("stop").stdout == f"stopped (pid {process.pid})\n"
    assert process.wait(20) == 0
    assert_nothing_left(relayctl)


# restart


def test_restart_keeps_the_options(relayctl: Relayctl, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[fleet]\ncluster_id = 7\n[relay]\nworkers = 1\n")
    done = relayctl.run(
        "start", "--daemon", *relayctl.ports(), "--transceivers", "1", "--config", "c.toml", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    before, pids = relayctl.status(), {process.pid for process in relayctl.processes()}
    restarted = relayctl.run("restart", cwd=Path("/"))
    assert restarted.returncode == 0, restarted.stderr
    after = relayctl.status()
    assert restarted.stdout.startswith(
        f"started (pid {after['pid']}), log in {relayctl.state_dir}/relayctl.log\n"
    )
    assert after["relay"]["vips"] == before["relay"]["vips"]
    assert after["transceivers"]["http"] == before["transceivers"]["http"]
    for part, name in (("relay", "workers"), ("transceivers", "processes")):
        assert len(after[part][name]) == len(before[part][name]) == 1
    wait_until(
        lambda: not pids & {process.pid for process in relayctl.processes()}, "the old processes ended"
    )


def test_restart_keeps_the_role(relayctl: Relayctl) -> None:
    relayctl.start("--role", "relay")
    assert relayctl.run("restart").returncode == 0
    assert "transceivers" not in relayctl.status()


def test_restart_after_stop_starts_as_the_last_time(relayctl: Relayctl) -> None:
    relayctl.start()
    relayctl.run("stop")
    restarted = relayctl.run("restart")
    assert restarted.returncode == 0, restarted.stderr
    assert restarted.stdout.startswith("was not running\nstarted (pid ")
    assert relayctl.status()["relay"]["vips"][0]["listen"] == relayctl.listen


def test_restart_of_what_runs_in_the_foreground_keeps_its_options(relayctl: Relayctl) -> None:
    """Its help: "with the options of the last start"."""
    process = relayctl.start_foreground()
    restarted = relayctl.run("restart")
    assert restarted.returncode == 0, restarted.stderr
    process.wait(20)
    assert relayctl.status()["relay"]["vips"][0]["listen"] == relayctl.listen


def test_restart_does_not_take_options_of_an_older_start(relayctl: Relayctl) -> None:
    relayctl.start()
    relayctl.run("stop")
    relayctl.listen = free_udp()
    process = relayctl.start_foreground()
    relayctl.run("restart")
    process.wait(20)
    assert relayctl.status()["relay"]["vips"][0]["listen"] == relayctl.listen


def test_restart_does_not_take_options_of_a_start_that_failed(relayctl: Relayctl) -> None:
    relayctl.start()
    relayctl.run("stop")
    taken = free_udp()
    with took(socket.SOCK_DGRAM, taken):
        failed = relayctl.run("start", "--daemon", "--listen", taken, "--http", relayctl.http)
        assert failed.returncode == EXIT_TAKEN
    restarted = relayctl.run("restart")
    assert restarted.returncode == 0, restarted.stderr
    assert relayctl.status()["relay"]["vips"][0]["listen"] == relayctl.listen


def test_transceivers_may_serve_the_vip_of_another_host(relayctl: Relayctl) -> None:
    done = relayctl.run(
        *("start", "--daemon", "--role", "transceivers", "--vip", "203.0.113.10:3478"),
        *("--http", relayctl.http, "--transceivers", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert relayctl.run("restart").returncode == 0
    assert [p["state"] for p in relayctl.status()["transceivers"]["processes"]] == ["ready"]


def test_restart_where_nothing_was_started_is_exit_code_3(relayctl: Relayctl) -> None:
    done = relayctl.run("restart")
    assert done.returncode == EXIT_NOT_RUNNING
    assert done.stderr == (
        f"relayctl: nothing was ever started in {relayctl.state_dir}; use `relayctl start`\n"
    )


# nothing runs


@pytest.mark.parametrize("command", ["status", "flows", "sessions", "stop"])
def test_without_a_supervisor_is_exit_code_3_and_tells_the_way_out(relayctl: Relayctl, command: str) -> None:
    done = relayctl.run(command)
    assert done.returncode == EXIT_NOT_RUNNING
    assert done.stdout == ""
    assert f"nothing runs in {relayctl.state_dir}" in done.stderr
    assert "relayctl start" in done.stderr
    assert "--state-dir" in done.stderr
    assert not relayctl.state_dir.exists()


def test_stale_files_of_a_dead_supervisor_stop_nothing(relayctl: Relayctl) -> None:
    relayctl.state_dir.mkdir(mode=0o700)
    (relayctl.state_dir / "pid").write_text(f"{os.getpid()}\n")
    (relayctl.state_dir / "lock").touch(0o600)
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(relayctl.state_dir / "admin.sock"))
    assert relayctl.run("status").returncode == EXIT_NOT_RUNNING
    assert relayctl.start() != os.getpid()
    assert relayctl.status()["state"] == "running"


def test_killed_supervisor_takes_its_processes_along_and_leaves_room_for_the_next(relayctl: Relayctl) -> None:
    pid = relayctl.start()
    os.kill(pid, signal.SIGKILL)
    relayctl.await_end()
    assert (relayctl.state_dir / "pid").exists()
    assert relayctl.run("status").returncode == EXIT_NOT_RUNNING
    assert relayctl.start() != pid


# taken


@pytest.mark.parametrize("daemon", [("--daemon",), ()], ids=["daemon", "foreground"])
def test_second_start_is_exit_code_4_naming_the_pid(relayctl: Relayctl, daemon: tuple[str, ...]) -> None:
    pid = relayctl.start()
    again = relayctl.run("start", *daemon, "--listen", free_udp(), "--http", free_tcp())
    assert again.returncode == EXIT_TAKEN
    assert f"relayctl: already running with pid {pid} in {relayctl.state_dir}" in again.stderr
    assert "relayctl stop" in again.stderr
    assert again.stdout == ""
    assert relayctl.status()["pid"] == pid
    assert len(relayctl.processes()) == 3


@pytest.mark.parametrize("daemon", [("--daemon",), ()], ids=["daemon", "foreground"])
@pytest.mark.parametrize("reuseport", [False, True], ids=["alone", "reuseport"])
def test_taken_udp_port_is_exit_code_4_naming_port_and_process(
    relayctl: Relayctl, daemon: tuple[str, ...], reuseport: bool
) -> None:
    host, port = relayctl.listen.rsplit(":", 1)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuseport)
        holder.bind((host, int(port)))
        done = relayctl.run("start", *daemon, *relayctl.ports(), *relayctl.small())
    assert done.returncode == EXIT_TAKEN
    assert f"relayctl: relay.listen: {relayctl.listen} is taken by {own_name()}; " in done.stderr
    assert_nothing_left(relayctl)


def test_taken_http_port_is_exit_code_4_naming_port_and_process(relayctl: Relayctl) -> None:
    with took(socket.SOCK_STREAM, relayctl.http):
        done = relayctl.run("start", "--daemon", *relayctl.ports(), *relayctl.small())
    assert done.returncode == EXIT_TAKEN
    assert f"relayctl: transceiver.http: {relayctl.http} is taken by {own_name()}; " in done.stderr
    assert_nothing_left(relayctl)


def test_port_of_another_relayctl_is_exit_code_4(another: Another) -> None:
    first, second = another(), another()
    pid = first.start()
    second.listen = first.listen
    done = second.run("start", "--daemon", *second.ports(), *second.small())
    assert done.returncode == EXIT_TAKEN
    owners = {f"pid {process.pid} " for process in first.processes()}
    assert any(owner in done.stderr for owner in owners), done.stderr
    assert first.status()["pid"] == pid


def test_failed_start_can_be_tried_again(relayctl: Relayctl) -> None:
    with took(socket.SOCK_STREAM, relayctl.http):
        assert relayctl.run("start", "--daemon", *relayctl.ports()).returncode == EXIT_TAKEN
    relayctl.start()


# wrong configuration


@pytest.mark.parametrize("daemon", [("--daemon",), ()], ids=["daemon", "foreground"])
@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param("[relay]\nworkers = 'two'", "relay.workers", id="type"),
        pytest.param(
            "[relay]\nlisten = ['203.0.113.10:3478']", "relay.listen", id="address of another machine"
        ),
        pytest.param("[fleet]\nkeys_file = '/nonexistent/keys.json'", "/nonexistent/keys.json", id="keys"),
        pytest.param(
            "[transceiver]\nbearer_token_file = '/nonexistent/token'", "/nonexistent/token", id="token"
        ),
    ],
)
def test_bad_configuration_is_exit_code_2_naming_the_field(
    relayctl: Relayctl, tmp_path: Path, daemon: tuple[str, ...], text: str, field: str
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    ports = ("--http", relayctl.http) if "listen" in text else relayctl.ports()
    done = relayctl.run("start", *daemon, "--config", str(config), *ports)
    assert done.returncode == EXIT_USAGE
    assert re.search(rf"^relayctl: {re.escape(field)}: .+$", done.stderr, re.MULTILINE)
    assert_nothing_left(relayctl)


def test_broken_keys_are_exit_code_2_and_stay_secret(relayctl: Relayctl) -> None:
    relayctl.state_dir.mkdir(mode=0o700)
    keys = relayctl.state_dir / "keys.json"
    keys.write_text('{"sealing": 1, "keys": [{"id": 1, "secret": "c2hvcnQgc2VjcmV0"}]}')
    keys.chmod(0o600)
    done = relayctl.run("start", "--daemon", *relayctl.ports())
    assert done.returncode == EXIT_USAGE
    assert f"{keys}: keys[0]: " in done.stderr
    assert "c2hvcnQgc2VjcmV0" not in done.stderr + relayctl.log()


def test_empty_bearer_token_file_is_refused(relayctl: Relayctl, tmp_path: Path) -> None:
    """It would start signaling that asks for no token, where the configuration says that it does."""
    token = tmp_path / "token"
    token.touch(0o600)
    config = tmp_path / "c.toml"
    config.write_text(f"[transceiver]\nbearer_token_file = '{token}'")
    done = relayctl.run("start", "--daemon", *relayctl.ports(), *relayctl.small(), "--config", str(config))
    assert done.returncode == EXIT_USAGE
    assert str(token) in done.stderr


def test_relative_paths_mean_the_same_with_and_without_daemon(relayctl: Relayctl, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    config = tmp_path / "c.toml"
    config.write_text("[fleet]\nkeys_file = 'secrets/keys.json'")
    arguments = ("start", "--daemon", *relayctl.ports(), *relayctl.small(), "--config", "c.toml")
    done = relayctl.run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "secrets" / "keys.json").exists()


def test_unknown_log_level_is_told_without_a_traceback(relayctl: Relayctl) -> None:
    done = relayctl.run("start", "--daemon", *relayctl.ports(), *relayctl.small(), RELAYCTL_LOG_LEVEL="loud")
    assert "Traceback" not in relayctl.log()
    assert done.returncode == EXIT_USAGE
    assert "RELAYCTL_LOG_LEVEL" in done.stderr


def test_state_directory_of_another_user_is_told_without_a_traceback(foreign_dir: Path) -> None:
    done = run_unprivileged(
        "from cli.main import main\nmain()",
        *("start", "--daemon", "--state-dir", str(foreign_dir), "--listen", free_udp(), "--http", free_tcp()),
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == EXIT_FAILED
    assert str(foreign_dir) in done.stderr


@pytest.mark.parametrize("drain", ["nan", "inf", "soon"])
def test_drain_that_is_no_time_is_exit_code_2_and_stops_nothing(relayctl: Relayctl, drain: str) -> None:
    relayctl.start()
    done = relayctl.run("stop", "--drain", drain)
    assert done.returncode == EXIT_USAGE
    assert "--drain" in done.stderr
    assert relayctl.status()["state"] == "running"


# while it runs


def test_status_tells_of_a_worker_that_was_killed(relayctl: Relayctl) -> None:
    relayctl.start()
    old = relayctl.status()["relay"]["workers"][0]["pid"]
    os.kill(old, signal.SIGKILL)

    def is_back() -> bool:
        worker = relayctl.status()["relay"]["workers"][0]
        return bool(worker["restarts"] == 1 and worker["state"] == "ready")

    wait_until(is_back, "the worker is back")
    worker = relayctl.status()["relay"]["workers"][0]
    assert worker["pid"] != old
    assert worker["last_exit"] == "killed by SIGKILL"
    assert "killed by SIGKILL" in relayctl.run("status").stdout


@pytest.mark.parametrize(
    ("role", "part", "foreign"), [("relay", "relay", "sessions"), ("transceivers", "transceivers", "flows")]
)
def test_role_runs_its_part_only(relayctl: Relayctl, role: str, part: str, foreign: str) -> None:
    relayctl.start("--role", role)
    status = relayctl.status()
    assert {"relay", "transceivers"} & set(status) == {part}
    assert relayctl.run("status").returncode == 0
    done = relayctl.run(foreign)
    assert done.returncode == EXIT_FAILED
    assert f"no method {foreign!r}" in done.stderr


def test_role_of_the_configuration_holds_unless_a_flag_says_otherwise(
    relayctl: Relayctl, tmp_path: Path
) -> None:
    config = tmp_path / "relayctl.toml"
    config.write_text('[host]\nrole = "relay"\n')
    relayctl.start("--config", str(config))
    assert {"relay", "transceivers"} & set(relayctl.status()) == {"relay"}
    relayctl.run("stop")
    relayctl.start("--config", str(config), "--role", "transceivers")
    assert {"relay", "transceivers"} & set(relayctl.status()) == {"transceivers"}


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"limit": "many"}, id="limit is a string"),
        pytest.param({"limit": None}, id="limit is null"),
        pytest.param({"limits": 5}, id="unknown parameter"),
    ],
)
def test_wrong_admin_parameter_costs_no_worker(relayctl: Relayctl, params: dict[str, object]) -> None:
    relayctl.start()
    assert relayctl.run("probe", relayctl.url, "--duration", "0.5").returncode == 0
    # one of each address that this machine has
    assert relayctl.json("flows")
    pids = {process.pid for process in relayctl.processes()}
    with closing(socket.socket(socket.AF_UNIX)) as sock, suppress(ChannelError):
        sock.settimeout(10)
        sock.connect(str(relayctl.state_dir / "admin.sock"))
        LineSocket(sock).request("flows", **params)
    assert {process.pid for process in relayctl.processes()} == pids, relayctl.log()
    assert relayctl.status()["relay"]["workers"][0]["restarts"] == 0


def test_roles_apart_with_shared_keys_carry_a_call(another: Another, tmp_path: Path) -> None:
    relay, transceivers = another(), another()
    config = tmp_path / "fleet.toml"
    config.write_text(
        f"[fleet]\nkeys_file = '{tmp_path}/keys.json'\n"
        f"[relay]\nlisten = ['{relay.listen}']\n[transceiver]\nhttp = '{transceivers.http}'\n"
    )
    for relayctl, role in ((relay, "relay"), (transceivers, "transceivers")):
        done = relayctl.run("start", "--daemon", "--role", role, *relayctl.small(), "--config", str(config))
        assert done.returncode == 0, done.stderr
    report = transceivers.json("probe", transceivers.url, "--duration", "1")
    assert report["heard"]
    assert report["packets_lost"] == 0
    assert report["vips"] == [relay.listen]
    [flow] = [
        flow for flow in relay.json("flows") if flow["state"] == "released"
    ]  # assured, and the call has ended
    assert flow["transceiver"] == transceivers.status()["transceivers"]["processes"][0]["address"]
    assert not (relay.state_dir / "keys.json").exists()


def test_keys_that_are_not_shared_carry_no_call(another: Another) -> None:
    """What the operator sees who forgot to copy the keys: the relay counts it under a name that says so."""
    relay, transceivers = another(), another()
    transceivers.listen = relay.listen
    relay.start("--role", "relay")
    transceivers.start("--role", "transceivers")
    probing = transceivers.spawn("probe", transceivers.url, "--duration", "1")

    def refused() -> int:
        verdicts: dict[str, int] = relay.status()["relay"]["verdicts"]
        return sum(count for label, count in verdicts.items() if "ufrag" in label or "forged" in label)

    wait_until(refused, "the relay counts forged ufrags")
    probing.kill()
    assert relay.json("flows") == []
