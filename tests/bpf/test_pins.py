"""Pinned maps and programs: found again, checked before they are believed, and gone when they are removed."""

import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.errors import OperatorError
from relay.core.flow import Flow, FlowKey
from relay.dataplane.bpf import pins as pins_module
from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.abi import ABI_VERSION, MAPS, Heartbeat, WorkerC
from relay.dataplane.bpf.compiler import MapSizes
from relay.dataplane.bpf.errors import AbiMismatchError, BpfUnavailableError
from relay.dataplane.bpf.flow_store import KernelFlowStore
from relay.dataplane.bpf.pins import BPFFS, PinDir, pinned_programs, read_abi_version
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.frames import judge, udp_frame
from tests.bpf.kernel_objects import eventually, make_map, make_xdp_program, map_exists, program_exists
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT, SMALL, beat, bpf_expected, value_of
from tests.relay.network import CALL, CLIENT_V4, LISTEN_V4, RTP, VIP_V4

pytestmark = pytest.mark.bpf

EVERYTHING = {*MAPS, "xdp_ingress", "reuseport_select"}
FLOW = Flow(FlowKey(CLIENT_V4, VIP_V4), CALL.transceiver, CALL.tag, 1.0, 1.0, 1.0, assured=True)
FRAME = udp_frame(CLIENT_V4, LISTEN_V4, RTP)


def load(pins: PinDir, sizes: MapSizes = SMALL) -> RelayPrograms:
    """Loaded, pinned and told of the test fleet."""
    with bpf_expected():
        programs = pins.load(sizes)
    programs.configure(PATIENT, FLEET_SOCKETS, HASH_KEY)
    return programs


def store_of(programs: RelayPrograms) -> KernelFlowStore:
    return KernelFlowStore(programs.maps["flows"].fd, programs.maps["provisional"].fd, PATIENT.vips)


def program_ids(programs: RelayPrograms) -> dict[str, int]:
    return {name: info.id for name, info in programs.info().items()}


def map_ids(programs: RelayPrograms) -> dict[str, int]:
    return {name: syscall.map_info(bpf_map.fd).id for name, bpf_map in programs.maps.items()}


def pinned_ids(pins: PinDir) -> dict[str, int]:
    """Of the programs in the directory."""
    ids = {}
    for name in ("xdp_ingress", "reuseport_select"):
        fd = syscall.open_pin(str(pins.path / name))
        ids[name] = syscall.program_info(fd).id
        os.close(fd)
    return ids


@contextmanager
def closing(*open_programs: RelayPrograms) -> Iterator[None]:
    try:
        yield
    finally:
        for programs in open_programs:
            programs.close()


def set_build(programs: RelayPrograms, build: int) -> None:
    """As if another version of the programs had been loaded."""
    settings = programs.settings()
    settings.build = build
    programs.maps["settings"].put(0, settings)


def replace_pin(pins: PinDir, name: str, fd: int) -> None:
    (pins.path / name).unlink()
    syscall.pin(fd, str(pins.path / name))
    os.close(fd)


def test_everything_is_pinned_in_one_directory(pins: PinDir) -> None:
    assert not pins.path.exists()
    with closing(load(pins)):
        assert pins.exists
        assert {path.name for path in pins.path.iterdir()} == EVERYTHING
        assert pins.path.stat().st_mode & 0o777 == 0o700
        beside = [path.name for path in pins.path.parent.glob(f"{pins.path.name}*")]
        assert beside == [pins.path.name], "the temporary directory is left"


def test_what_was_written_is_read_through_the_pins(pins: PinDir) -> None:
    programs = load(pins, MapSizes(max_flows=77, max_provisional=SMALL.max_provisional))
    with closing(programs):
        assert store_of(programs).write(FLOW)
        programs.steer([3])
        programs.maps["workers"].put(3, WorkerC(pid=42, beat_ns=time.monotonic_ns()))
        programs.maps["heartbeat"].put(0, Heartbeat(time.monotonic_ns()))
        ids = program_ids(programs), map_ids(programs)
    opened = pins.open()
    with closing(opened):
        assert (program_ids(opened), map_ids(opened)) == ids
        assert opened.maps["flows"].max_entries == 77
        assert opened.listeners() == programs_listeners()
        assert value_of(opened.maps["steering"], 16_380).value == 3
        assert value_of(opened.maps["workers"], 3).pid == 42
        assert tuple(opened.settings().hash_key) == HASH_KEY
        read = store_of(opened).read(FLOW.key)
        assert read is not None
        assert (read.transceiver, read.ufrag_tag) == (CALL.transceiver, CALL.tag)
        assert judge(opened, FRAME) is not None
        assert pins.program_ids() == {program_ids(opened)["xdp_ingress"]}


def programs_listeners() -> dict[object, tuple[int, int]]:
    public = [vip.listen for vip in PATIENT.vips]
    return {
        **{address: (1, group) for group, address in enumerate(public)},
        **{address: (2, len(public) + group) for group, address in enumerate(FLEET_SOCKETS)},
    }


