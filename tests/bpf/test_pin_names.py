"""Where the pins of a state directory are, and who may have them."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.dataplane.bpf import pins as pins_module
from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.pins import BPFFS, PinDir
from tests.host.unprivileged import run_unprivileged

_OURS = BPFFS / "relayctl"


@pytest.mark.parametrize(
    ("state_dir", "name"),
    [
        pytest.param("/var/lib/relayctl", "var-lib-relayctl", id="plain"),
        pytest.param("/run/relayctl2", "run-relayctl2", id="digits"),
        pytest.param("/run/relayctl-2", "run-relayctl-2-[0-9a-f]{8}", id="dash"),
        pytest.param("/", "-[0-9a-f]{8}", id="root"),
        pytest.param("/a.b", "a-b-[0-9a-f]{8}", id="dot"),
        pytest.param("/home/me/my state", "home-me-my-state-[0-9a-f]{8}", id="space"),
        pytest.param("/srv/état_1", "srv-tat-1-[0-9a-f]{8}", id="letters beyond ASCII, underscore"),
        pytest.param(
            "/tmp/pytest-of-root/../x", "tmp-pytest-of-root-x-[0-9a-f]{8}", id="dots between slashes"
        ),
        pytest.param("/" + "d" * 100, "d{100}", id="as long as may be"),
        pytest.param("/" + "e" * 30 + "/" + "d" * 90, "e{9}-d{90}-[0-9a-f]{8}", id="too long: its end"),
        pytest.param("/" + "d/" * 1500, "[d-]{100}-[0-9a-f]{8}", id="much too long"),
    ],
)
def test_name_is_that_of_the_state_directory(state_dir: str, name: str) -> None:
    path = PinDir(Path(state_dir)).path
    assert path.parent == _OURS
    assert re.fullmatch(name, path.name)
    assert PinDir(Path(state_dir)).path == path, "the next start must find it"


@pytest.mark.parametrize(
    "state_dirs",
    [
        pytest.param(("/a.b", "/a b", "/a_b", "/a..b", "/a-b"), id="characters that are replaced"),
        pytest.param(("/" + "x" * 100, "/y" + "x" * 100, "/z" + "x" * 100), id="beginnings that are cut"),
        pytest.param(("/é", "/è"), id="letters beyond ASCII"),
        pytest.param(("/run/relayctl/x", "/run/relayctl-x", "/run-relayctl/x"), id="a dash for a slash"),
    ],
)
def test_two_state_directories_never_share_pins(state_dirs: tuple[str, ...]) -> None:
    assert len({PinDir(Path(state_dir)).path for state_dir in state_dirs}) == len(state_dirs)


@pytest.mark.bpf
@pytest.mark.parametrize("state_dir", ["/a.b/c d/é_é", "/" + "long/" * 500, "/plain"])
def test_bpffs_takes_the_name(bpf: None, state_dir: str) -> None:
    path = PinDir(Path(f"{state_dir}/{os.getpid()}")).path
    path.mkdir(parents=True)
    path.rename(path.with_name(f"{path.name}_new"))
    path.with_name(f"{path.name}_new").rename(path)
    path.rmdir()
    PinDir(Path(f"{state_dir}/{os.getpid()}")).remove()  # and the directory above, if nobody else has pins
    assert not path.exists()


_CALL = """
import sys
from pathlib import Path
from host.errors import OperatorError
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.pins import PinDir

pins = PinDir(Path(sys.argv[1]))
assert not pins.exists  # none of theirs
try:
    pins.load(MapSizes()) if sys.argv[2] == "load" else getattr(pins, sys.argv[2])()
except OperatorError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(
            "load", "BpfUnavailableError", "cannot pin maps in .*run as root", id="nothing is pinned"
        ),
        pytest.param("open", "OperatorError", ".*belongs to user id 0; run as root", id="inspection"),
        pytest.param("adopt", "OperatorError", ".*belongs to user id 0; run as root", id="adoption"),
    ],
)
def test_user_without_rights_is_told_to_be_root(
    pins: PinDir, tmp_path: Path, call: str, error: str, words: str
) -> None:
    # someone's pins keep the directory above root's, as on a host where a relay runs
    pins.path.parent.mkdir(mode=0o700, exist_ok=True)
    pins.path.mkdir(mode=0o700)
    refused = run_unprivileged(_CALL, str(tmp_path / "of-nobody" if call == "load" else tmp_path), call)
    assert refused.stderr == ""
    assert re.match(f"{error} {words}", refused.stdout), refused.stdout
    assert [path.name for path in _OURS.glob(f"{pins.path.name}*")] == [pins.path.name], "nothing is left"


_MOUNT = """
import os, sys
from pathlib import Path
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.pins import PinDir

assert not os.path.exists("/sys/fs/bpf/relayctl")
pins = PinDir(Path(sys.argv[1]))
pins.load(MapSizes()).close()
print(sorted(path.name for path in pins.path.parent.iterdir()), os.path.ismount("/sys/fs/bpf"))
pins.remove()
print(os.path.exists("/sys/fs/bpf/relayctl"))
"""


@pytest.mark.bpf
def test_bpffs_is_mounted_where_it_is_not(bpf: None) -> None:
    """In a mount namespace of its own, whose /sys has none."""
    script = 'umount -a -t bpf; exec "$@"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-P", "-c", _MOUNT, "/of/a/test"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stdout.splitlines() == ["['of-a-test'] True", "False"], ran.stderr


def test_root_that_another_relay_takes_away_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "relayctl"
    monkeypatch.setattr(pins_module, "_ROOT", root)
    mkdir, taken = Path.mkdir, list[Path]()

    def taken_away_twice(path: Path, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        if path == root and len(taken) < 2:
            path.rmdir()
            taken.append(path)

    monkeypatch.setattr(Path, "mkdir", taken_away_twice)
    pins_module._make_below_root(root / "mine_new")
    assert (root / "mine_new").is_dir()
    assert len(taken) == 2


def test_directory_that_its_relay_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "relayctl"
    for name in ("gone", "here"):
        (root / name).mkdir(parents=True)
        (root / name / "xdp_ingress").touch()
    monkeypatch.setattr(pins_module, "_ROOT", root)
    iterdir, opened = Path.iterdir, list[str]()

    def one_vanishes(path: Path) -> Iterator[Path]:
        if path.name == "gone":
            shutil.rmtree(path)
        return iterdir(path)

    def note(pin: str) -> int:
        opened.append(pin)
        raise OSError("no pin")

    monkeypatch.setattr(Path, "iterdir", one_vanishes)
    monkeypatch.setattr(syscall, "open_pin", note)
    assert list(pins_module.pinned_programs()) == []
    assert opened == [str(root / "here" / "xdp_ingress")]
