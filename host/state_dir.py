"""The state directory: how commands find a running supervisor, and where its keys live.

lock            flock held while a supervisor lives; a stale file means nothing
pid             its pid, for people
admin.sock      its admin socket, 0600
keys.json       the fleet's keys, 0600
bearer_token    what signaling asks for beyond loopback, 0600
launch.json     the options of the last start, for `restart`
processes.json  the processes of a supervisor, which may outlive it
relayctl.log    output of a daemon
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from host.errors import AlreadyRunningError, ConfigError, OperatorError

# sockaddr_un.sun_path holds 108 bytes with its terminator (unix(7)).
_MAX_SOCKET_PATH_BYTES = 107
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.02


def default_state_dir() -> Path:
    """/var/lib/relayctl for root, else ~/.local/state/relayctl (XDG base directory specification)."""
    if os.geteuid() == 0:
        return Path("/var/lib/relayctl")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "relayctl"


class StateDir:
    """Paths in one state directory, and the lock that says whether it is in use."""

    def __init__(self, path: Path) -> None:
        # Resolved: two names of one directory are one relay.
        self.path = path.resolve()
        self.admin_socket = self.path / "admin.sock"
        if len(os.fsencode(self.admin_socket)) > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                "state_dir",
                f"{self.path} is too long for a UNIX socket in it ({_MAX_SOCKET_PATH_BYTES} bytes); "
                "choose a shorter --state-dir",
            )
        self.pid_file = self.path / "pid"
        self.keys_file = self.path / "keys.json"
        self.bearer_token_file = self.path / "bearer_token"
        self.processes_file = self.path / "processes.json"
        self.launch_file = self.path / "launch.json"
        self.log_file = self.path / "relayctl.log"
        self._lock_file = self.path / "lock"
        self._lock: IO[str] | None = None

    def create(self) -> None:
        """Make the directory, private to its owner. Raises OperatorError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperatorError(
                f"state_dir: cannot create {self.path} ({error.strerror}); choose another with --state-dir"
            ) from None

    @property
    def lock_fd(self) -> int:
        """Of the lock that is held; whoever has it open holds it."""
        assert self._lock is not None  # it is held
        return self._lock.fileno()

    def acquire(self, lock_fd: int | None = None) -> None:
        """Take the lock for the life of this process and write the pid. Raises AlreadyRunningError.

        lock_fd: our predecessor's, who held it until he became us (host.successor).
        """
        self.create()
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600) if lock_fd is None else lock_fd
            lock = os.fdopen(fd, "r+")
        except OSError as error:
            raise OperatorError(
                f"state_dir: cannot write {self._lock_file} ({error.strerror}); it belongs to another user? "
                "choose another with --state-dir"
            ) from None
        if not _try_lock(lock):
            lock.close()
            raise AlreadyRunningError(
                f"already running with pid {self.pid() or '?'} in {self.path}; "
                "`relayctl stop` ends it, --state-dir starts another beside it"
            )
        self._lock = lock
        try:
            self.pid_file.write_text(f"{os.getpid()}\n")
        except OSError as error:
            self.release()
            raise OperatorError(f"state_dir: cannot write {self.pid_file} ({error.strerror})") from None

    def release(self) -> None:
        """Remove what only a live supervisor has, then let the lock go."""
        self.admin_socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.pid_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep any start away for the life of the block. Raises AlreadyRunningError."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def is_running(self) -> bool:
        """Whether a live supervisor holds the lock. A pid file alone is not believed."""
        try:
            with self._lock_file.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def pid(self) -> int | None:
        """The pid in the pid file, if there is one."""
        try:
            return int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None


def _try_lock(lock: IO[str]) -> bool:
    """Take the lock for good; more than once, as ``is_running`` holds it for a moment."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def read_or_create_token(path: Path) -> str:
    """The bearer token in a file, made on first use. Raises ConfigError."""
    token = read_or_create_secret(path, lambda: secrets.token_urlsafe(24) + "\n").strip()
    if not token:
        raise ConfigError(str(path), "holds no token; write one into it, or remove it to have one made")
    return token


def read_or_create_secret(path: Path, make: Callable[[], str]) -> str:
    """The content of a 0600 file; ``make`` is called and written if there is none.

    Of several processes that create it at once one wins, whole. Raises ConfigError if others can read the file.
    """
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(make())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        except OSError as error:
            raise ConfigError(str(path), f"cannot be written ({error.strerror})") from None
        finally:
            fresh.unlink(missing_ok=True)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The content of a 0600 file. Raises ConfigError if there is none or others can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(str(path), f"others can read this secret; run `chmod 600 {path}`")
        return path.read_text()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not text; restore it from another host of the fleet") from None
