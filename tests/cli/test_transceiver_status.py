"""What ``relayctl transceivers`` and ``sessions`` show of real processes and calls, and ``kick``."""

import os
import re
import signal
from collections.abc import Iterator

import pytest

from cli.main import EXIT_CALL_FAILED, EXIT_FAILED
from tests.cli.relayctl import Relayctl
from tests.cli.transceiver_host import Row, TransceiverHost
from tests.host.deadline import wait_until

pytestmark = pytest.mark.slow

FIRST, SECOND = "transceiver-0", "transceiver-1"
# Of a terminal that an operator may be expected to have.
COLUMNS = 120


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransceiverHost]:
    """Two transceivers for many tests."""
    relayctl = Relayctl(tmp_path_factory.mktemp("lasting") / "state")
    try:
        relayctl.start("--transceivers", "2")
        yield TransceiverHost(relayctl)
    finally:
        relayctl.clean_up()


@pytest.fixture
def host(lasting: TransceiverHost) -> TransceiverHost:
    """Both without sessions."""
    ids = [session["session"] for session in lasting.ask("sessions")]
    lasting.ask("kick", sessions=ids)
    return lasting


def statuses(host: TransceiverHost, *names: str) -> list[Row]:
    listed: list[Row] = host.relayctl.json("transceivers", "status", *names)
    return listed


def ids_of(host: TransceiverHost, *names: str) -> list[str]:
    return [session["session"] for session in host.relayctl.json("transceivers", "sessions", *names)]


def output_of(host: TransceiverHost) -> str:
    return (host.relayctl.state_dir.parent / f"{host.relayctl.state_dir.name}.out").read_text()


def width_of(text: str) -> int:
    return max(map(len, text.splitlines()))


# status


def test_status_tells_what_a_process_has_and_takes(host: TransceiverHost) -> None:
    host.occupy(SECOND)
    first, second = statuses(host)
    assert [row["name"] for row in (first, second)] == [FIRST, SECOND]
    assert (first["sessions"], second["sessions"], second["connected"]) == (0, 1, 0)
    assert {row["full"] for row in (first, second)} == {None}
    for row in (first, second):
        assert row["pid"] == host.row(row["name"])["pid"]
        assert row["uptime_s"] > 0
        assert 0 < row["rss_bytes"] < row["max_memory_bytes"]
        assert row["cpu"] >= 0
        assert (row["max_cpu"], row["max_sessions"], row["media"]) == (0.9, 200, "direct")
        assert row["opus"].startswith("libopus ")
        assert re.fullmatch(r"asyncio|uvloop [\d.]+", row["event_loop"])
        assert row["lease"] is None, "there is no Redis"
    assert first["max_memory_bytes"] == second["max_memory_bytes"]
    [alone] = statuses(host, SECOND)
    assert alone["pid"] == second["pid"]
    text = host.relayctl.run("transceivers", "status").stdout
    for words in ("2 transceivers; new sessions up to 90 % of a core", first["address"], "libopus", "direct"):
        assert words in text
    assert "lease" not in text
    assert width_of(text) <= COLUMNS


