"""The programs compile on a machine without the kernel's own headers, and only if C and Python agree."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from relay.dataplane.bpf import compiler
from relay.dataplane.bpf.abi import MAPS, WorkerC
from relay.dataplane.bpf.compiler import MapSizes, load_programs, source_digest
from relay.dataplane.bpf.errors import BpfUnavailableError
from relay.dataplane.bpf.programs import RelayPrograms
from relay.dataplane.bpf.source import read_program
from tests.bpf.loading import SMALL, bpf_expected
from tests.measured import note_measured

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("bpf")]

# Where kernels' headers are, as far as this machine has the places.
_HEADERS = "/usr/src /lib/modules /usr/lib/modules"
_WITHOUT_HEADERS = f"""
set -e
for place in {_HEADERS}; do
    if [ -d "$place" ]; then mount -t tmpfs none "$place"; fi
done
if [ -e /sys/kernel/kheaders.tar.xz ]; then mount --bind /dev/null /sys/kernel/kheaders.tar.xz; fi
exec "$@"
"""
_LOAD = """
import json, os, sys
import bcc
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.programs import RelayPrograms

seen = []
compile = bcc.BPF

class BPF(bcc.BPF):
    def __init__(self, **arguments):
        tree = os.environ["BCC_KERNEL_SOURCE"]
        seen.append(open(tree + "/include/linux/kconfig.h").read())
        super().__init__(**arguments)

bcc.BPF = BPF
programs = RelayPrograms.load(MapSizes())
print(json.dumps({
    "trees": seen,
    "left": os.environ.get("BCC_KERNEL_SOURCE"),
    "headers": [place for place in sys.argv[1:] if os.path.isdir(place) and os.listdir(place)],
    "load_s": programs.load_s,
    "info": {name: info._asdict() for name, info in programs.info().items()},
}))
"""


def test_compiles_without_kernel_headers() -> None:
    with bpf_expected():
        RelayPrograms.load(SMALL).close()
    command = [sys.executable, "-P", "-c", _LOAD, *_HEADERS.split()]
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", _WITHOUT_HEADERS, "sh", *command],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["headers"] == []
    assert told["trees"] == ["#define CONFIG_BPF_SYSCALL 1\n"], "BCC was given another tree than the stubs"
    assert told["left"] is None
    assert set(told["info"]) == {"xdp_ingress", "reuseport_select"}
    for name, info in told["info"].items():
        # the kernel keeps 15 characters
        assert info["name"] == name[:15]
        assert info["loaded_by_uid"] == os.geteuid()
        assert info["instructions"] > 100
    note_measured(
        f"compiled and loaded in {told['load_s']:.2f} s on Linux {os.uname().release} without kernel headers"
    )


def test_load_time_is_that_of_compiling_and_loading() -> None:
    started = time.monotonic()
    with bpf_expected():
        programs = RelayPrograms.load(SMALL)
    taken = time.monotonic() - started
    programs.close()
    assert 0.01 < programs.load_s <= taken


def test_compiling_leaves_no_descriptor_and_no_tree(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with bpf_expected():
        RelayPrograms.load(SMALL).close()  # what BCC itself keeps open, it has now
    before = os.listdir("/proc/self/fd")
    RelayPrograms.load(SMALL).close()
    assert os.listdir("/proc/self/fd") == before
    assert list(tmp_path.iterdir()) == []


def test_maps_are_as_large_as_asked() -> None:
    sizes = MapSizes(max_flows=1000, max_provisional=200, max_buckets=300)
    with bpf_expected():
        programs = RelayPrograms.load(sizes)
    try:
        found = {name: bpf_map.max_entries for name, bpf_map in programs.maps.items()}
    finally:
        programs.close()
    assert found.keys() == MAPS.keys()
    assert found["flows"] == 1000
    # the kernel rounds an LRU's size up to whole CPUs
    assert 200 <= found["provisional"] <= 200 + (os.cpu_count() or 1)
    assert 300 <= found["buckets"] <= 300 + (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("name", "change", "sizes"),
    [
        pytest.param("flows", {"value": WorkerC}, ("(20, 120)", "(20, 24)"), id="value"),
        pytest.param("next_hops", {"key": WorkerC}, ("(16, 32)", "(24, 32)"), id="key"),
        pytest.param("verdicts", {"value": WorkerC}, ("(4, 8)", "(4, 24)"), id="value of each CPU"),
    ],
)
def test_tables_of_another_size_than_ours_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, change: dict[str, Any], sizes: tuple[str, str]
) -> None:
    with bpf_expected():
        RelayPrograms.load(SMALL).close()
    monkeypatch.setitem(MAPS, name, MAPS[name]._replace(**change))
    with pytest.raises(BpfUnavailableError) as refusal:
        load_programs(SMALL)
    for words in (f"map {name}:", *sizes, "bpf/include/abi.h", "relay/dataplane/bpf/abi.py", "install"):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(
            "int xdp_ingress(void *ctx) { return undeclared; }", "cannot be compiled", id="compiler"
        ),
        pytest.param(
            "int xdp_ingress(void *ctx) { return *(volatile int *)0; }", "kernel refuses", id="verifier"
        ),
    ],
)
def test_refusals_are_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], source: str, words: str
) -> None:
    monkeypatch.setattr(compiler, "read_program", lambda name: source)
    with pytest.raises(BpfUnavailableError, match=words):
        load_programs(SMALL)
    capfd.readouterr()  # BCC writes the compiler's own messages


def test_machine_without_bcc_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BpfUnavailableError, match="apt-get install python3-bpfcc"):
        load_programs(SMALL)
    assert os.listdir("/proc/self/fd") == before


def test_digest_tells_sources_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = source_digest()
    assert ours == source_digest()
    assert 0 < ours < 2**64
    monkeypatch.setattr(compiler, "read_program", lambda name: read_program(name) + " ")
    assert source_digest() != ours
