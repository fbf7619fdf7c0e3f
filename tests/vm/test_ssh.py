"""Commands on hosts, with a stand-in for the ssh client that runs them here. Needs no hosts."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.ssh import Host, RemoteError

# As ssh: a master makes its control socket and stays; a command is one string for a shell. sudo is none.
_SSH = """#!/bin/bash
last="${@: -1}"
for word in "$@"; do
    [[ $word == ControlMaster=yes ]] && master=1
    [[ ${before-} == -S ]] && control=$word
    before=$word
done
[[ $last == nobody || ${@: -3:1} == nobody ]] && { echo "nobody@host: Permission denied (publickey)." >&2; exit 255; }
if [[ ${master-} ]]; then touch "$control"; exec sleep 60; fi
exec sh -c "${last/#sudo -n/}"
"""


@pytest.fixture
def ssh(tmp_path: Path) -> str:
    """The stand-in."""
    program = tmp_path / "ssh"
    program.write_text(_SSH)
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def host(tmp_path: Path, ssh: str) -> Iterator[Host]:
    """Connected."""
    with Host("relay", None, tmp_path, timeout_s=20, program=ssh) as host:
        yield host


def test_output_of_a_command_whose_words_have_blanks_and_quotes(host: Host) -> None:
    assert host.run("printf", "%s|", "a b", "$HOME", "'", root=True) == "a b|$HOME|'|"


def test_standard_input(host: Host) -> None:
    assert host.run("cat", given="some\ntext") == "some\ntext"


def test_json(host: Host) -> None:
    assert host.ask("echo", '{"a": [1]}') == {"a": [1]}
    with pytest.raises(RemoteError, match=r"^relay: `echo no` printed no JSON: 'no\\n'$"):
        host.ask("echo", "no")


def test_failure_names_host_command_and_what_it_said(host: Host) -> None:
    with pytest.raises(RemoteError, match=r"^relay: `sh -c 'echo why >&2; exit 3'` exited with 3: why$"):
        host.run("sh", "-c", "echo why >&2; exit 3")
    assert host.try_run("sh", "-c", "exit 3").returncode == 3
    assert host.run("sh", "-c", "echo said; exit 3", fails=True) == "said\n"


def test_command_that_does_not_end_is_ended(host: Host) -> None:
    with pytest.raises(RemoteError, match=r"^relay: `sleep 60` was ended after 0.2 s: it says nothing$"):
        host.run("sleep", "60", timeout_s=0.2)


def test_login_that_is_refused(tmp_path: Path, ssh: str) -> None:
    host = Host("nobody", None, tmp_path, timeout_s=20, program=ssh)
    with pytest.raises(RemoteError, match=r"^nobody: ssh cannot log in: nobody@host: Permission denied"):
        host.connect()
    with pytest.raises(RemoteError, match=r"^nobody: ssh failed at `true`: nobody@host: Permission denied"):
        host.run("true")


def test_command_in_the_background_ends_with_its_input(host: Host, tmp_path: Path) -> None:
    process = host.start("cat", errors=tmp_path / "errors")
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write("one\n")
        assert process.stdout.readline() == "one\n"
        process.stdin.close()
        assert process.wait(20) == 0


def test_options_of_the_client(tmp_path: Path) -> None:
    """Never a question, one connection, the file's configuration."""
    host = Host("relay", tmp_path / "config", tmp_path, timeout_s=20, program="echo")
    said = host.run("true")
    assert said.startswith(f"-F {tmp_path}/config -o BatchMode=yes -o ConnectTimeout=30 ")
    assert f"-S {tmp_path}/relay -o ControlMaster=no -T relay -- env PATH=" in said
    assert said.endswith("timeout --kill-after=5 20 true\n")


def test_disconnect_ends_the_client(host: Host, tmp_path: Path) -> None:
    host.disconnect()
    assert not (tmp_path / "relay").exists()
    listed = subprocess.run(["pgrep", "-f", f"{tmp_path}/relay"], capture_output=True, check=False)
    assert listed.returncode == 1
