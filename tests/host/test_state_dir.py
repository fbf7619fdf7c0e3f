"""The state directory: one live supervisor at a time, secrets for their owner only."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.errors import AlreadyRunningError, ConfigError, OperatorError
from host.state_dir import StateDir, default_state_dir, read_or_create_secret, read_or_create_token
from tests.host.unprivileged import run_unprivileged

Supervise = Callable[[Path], "subprocess.Popen[str]"]

_SUPERVISE = """
import sys
from pathlib import Path
from host.state_dir import StateDir
state_dir = StateDir(Path(sys.argv[1]))
state_dir.acquire()
print("acquired", flush=True)
sys.stdin.read()
"""
_TRY = """
import sys
from pathlib import Path
from host.errors import OperatorError
from host.state_dir import StateDir, read_or_create_token
try:
    {call}
except OperatorError as error:
    print(error)
"""


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Have another process hold the lock of a state directory."""
    children: list[subprocess.Popen[str]] = []

    def start(path: Path) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", _SUPERVISE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "acquired\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# the lock


def test_second_acquire_is_refused_naming_the_pid_and_the_way_out(
    tmp_path: Path, supervise: Supervise
) -> None:
    holder = supervise(tmp_path / "state")
    state_dir = StateDir(tmp_path / "state")
    assert state_dir.is_running()
    assert state_dir.pid() == holder.pid
    with pytest.raises(AlreadyRunningError, match=rf"pid {holder.pid} in {tmp_path}/state.*relayctl stop"):
        state_dir.acquire()
    assert state_dir.pid() == holder.pid, "a refused start must not overwrite the pid of the living"


def test_second_acquire_in_one_process_is_refused(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path), StateDir(tmp_path)
    first.acquire()
    with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()} "):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_killed_holder_leaves_nothing_that_stops_the_next(tmp_path: Path, supervise: Supervise) -> None:
    holder = supervise(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    state_dir = StateDir(tmp_path)
    assert state_dir.pid() == holder.pid, "the stale pid file is there"
    assert not state_dir.is_running()
    state_dir.acquire()
    assert state_dir.is_running()
    assert state_dir.pid() == os.getpid()
    state_dir.release()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"{os.getpid()}\n", id="pid of a living process"),
        pytest.param("", id="empty"),
        pytest.param("relayctl\n", id="no number"),
        pytest.param("\udcff", id="no text"),
    ],
)
def test_stale_pid_file_is_not_believed(tmp_path: Path, content: str) -> None:
    state_dir = StateDir(tmp_path)
    state_dir.pid_file.write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "lock").touch()
    assert not state_dir.is_running()
    state_dir.acquire()
    assert state_dir.pid() == os.getpid()
    state_dir.release()


def test_holder_without_a_pid_file_still_refuses(tmp_path: Path, supervise: Supervise) -> None:
    supervise(tmp_path)
    (tmp_path / "pid").unlink()
    with pytest.raises(AlreadyRunningError, match="already running"):
        StateDir(tmp_path).acquire()


def test_release_leaves_no_pid_and_no_socket(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path)
    state_dir.acquire()
    state_dir.admin_socket.touch()
    state_dir.release()
    assert not state_dir.pid_file.exists()
    assert not state_dir.admin_socket.exists()
    assert not state_dir.is_running()
    state_dir.release()


def test_asking_does_not_create_the_directory(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "state")
    assert not state_dir.is_running()
    assert state_dir.pid() is None
    assert not state_dir.path.exists()


def test_asking_whether_it_runs_does_not_stop_a_start(tmp_path: Path) -> None:
    """`relayctl stop` asks every 50 ms; a start at that moment must not be told that something runs."""
    (tmp_path / "lock").touch()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            StateDir(tmp_path).is_running()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(50):
            starting = StateDir(tmp_path)
            starting.acquire()
            starting.release()
    finally:
        over.set()
        asking.join()


# the directory


def test_directory_and_lock_are_private_and_missing_parents_are_made(tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "a" / "b")
    old = os.umask(0)
    try:
        state_dir.acquire()
    finally:
        os.umask(old)
    assert mode_of(state_dir.path) == 0o700
    assert mode_of(state_dir.path / "lock") == 0o600
    state_dir.release()


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateDir(Path("state")).path == tmp_path / "state"


def test_path_length_is_bounded_by_the_socket_in_it(tmp_path: Path) -> None:
    # unix(7): 108 bytes with the terminator, "/admin.sock" is 11 of them
    longest = Path("/" + "d" * 95)
    assert len(str(StateDir(longest).admin_socket)) == 107
    with pytest.raises(ConfigError, match=r"too long for a UNIX socket.*--state-dir") as caught:
        StateDir(Path("/" + "d" * 96))
    assert caught.value.field == "state_dir"


def test_path_length_counts_bytes_not_characters() -> None:
    with pytest.raises(ConfigError, match="too long"):
        StateDir(Path("/" + "ü" * 48))


def test_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(OperatorError, match=r"cannot create .*--state-dir"):
            StateDir(path).create()


def test_directory_that_cannot_be_made_is_named(foreign_dir: Path) -> None:
    code = _TRY.format(call="StateDir(Path(sys.argv[1])).acquire()")
    tried = run_unprivileged(code, str(foreign_dir / "state"))
    assert tried.stderr == ""
    assert f"state_dir: cannot create {foreign_dir}/state (Permission denied)" in tried.stdout
    assert "--state-dir" in tried.stdout


