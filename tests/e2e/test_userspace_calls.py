"""The tests of calls again, on the userspace data path: as root without what BPF takes, and as a user without any rights.

What the tests are, and what they start, is theirs (``test_calls.py``, ``test_page.py``); here is only who starts it. XDP is
asked for by ``--interface`` and cannot be had, so the relay falls back, and says why.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, Starter, running, started_by
from tests.e2e.test_calls import (  # noqa: F401
    test_calls_go_on_when_a_worker_is_killed,
    test_client_whose_first_check_comes_from_the_losing_pair_connects,
    test_nat_rebind_recovers,
    test_replayed_check_diverts_nothing,
    test_sigterm_leaves_no_process_and_no_socket,
    test_twenty_clients_reach_the_transceivers_that_their_ufrags_name,
    test_vanished_client_is_gone_within_35_s,
)
from tests.e2e.test_page import test_page_call_connects_through_the_relay_and_hears_itself  # noqa: F401
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_NOBODY = 65534
_XDP_IF_IT_CAN_BE_HAD = ("--interface", "eth0", "--dataplane", "auto")
_WITHOUT_BPF = "-bpf,-perfmon,-net_admin,-sys_admin"
_WITHOUT_BPF_CAPABILITIES = 1 << 39 | 1 << 38 | 1 << 12 | 1 << 21  # linux/capability.h, in that order


def capabilities(pid: int, which: str) -> int:
    """A set of a process, as a number."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{which}:")).split()[1], 16)


def fell_back(instance: Instance) -> None:
    """It says that it took userspace, and that it was not allowed to do better."""
    relay = instance.status()["relay"]
    assert relay["dataplane"] == "userspace"
    assert "Operation not permitted" in relay["reason"]
    assert "CAP_BPF" in relay["reason"]
    shown = instance.run("status")
    assert f"data path userspace ({relay['reason']})" in shown.stdout


def is_root_without_bpf(instance: Instance) -> None:
    assert os.stat(f"/proc/{instance.process.pid}").st_uid == 0
    assert capabilities(instance.process.pid, "CapBnd") & _WITHOUT_BPF_CAPABILITIES == 0
    assert capabilities(instance.process.pid, "CapEff") != 0
    fell_back(instance)


def is_nobody(instance: Instance) -> None:
    for pid in instance.pids():
        assert os.stat(f"/proc/{pid}").st_uid == _NOBODY
        assert capabilities(pid, "CapPrm") == 0
    fell_back(instance)


ROOT_WITHOUT_BPF = Starter(
    ("setpriv", "--bounding-set", _WITHOUT_BPF), _XDP_IF_IT_CAN_BE_HAD, check=is_root_without_bpf
)
NOBODY = Starter(
    ("setpriv", "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups"),
    _XDP_IF_IT_CAN_BE_HAD,
    user=_NOBODY,
    check=is_nobody,
)


# Those that root runs, too: what differs is how the relay starts.
_BY_BOTH = {
    "test_page_call_connects_through_the_relay_and_hears_itself",
    "test_twenty_clients_reach_the_transceivers_that_their_ufrags_name",
    "test_xdp_is_refused_where_it_is_demanded",
    "test_userspace_needs_no_interface_and_no_rights",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Who starts relayctl in which test."""
    starters = [pytest.param(NOBODY, id="nobody")]
    if metafunc.function.__name__ in _BY_BOTH:
        starters.append(pytest.param(ROOT_WITHOUT_BPF, id="root without CAP_BPF"))
    metafunc.parametrize("starter", starters, indirect=True)


@pytest.fixture(autouse=True)
def starter(request: pytest.FixtureRequest, own_network: Network | None) -> Iterator[Starter]:
    """Who starts relayctl in a test."""
    need_network(own_network)
    with started_by(request.param):
        yield request.param


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that any user may enter: pytest's own are closed to others than root."""
    path = Path(tempfile.mkdtemp(prefix="relayctl-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_xdp_is_refused_where_it_is_demanded(starter: Starter, tmp_path: Path) -> None:
    """The same start, but for ``--dataplane``: userspace would not be what was asked for."""
    command = [*starter.command, str(Path(sys.executable).with_name("relayctl")), "start"]
    command += ["--state-dir", str(tmp_path / "s"), "--interface", "eth0", "--dataplane", "xdp"]
    (tmp_path / "s").mkdir()
    os.chown(tmp_path / "s", starter.user or 0, starter.user or 0)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert refused.returncode == 1
    assert "CAP_BPF" in refused.stderr


def test_userspace_needs_no_interface_and_no_rights(starter: Starter, tmp_path: Path) -> None:
    plain = Starter(starter.command, ("--dataplane", "userspace"), starter.user)
    with started_by(plain), running(tmp_path / "s", "--workers", "1", "--transceivers", "1") as instance:
        relay = instance.status()["relay"]
        assert (relay["dataplane"], relay["reason"]) == ("userspace", "as configured")