def test_opening_changes_nothing(pins: PinDir) -> None:
    programs = load(pins)
    with closing(programs):
        set_build(programs, 1)
        ids = pinned_ids(pins)
        pins.open().close()
        assert pinned_ids(pins) == ids
        assert programs.settings().build == 1


def test_the_same_source_is_adopted_as_it_is(pins: PinDir) -> None:
    programs = load(pins)
    ids = program_ids(programs), map_ids(programs)
    programs.close()
    adopted = pins.adopt()
    with closing(adopted):
        assert (program_ids(adopted), map_ids(adopted)) == ids


def test_another_source_takes_over_the_maps(pins: PinDir) -> None:
    old = load(pins, MapSizes(max_flows=77, max_provisional=SMALL.max_provisional))
    assert store_of(old).write(FLOW)
    old.steer([5])
    set_build(old, 1)
    old_programs, maps = program_ids(old), map_ids(old)
    old.close()

    adopted = pins.adopt()
    with closing(adopted):
        new_programs = program_ids(adopted)
        assert not set(new_programs.values()) & set(old_programs.values())
        assert map_ids(adopted) == maps
        assert adopted.maps["flows"].max_entries == 77
        assert store_of(adopted).read(FLOW.key) is not None
        assert pinned_ids(pins) == old_programs, "until the new ones are attached, the old ones are ours"
        # the new program really uses them
        beat(adopted, 5)
        before = adopted.counts()
        assert judge(adopted, FRAME) is not None
        assert adopted.counts() != before
        # and takes its turn
        pins.pin_programs(adopted)
        assert pinned_ids(pins) == new_programs
        assert {path.name for path in pins.path.iterdir()} == EVERYTHING
        adopted.configure(PATIENT, FLEET_SOCKETS, HASH_KEY)
    assert eventually(lambda: not any(map(program_exists, old_programs.values())))
    again = pins.adopt()
    with closing(again):
        assert program_ids(again) == new_programs


def test_namespace_of_the_interfaces_is_known(pins: PinDir) -> None:
    programs = load(pins)
    with closing(programs):
        assert pins.network_namespace() == os.stat("/proc/self/ns/net").st_ino
        other_version(pins, programs)
        assert pins.network_namespace() == 0


@pytest.mark.parametrize("is_root_of_all", [True, False], ids=["the directory above", "the directory"])
@pytest.mark.parametrize(
    ("owner", "mode", "words"),
    [
        pytest.param(65534, 0o700, "belongs to user id 65534", id="another owner"),
        pytest.param(0, 0o702, "others may write to", id="writable by all"),
        pytest.param(0, 0o720, "others may write to", id="writable by a group"),
    ],
)
def test_places_of_others_are_not_trusted(
    bpf: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: int,
    mode: int,
    words: str,
    is_root_of_all: bool,
) -> None:
    root = BPFFS / f"relayctl-test-{os.getpid()}"
    monkeypatch.setattr(pins_module, "_ROOT", root)
    pins = PinDir(tmp_path)
    try:
        load(pins).close()
        pins.open().close()
        place = root if is_root_of_all else pins.path
        os.chown(place, owner, 0)
        place.chmod(mode)
        calls: list[Callable[[], RelayPrograms]] = [pins.open, pins.adopt]
        if is_root_of_all:
            calls.append(lambda: PinDir(tmp_path / "other").load(SMALL))
        for call in calls:
            with pytest.raises(OperatorError, match=words) as refusal:
                call()
            assert str(place) in str(refusal.value)
    finally:
        shutil.rmtree(root)