def test_directory_that_cannot_be_written_is_named(foreign_dir: Path) -> None:
    code = _TRY.format(call="StateDir(Path(sys.argv[1])).acquire()")
    tried = run_unprivileged(code, str(foreign_dir))
    assert tried.stderr == ""
    assert f"cannot write {foreign_dir}/lock (Permission denied)" in tried.stdout
    assert "--state-dir" in tried.stdout


def test_pid_that_cannot_be_written_is_an_error_for_operators(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    state_dir = StateDir(tmp_path)
    try:
        with pytest.raises(OperatorError, match="pid"):
            state_dir.acquire()
    finally:
        (tmp_path / "pid").rmdir()
        state_dir.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have root's default")
def test_default_of_root() -> None:
    assert default_state_dir() == Path("/var/lib/relayctl")


@pytest.mark.parametrize(
    ("xdg", "expected"),
    [
        pytest.param("/x/state", Path("/x/state/relayctl"), id="XDG_STATE_HOME"),
        pytest.param("", Path("/home/op/.local/state/relayctl"), id="empty means unset"),
        pytest.param(None, Path("/home/op/.local/state/relayctl"), id="unset"),
    ],
)
def test_default_of_users(xdg: str | None, expected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/op")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_STATE_HOME", xdg)
    assert default_state_dir() == expected


# secrets in files


def test_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made: list[str] = []

    def make() -> str:
        made.append("first" if not made else "second")
        return made[-1]

    old = os.umask(0)
    try:
        assert read_or_create_secret(path, make) == "first"
    finally:
        os.umask(old)
    assert mode_of(path) == 0o600
    assert read_or_create_secret(path, make) == "first"
    assert made == ["first"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666], ids=oct)
def test_secret_with_loose_permissions_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text("do not tell")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}") as caught:
        read_or_create_secret(path, lambda: "")
    assert caught.value.field == str(path)
    assert "do not tell" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400], ids=oct)
def test_secret_with_tight_permissions_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_text("secret")
    path.chmod(mode)
    assert read_or_create_secret(path, lambda: "") == "secret"


def test_secret_in_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "secret"
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        read_or_create_secret(path, lambda: "")
    assert caught.value.field == str(path)


def test_secret_of_another_user_is_named(foreign_dir: Path) -> None:
    path = foreign_dir / "secret"
    foreign_dir.chmod(0o755)
    path.write_text("do not tell")
    path.chmod(0o600 if os.geteuid() == 0 else 0o000)
    tried = run_unprivileged(_TRY.format(call="read_or_create_token(Path(sys.argv[1]))"), str(path))
    assert tried.stderr == ""
    assert str(path) in tried.stdout
    assert "cannot be read (Permission denied)" in tried.stdout


def test_secret_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe\x00")
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_or_create_secret(path, lambda: "")
    assert caught.value.field == str(path)


def test_reader_never_sees_a_half_written_secret(tmp_path: Path) -> None:
    """Two roles that share a new keys_file may start at the same moment."""
    path = tmp_path / "secret"
    seen: list[str] = []

    def make_while_another_reads() -> str:
        seen.append(read_or_create_secret(path, lambda: "secret of the other"))
        return "secret of the one"

    kept = read_or_create_secret(path, make_while_another_reads)
    assert seen == [kept]
    assert read_or_create_secret(path, lambda: "") == kept


def test_token_is_url_safe_and_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "bearer_token"
    token = read_or_create_token(path)
    assert len(token) >= 32
    assert token == token.strip()
    assert token.replace("-", "").replace("_", "").isalnum()
    assert path.read_text() == token + "\n"
    assert read_or_create_token(path) == token
    assert read_or_create_token(tmp_path / "other") != token


@pytest.mark.parametrize("content", ["", "\n", "  \n"], ids=["empty", "newline", "spaces"])
def test_empty_token_file_is_refused(tmp_path: Path, content: str) -> None:
    """An empty token switches the check off: signaling would be open to all."""
    path = tmp_path / "bearer_token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        read_or_create_token(path)
    assert caught.value.field == str(path)


def test_two_names_of_one_directory_are_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert StateDir(tmp_path / "link").path == StateDir(tmp_path / "real").path
    with StateDir(tmp_path / "link").held():
        assert StateDir(tmp_path / "real").is_running()
    assert not StateDir(tmp_path / "real").is_running()


def test_lock_goes_over_to_who_has_its_descriptor(tmp_path: Path) -> None:
    """As a process that becomes another one has it."""
    first, second = StateDir(tmp_path), StateDir(tmp_path)
    first.acquire()
    kept = os.dup(first.lock_fd)
    assert first._lock is not None
    first._lock.close()
    with pytest.raises(AlreadyRunningError):
        second.acquire()
    second.acquire(kept)
    assert second.is_running()
    second.release()
    assert not first.is_running()


def test_descriptor_without_the_lock_is_none(tmp_path: Path) -> None:
    holder, other = StateDir(tmp_path), StateDir(tmp_path)
    holder.acquire()
    with pytest.raises(AlreadyRunningError):
        other.acquire(os.open(tmp_path / "lock", os.O_RDWR))
    holder.release()
