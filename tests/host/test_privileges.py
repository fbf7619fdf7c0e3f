"""What a process gives up before it reads from the network, seen by the kernel and tried from inside."""

import os
import pwd
import subprocess
import sys

import pytest

from host.errors import ConfigError
from host.privileges import check_user
from tests.host.unprivileged import run_unprivileged

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")

# In a process of its own, as nothing that is given up comes back.
_REPORT = """
import os, sys
from host.privileges import drop_privileges
kept = os.open("/etc/shadow" if os.geteuid() == 0 else "/etc/passwd", os.O_RDONLY)
drop_privileges(sys.argv[1] or None)
assert os.read(kept, 1), "descriptors stay open"
with open("/proc/self/status") as status:
    for line in status:
        name, _, value = line.partition(":")
        if name.startswith("Cap") or name in ("NoNewPrivs", "Uid", "Gid", "Groups"):
            print(name, *value.split())
"""
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def run_as_root(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        extra_groups=[0, 4],
    )


def report(told: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert told.returncode == 0, told.stderr
    return dict(line.partition(" ")[::2] for line in told.stdout.splitlines())


@needs_root
@pytest.mark.parametrize("user", ["", "nobody"])
def test_every_capability_of_root_is_gone_for_good(user: str) -> None:
    told = report(run_as_root(_REPORT, user))
    assert {told[name].strip("0") for name in _CAPABILITY_SETS} == {""}
    assert told["NoNewPrivs"] == "1"


@needs_root
def test_user_stays_root_where_none_is_named() -> None:
    assert report(run_as_root(_REPORT, ""))["Uid"] == "0 0 0 0"


@needs_root
def test_named_user_is_taken_in_every_form_and_without_groups() -> None:
    entry = pwd.getpwnam("nobody")
    told = report(run_as_root(_REPORT, "nobody"))
    assert told["Uid"] == " ".join([str(entry.pw_uid)] * 4)
    assert told["Gid"] == " ".join([str(entry.pw_gid)] * 4)
    assert told["Groups"] == ""


def test_unprivileged_process_gives_up_what_it_could_get_back() -> None:
    told = report(run_unprivileged(_REPORT, ""))
    assert {told[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
    assert told["NoNewPrivs"] == "1"


# One way back a row; each is open to root before.
_WAYS_BACK = [
    pytest.param("os.setresuid(0, 0, 0)", id="become root"),
    pytest.param("os.seteuid(0)", id="effective user"),
    pytest.param("os.setresgid(0, 0, 0)", id="root's group"),
    pytest.param("os.setgroups([0])", id="further groups"),
    pytest.param("open('/etc/shadow').read()", id="read what is root's"),
    pytest.param("os.chroot('/')", id="CAP_SYS_CHROOT"),
    pytest.param("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", id="CAP_NET_RAW"),
    pytest.param("socket.sethostname(socket.gethostname())", id="CAP_SYS_ADMIN"),
]  # fmt: skip
_TRY = """
import os, socket, sys
from host.privileges import drop_privileges
if sys.argv[2] == "drop":
    drop_privileges(sys.argv[1])
try:
    {way}
except PermissionError:
    print("refused")
else:
    print("done")
"""


@needs_root
@pytest.mark.parametrize("way", _WAYS_BACK)
def test_root_is_not_regained(way: str) -> None:
    code = _TRY.format(way=way)
    assert run_as_root(code, "nobody", "keep").stdout == "done\n"
    assert run_as_root(code, "nobody", "drop").stdout == "refused\n"


@needs_root
@pytest.mark.parametrize("user", ["", "nobody"])
def test_program_that_is_run_afterwards_has_no_more(user: str) -> None:
    """As root without capabilities an exec would have them all again."""
    code = (
        "import os, sys\nfrom host.privileges import drop_privileges\n"
        "drop_privileges(sys.argv[1] or None)\nos.execv('/bin/cat', ['cat', '/proc/self/status'])"
    )
    told = run_as_root(code, user)
    lines = dict(line.split(":", 1) for line in told.stdout.splitlines())
    assert {lines[name].strip().strip("0") for name in _CAPABILITY_SETS} == {""}
    assert lines["NoNewPrivs"].strip() == "1"


def test_user_who_is_there_is_accepted() -> None:
    check_user(pwd.getpwuid(os.geteuid()).pw_name)
    if os.geteuid() == 0:
        check_user("nobody")


def test_unknown_user_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigError) as refused:
        check_user("no-such-user")
    assert refused.value.field == "host.user"
    assert "no user 'no-such-user' here; `adduser --system no-such-user` makes one" in str(refused.value)


def test_only_root_becomes_another_user() -> None:
    code = (
        "import sys\nfrom host.errors import ConfigError\nfrom host.privileges import check_user\n"
        "try: check_user(sys.argv[1])\nexcept ConfigError as error: print(error.field, error, sep='\\n')"
    )
    told = run_unprivileged(code, "root")
    assert told.stderr == ""
    field, message = told.stdout.splitlines()
    assert field == "host.user"
    assert "only root can run processes as 'root'" in message


@needs_root
def test_unprivileged_user_may_name_himself() -> None:
    told = run_unprivileged("from host.privileges import check_user\ncheck_user('nobody')\nprint('ok')")
    assert (told.stderr, told.stdout) == ("", "ok\n")