def test_failed_adoption_leaves_all_as_it_was(pins: PinDir, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = load(pins)
    assert store_of(programs).write(FLOW)
    set_build(programs, 1)
    ids = pinned_ids(pins)
    programs.close()

    def refuse(*arguments: object, **options: object) -> float:
        raise BpfUnavailableError("no BCC")

    monkeypatch.setattr(pins_module, "load_and_pin", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BpfUnavailableError, match="no BCC"):
        pins.adopt()
    assert os.listdir("/proc/self/fd") == before
    assert pinned_ids(pins) == ids
    assert {path.name for path in pins.path.iterdir()} == EVERYTHING


def test_failed_load_leaves_nothing(pins: PinDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with bpf_expected():
        pins.load(SMALL).close()
    pins.remove()

    def refuse(*arguments: object, **options: object) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pins_module, "load_and_pin", refuse)
    with pytest.raises(OSError, match="No space"):
        pins.load(SMALL)
    assert not pins.exists
    assert not list(pins.path.parent.glob(f"{pins.path.name}*"))


def test_left_overs_of_a_killed_start_do_not_hinder(pins: PinDir) -> None:
    left = pins.path.with_name(f"{pins.path.name}_new")
    left.mkdir(parents=True)
    fd = make_map("flows", 1, 8, 8, 8)  # of another layout: it must not be taken up
    syscall.pin(fd, str(left / "flows"))
    os.close(fd)
    programs = load(pins)
    with closing(programs):
        assert syscall.map_info(programs.maps["flows"].fd).value_size == programs.maps["flows"].value_size
        assert not left.exists()
        assert {path.name for path in pins.path.iterdir()} == EVERYTHING


def test_left_over_of_a_killed_pinning_does_not_hinder(pins: PinDir) -> None:
    programs = load(pins)
    with closing(programs):
        syscall.pin(programs.xdp_fd, str(pins.path / "xdp_ingress_new"))
        pins.pin_programs(programs)
        assert {path.name for path in pins.path.iterdir()} == EVERYTHING


def other_version(pins: PinDir, programs: RelayPrograms) -> None:
    settings = programs.settings()
    settings.abi_version = ABI_VERSION + 7
    programs.maps["settings"].put(0, settings)


def other_version_and_layout(pins: PinDir, programs: RelayPrograms) -> None:
    """A later version may have made the settings longer: the number still comes first."""
    fd = make_map("settings", MAPS["settings"].kind.number, 4, 400, 1)
    key, value = ctypes.c_uint32(0), (ctypes.c_uint32 * 100)(ABI_VERSION + 7)
    syscall.MapElements(fd, key, value).update()
    assert read_abi_version(fd) == ABI_VERSION + 7
    replace_pin(pins, "settings", fd)


def other_version_without_a_map(pins: PinDir, programs: RelayPrograms) -> None:
    other_version(pins, programs)
    (pins.path / "buckets").unlink()


def other_map(
    name: str, kind: int, key_size: int, value_size: int
) -> Callable[[PinDir, RelayPrograms], None]:
    def replace(pins: PinDir, programs: RelayPrograms) -> None:
        replace_pin(pins, name, make_map(name, kind, key_size, value_size, 64))

    return replace


def program_as_map(pins: PinDir, programs: RelayPrograms) -> None:
    replace_pin(pins, "workers", make_xdp_program("no_map"))


def without(name: str) -> Callable[[PinDir, RelayPrograms], None]:
    return lambda pins, programs: (pins.path / name).unlink()


VERSIONS = (f"ABI version {ABI_VERSION + 7}", f"has {ABI_VERSION};")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(other_version, VERSIONS, id="version"),
        pytest.param(other_version_and_layout, VERSIONS, id="version with longer settings"),
        pytest.param(other_version_without_a_map, VERSIONS, id="version that lacks a map"),
        pytest.param(
            other_map("flows", 1, 40, 160), ("/flows is", "40 and 160 bytes", "20 and 120"), id="value size"
        ),
        pytest.param(
            other_map("flows", 1, 36, 152), ("/flows is", "36 and 152 bytes", "20 and 120"), id="key size"
        ),
        pytest.param(other_map("flows", 9, 40, 152), ("/flows is", "kind 9", "kind 1,"), id="kind of map"),
        pytest.param(program_as_map, ("/workers is",), id="a program in place of a map"),
        pytest.param(without("flows"), ("has no 'flows'",), id="missing map"),
        pytest.param(without("settings"), ("has no 'settings'",), id="missing settings"),
        pytest.param(without("xdp_ingress"), ("has no 'xdp_ingress'",), id="missing program"),
    ],
)
def test_other_layouts_are_refused(
    pins: PinDir, change: Callable[[PinDir, RelayPrograms], None], words: tuple[str, ...]
) -> None:
    programs = load(pins)
    with closing(programs):
        change(pins, programs)
    names = {path.name for path in pins.path.iterdir()}
    before = os.listdir("/proc/self/fd")
    for take in (pins.open, pins.adopt):
        with pytest.raises(AbiMismatchError) as refusal:
            take()
        for each in (str(pins.path), *words, "`relayctl bpf unload --force`"):
            assert each in str(refusal.value)
    assert os.listdir("/proc/self/fd") == before
    assert {path.name for path in pins.path.iterdir()} == names


def test_what_was_never_configured_is_no_other_version(pins: PinDir) -> None:
    with bpf_expected():
        pins.load(SMALL).close()
    adopted = pins.adopt()
    with closing(adopted):
        assert adopted.settings().abi_version == 0
        assert adopted.listeners() == {}


def test_removal_leaves_nothing(pins: PinDir) -> None:
    programs = load(pins)
    programs_there, maps_there = program_ids(programs), map_ids(programs)
    programs.close()
    assert all(map(program_exists, programs_there.values()))
    assert all(map(map_exists, maps_there.values()))
    assert (pins.path / "xdp_ingress", programs_there["xdp_ingress"]) in list(pinned_programs())
    pins.remove()
    assert not pins.exists
    assert pins.path not in [pin.parent for pin, _ in pinned_programs()]
    assert pins.program_ids() == set()
    assert eventually(lambda: not any(map(program_exists, programs_there.values())))
    assert eventually(lambda: not any(map(map_exists, maps_there.values())))
    pins.remove()  # once more is no error
