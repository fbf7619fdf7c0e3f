"""Commands on other hosts by the OpenSSH client: one connection a host, every command bounded in time on both ends."""

import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# To a host that just booted a first connection takes some seconds where the machine is emulated.
_CONNECT_S = 30
# What ssh and sshd may take beyond the command's own time.
_MARGIN_S = 60.0
# What `timeout` exits with.
_TIMED_OUT = 124
_TOLD_CHARS = 2000


class RemoteError(AssertionError):
    """A command on a host failed: which host, which command, and what it said."""


class Host:
    """A host by its name for ssh. ``with host:`` is connected; ``program`` is the ssh client."""

    def __init__(
        self, target: str, ssh_config: Path | None, sockets: Path, *, timeout_s: float, program: str = "ssh"
    ) -> None:
        """sockets: a directory for the connection's control socket, whose path may have 100 characters.

        timeout_s: for commands that have no time of their own.
        """
        self.target = target
        self._timeout_s = timeout_s
        self._control = sockets / target.replace("/", "_")[-40:]
        config = ["-F", str(ssh_config)] if ssh_config is not None else []
        self._ssh = [program, *config, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
        # A configuration that Vagrant writes would keep the reason of a failure to itself.
        self._ssh += [
            "-o",
            "LogLevel=ERROR",
            "-o",
            "ServerAliveInterval=10",
            "-o",
            "ServerAliveCountMax=6",
            "-S",
            str(self._control),
        ]
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Host":
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()

    def connect(self) -> None:
        """Log in once; the commands use this connection. Raises RemoteError."""
        self.disconnect()
        errors = self._control.with_suffix(".log")
        with errors.open("wb") as log:
            self._master = subprocess.Popen(
                [*self._ssh, "-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-N", self.target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        deadline = time.monotonic() + _CONNECT_S + _MARGIN_S
        while not self._control.exists():
            if self._master.poll() is not None or time.monotonic() > deadline:
                self.disconnect()
                said = errors.read_text(errors="replace").strip()
                raise RemoteError(
                    f"{self.target}: ssh cannot log in: {said[-_TOLD_CHARS:] or 'it says nothing'}"
                )
            time.sleep(0.05)

    def disconnect(self) -> None:
        """End the connection, also one whose host is gone."""
        if self._master is not None:
            self._master.kill()
            self._master.wait()
            self._master = None
        self._control.unlink(missing_ok=True)

    def run(
        self,
        *command: str,
        root: bool = False,
        timeout_s: float | None = None,
        given: str = "",
        fails: bool = False,
    ) -> str:
        """What a command printed. ``given`` is its standard input; only with ``fails`` may it exit with other than 0."""
        return self.try_run(*command, root=root, timeout_s=timeout_s, given=given, fails=fails).stdout

    def try_run(
        self,
        *command: str,
        root: bool = False,
        timeout_s: float | None = None,
        given: str = "",
        fails: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """As ``run``, with exit code and standard error. Raises RemoteError, also where it takes too long."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        bounded = ["timeout", "--kill-after=5", f"{timeout_s:g}", *command]
        try:
            done = subprocess.run(
                self._command(bounded, root=root),
                input=given,
                capture_output=True,
                text=True,
                timeout=timeout_s + _MARGIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise RemoteError(
                f"{self.target}: no answer {expired.timeout:g} s after `{shlex.join(command)}`; is the host up?"
            ) from None
        if done.returncode == 255 or (done.returncode and not fails) or done.returncode == _TIMED_OUT:
            raise RemoteError(_explain(self.target, command, done, timeout_s))
        return done

    def ask(self, *command: str, root: bool = False, timeout_s: float | None = None) -> Any:
        """The JSON that a command prints."""
        said = self.run(*command, root=root, timeout_s=timeout_s)
        try:
            return json.loads(said)
        except ValueError:
            raise RemoteError(
                f"{self.target}: `{shlex.join(command)}` printed no JSON: {said[:_TOLD_CHARS]!r}"
            ) from None

    def start(self, *command: str, errors: Path) -> subprocess.Popen[str]:
        """A command that goes on, with standard input and output; it must end by itself when its input does."""
        with errors.open("w") as log:
            return subprocess.Popen(
                self._command(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    @contextlib.contextmanager
    def forwarded(self, local_port: int, port: int) -> Iterator[None]:
        """TCP to this machine's loopback ``local_port`` leads to the host's own ``port``."""
        spec = f"127.0.0.1:{local_port}:127.0.0.1:{port}"
        self._control_command("forward", spec)
        try:
            yield
        finally:
            self._control_command("cancel", spec)

    def _control_command(self, verb: str, spec: str) -> None:
        done = subprocess.run(
            [*self._ssh, "-O", verb, "-L", spec, self.target],
            capture_output=True,
            text=True,
            timeout=_MARGIN_S,
            check=False,
        )
        if done.returncode:
            raise RemoteError(f"{self.target}: ssh -O {verb} -L {spec}: {done.stderr.strip()}")

    def _command(self, command: Sequence[str], *, root: bool = False) -> list[str]:
        # sshd's environment has neither the sbin directories nor a fixed language.
        paths = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [*(["sudo", "-n"] if root else []), "env", paths, "LC_ALL=C.UTF-8", *command]
        return [*self._ssh, "-o", "ControlMaster=no", "-T", self.target, "--", shlex.join(words)]


def _explain(
    target: str, command: Sequence[str], done: subprocess.CompletedProcess[str], timeout_s: float
) -> str:
    said = (done.stderr.strip() or done.stdout.strip())[-_TOLD_CHARS:] or "it says nothing"
    what = shlex.join(command)
    if done.returncode == 255:
        return f"{target}: ssh failed at `{what}`: {said}"
    if done.returncode == _TIMED_OUT:
        return f"{target}: `{what}` was ended after {timeout_s:g} s: {said}"
    return f"{target}: `{what}` exited with {done.returncode}: {said}"