def test_memory_is_shared_among_as_many_as_there_are(host: TransceiverHost) -> None:
    [before, *_] = statuses(host)
    try:
        assert host.relayctl.run("transceivers", "scale", "4").returncode == 0
        after = statuses(host)
        assert {row["max_memory_bytes"] for row in after} == {before["max_memory_bytes"] // 2}
        text = host.relayctl.run("transceivers", "status").stdout
        assert "transceiver-3" in text
    finally:
        host.relayctl.run("transceivers", "scale", "2", "--drain", "0")
    wait_until(
        lambda: {row["max_memory_bytes"] for row in statuses(host)} == {before["max_memory_bytes"]},
        "two share it again",
    )


def test_hung_process_is_shown_without_what_it_would_tell(host: TransceiverHost) -> None:
    pid = host.row(SECOND)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        host.await_state(SECOND, "hung")
        first, second = statuses(host)
        assert ("cpu" in first, "cpu" in second, second["pid"]) == (True, False, pid)
        done = host.relayctl.run("transceivers", "status")
        assert (done.returncode, "hung" in done.stdout) == (0, True)
        kicked = host.relayctl.run("transceivers", "kick", "0")
        assert kicked.returncode == EXIT_FAILED
        assert (
            f"no session '0' here; `relayctl sessions` lists those that there are; those of {SECOND} are out of reach"
            in kicked.stderr
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    host.await_state(SECOND, "ready")


@pytest.mark.parametrize("command", ["status", "sessions"])
def test_unknown_name_is_explained(host: TransceiverHost, command: str) -> None:
    done = host.relayctl.run("transceivers", command, "nobody")
    assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
    assert f"no transceiver 'nobody' here; there are {FIRST}, {SECOND}" in done.stderr


@pytest.mark.parametrize(
    "command", [("transceivers", "status"), ("transceivers", "sessions"), ("sessions",)], ids=" ".join
)
def test_watch_looks_again_and_again_until_ctrl_c(host: TransceiverHost, command: tuple[str, ...]) -> None:
    host.occupy(FIRST)
    watching = host.relayctl.spawn(*command, "--watch", "--interval", "0.1")
    wait_until(lambda: output_of(host).count(FIRST) >= 6, "three looks")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 0


# sessions


def test_sessions_of_some_transceivers(host: TransceiverHost) -> None:
    host.occupy(FIRST)
    for _ in range(2):
        host.occupy(SECOND)
    assert [len(ids_of(host, *names)) for names in ((FIRST,), (SECOND,), (), (FIRST, SECOND))] == [1, 2, 3, 3]
    assert set(ids_of(host)) == {session["session"] for session in host.relayctl.json("sessions")}
    text = host.relayctl.run("transceivers", "sessions", SECOND).stdout
    assert (text.count(SECOND), text.count(FIRST)) == (2, 0)


def test_statistics_of_a_call(host: TransceiverHost) -> None:
    """A real caller, whose clock and reports give the round trip and what it lost."""
    calling = host.relayctl.spawn("probe", host.relayctl.url, "--duration", "60", "--json")

    def session() -> Row:
        listed: list[Row] = host.ask("sessions")
        return listed[0] if listed else {"round_trip_ms": None}

    wait_until(lambda: session()["round_trip_ms"] is not None, "the first report")
    wait_until(lambda: session()["up"]["bitrate_bps"] and session()["down"]["bitrate_bps"], "bitrates")
    seen = session()
    assert seen["state"] == "connected"
    assert 0 < seen["round_trip_ms"] < 30_000
    assert seen["up"].keys() - seen["down"].keys() == {
        "concealed",
        "filled",
        "late",
        "excess",
        "duplicates",
        "reordered",
    }
    assert list(seen["phases_s"]) == ["answered", "latched", "connected", "first_audio"]
    assert sorted(seen["phases_s"].values()) == list(seen["phases_s"].values())
    for direction in (seen["up"], seen["down"]):
        assert direction["packets"] > 10
        assert direction["jitter_ms"] >= 0
        assert 0 <= direction["loss"] <= 1
    text = host.relayctl.run("sessions").stdout
    assert text.startswith("1 session; loss, jitter and bitrate: up/down\n")
    columns = r"session +transceiver +state +age +client +rtt ms +loss % +jitter ms +kbit/s +setup ms"
    assert re.search(columns, text)
    row = rf"{seen['session'][:8]} +\S+ +connected .* [\d.]+ +[\d.]+/[\d.]+ +[\d.]+/[\d.]+ +[\d.]+/[\d.]+ +\d+\n"
    assert re.search(row, text)
    assert width_of(text) <= COLUMNS

    in_full = host.relayctl.run("sessions", seen["session"][:6]).stdout
    for words in (
        seen["session"],
        seen["client"],
        seen["server_ufrag"],
        "first audio",
        "up, from the client",
    ):
        assert words in in_full
    assert width_of(in_full) <= COLUMNS
    assert host.relayctl.json("sessions", seen["session"])["client"] == seen["client"]

    kicked = host.relayctl.run("transceivers", "kick", seen["session"][:6], "--reason", "sends\nnoise")
    assert (kicked.returncode, kicked.stderr) == (0, "")
    assert kicked.stdout == f"{seen['session']} of {seen['transceiver']} kicked\n"
    assert calling.wait(30) == EXIT_CALL_FAILED, "its call was closed by the other side"
    assert '"state": "closed"' in output_of(host)
    [process] = statuses(host, seen["transceiver"])
    assert process["ended"]["kicked"] >= 1
    assert f"session {seen['session']} ended: kicked ('sends\\nnoise')" in host.relayctl.log()


def test_session_without_statistics_is_shown_all_the_same(relayctl: Relayctl) -> None:
    """aiortc's own receiver and sender tell nothing, and there is no client yet."""
    config = relayctl.state_dir.parent / "c.toml"
    config.write_text("[transceiver]\nmedia = 'aiortc'\n")
    relayctl.start("--config", str(config))
    host = TransceiverHost(relayctl)
    host.occupy(FIRST)
    [session] = ids_of(host)
    text = relayctl.run("sessions").stdout
    assert re.search(rf"{session[:8]} +{FIRST} +\w+ +\S+ +-  +-  +-  +-  +-  +-\n", text), text
    assert "audio is not counted" in relayctl.run("sessions", session).stdout
    [status] = statuses(host)
    assert (status["media"], status["opus"]) == ("aiortc", None)


def test_no_sessions(host: TransceiverHost) -> None:
    assert host.relayctl.run("sessions").stdout == "0 sessions\n  none\n\n"
    assert host.relayctl.json("sessions") == []
    done = host.relayctl.run("sessions", "1e73")
    assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
    assert "no session '1e73' here" in done.stderr


# kick


def test_kick_ends_several_of_several_processes(host: TransceiverHost) -> None:
    for name in (FIRST, SECOND, SECOND):
        host.occupy(name)
    first, second, third = ids_of(host)
    before = {row["name"]: row["ended"].get("kicked", 0) for row in statuses(host)}
    done = host.relayctl.run("transceivers", "kick", first, second)
    assert done.stdout == f"{first} of {FIRST} kicked\n{second} of {SECOND} kicked\n"
    assert ids_of(host) == [third]
    after = {row["name"]: row["ended"]["kicked"] for row in statuses(host)}
    assert after == {name: count + 1 for name, count in before.items()}
    again = host.relayctl.run("transceivers", "kick", third, first)
    assert (again.returncode, again.stdout) == (EXIT_FAILED, "")
    assert ids_of(host) == [third], "where one is not found, none is ended"


def test_ambiguous_prefix_is_refused_with_the_matches(host: TransceiverHost) -> None:
    for _ in range(17):  # of 16 first letters
        host.occupy(FIRST)
    ids = ids_of(host)
    letters = [session[0] for session in ids]
    letter = next(letter for letter in letters if letters.count(letter) > 1)
    for command in (("transceivers", "kick"), ("sessions",)):
        done = host.relayctl.run(*command, letter)
        assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
        for session in [session for session in sorted(ids) if session[0] == letter][:8]:
            assert session in done.stderr
    assert ids_of(host) == ids


def test_kick_needs_a_session(host: TransceiverHost) -> None:
    done = host.relayctl.run("transceivers", "kick")
    assert (done.returncode, "Missing argument 'SESSION...'" in done.stderr) == (2, True)


def test_sessions_left_behind_are_said_to_be_out_of_reach(relayctl: Relayctl) -> None:
    relayctl.start()
    host = TransceiverHost(relayctl)
    host.occupy(FIRST)
    [session] = ids_of(host)
    pid = host.row(FIRST)["pid"]
    os.kill(relayctl.pid(), signal.SIGKILL)
    wait_until(lambda: "the supervisor is gone" in relayctl.log(), "it has noticed")
    relayctl.start()
    done = relayctl.run("transceivers", "kick", session)
    assert done.returncode == EXIT_FAILED
    assert f"those of {FIRST} (pid {pid}) of an earlier start are out of reach" in done.stderr
