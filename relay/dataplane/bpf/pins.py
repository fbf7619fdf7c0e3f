"""Maps and programs under bpffs, where they outlive their supervisor and the next one finds them.

One directory a state directory, with one pin a map and a program. Loading is: pin all of it in a directory beside, verify,
rename. Nothing is believed of what is found there: its ABI version and every map's kind and sizes are compared first.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from host.errors import OperatorError
from relay.dataplane.bpf import syscall
from relay.dataplane.bpf.abi import ABI_VERSION, MAPS
from relay.dataplane.bpf.compiler import Loaded, MapSizes, source_digest
from relay.dataplane.bpf.errors import AbiMismatchError, BpfUnavailableError
from relay.dataplane.bpf.loader import load_and_pin, pin_programs
from relay.dataplane.bpf.maps import BpfMap
from relay.dataplane.bpf.programs import RelayPrograms, network_namespace

BPFFS = Path("/sys/fs/bpf")
_ROOT = BPFFS / "relayctl"
_PROGRAMS = ("xdp_ingress", "reuseport_select")
_MAX_NAME = 100
# Each is lost only to another relay's end between two system calls.
_ROOT_ATTEMPTS = 100
# Behind the names of programs that are loaded, and not attached yet.
_NOT_YET = "_new"


class PinDir:
    """The pins of one state directory. ``path`` is what an engineer gives to bpftool."""

    def __init__(self, state_dir: Path) -> None:
        # bpffs allows no dot in a name (bpf_lookup in kernel/bpf/inode.c).
        text = str(state_dir).strip("/")
        name = re.sub(r"[^A-Za-z0-9]+", "-", text)
        if not re.fullmatch(r"[A-Za-z0-9]+(/[A-Za-z0-9]+)*", text) or len(name) > _MAX_NAME:
            # What was replaced or cut must not make two names one.
            digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]
            name = f"{name[-_MAX_NAME:]}-{digest}"
        self.path = _ROOT / name

    @property
    def exists(self) -> bool:
        """Whether something is pinned; for who may not look there, nothing of his own."""
        try:
            return self.path.is_dir()
        except PermissionError:
            return False

    def load(self, sizes: MapSizes) -> RelayPrograms:
        """Compile, load and pin everything anew. Raises BpfUnavailableError."""
        _mount_bpffs()
        fresh = self.path.with_name(f"{self.path.name}_new")
        shutil.rmtree(fresh, ignore_errors=True)  # left by a start that was killed
        try:
            with contextlib.suppress(OSError):
                _ROOT.rmdir()  # empty, and so of no use to whoever made it
            _make_below_root(fresh)
        except OSError as error:
            raise BpfUnavailableError(f"cannot pin maps in {_ROOT} ({error.strerror}); run as root") from None
        _check_owner(_ROOT)
        try:
            load_s = load_and_pin(sizes, fresh)
            programs = self._open(fresh)
            fresh.rename(self.path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            with contextlib.suppress(OSError):
                _ROOT.rmdir()  # for whoever may pin here
            raise
        programs.load_s = load_s
        return programs

    def adopt(self) -> RelayPrograms:
        """What is pinned, after every check. Raises AbiMismatchError.

        Programs of another version with the same ABI give way to ours, over the same maps; those that are pinned stay so
        until ``pin_programs``.
        """
        programs = self.open()
        if programs.settings().build == source_digest():
            return programs
        programs.close()
        # The sizes are those of the maps that are there.
        load_s = load_and_pin(MapSizes(), self.path, suffix=_NOT_YET)
        programs = self._open(self.path, suffix=_NOT_YET)
        programs.load_s = load_s
        return programs

    def network_namespace(self) -> int:
        """The inode of the namespace whose interfaces have the program; 0 if it is not known."""
        try:
            programs = self.open()
        except OperatorError:  # none, or of another version
            return 0
        try:
            return int(programs.settings().network_namespace)
        finally:
            programs.close()

    def pin_programs(self, programs: RelayPrograms) -> None:
        """Pin these programs in place of any others."""
        pin_programs(programs, self.path)
        self.forget_not_pinned()

    def forget_not_pinned(self) -> None:
        """Let programs go that ``adopt`` loaded and that were never attached."""
        for name in _PROGRAMS:
            (self.path / f"{name}{_NOT_YET}").unlink(missing_ok=True)

    def program_ids(self) -> set[int]:
        """Ids of the XDP program that is pinned, and of one that is about to be."""
        return {program_id for pin, program_id in pinned_programs() if pin.parent == self.path}

    def check_namespace(self) -> None:
        """Raises OperatorError if the interfaces with our program are not those of this network namespace."""
        attached_in = self.network_namespace()
        if attached_in not in (0, network_namespace()):
            raise OperatorError(
                f"XDP is attached in another network namespace, net:[{attached_in}] (`lsns -t net` tells whose); run this "
                "there, as `nsenter --net=/run/netns/NAME relayctl …`"
            )

    def open(self) -> RelayPrograms:
        """What is pinned, unchanged: for inspection and adoption. Raises AbiMismatchError or OperatorError."""
        for directory in (_ROOT, self.path):
            _check_owner(directory)
        return self._open(self.path)

    def _open(self, directory: Path, suffix: str = "") -> RelayPrograms:
        with contextlib.ExitStack() as undo:
            fds = {}
            for name in (*MAPS, *_PROGRAMS):
                pin = directory / (name + suffix if name in _PROGRAMS else name)
                try:
                    fds[name] = syscall.open_pin(str(pin))
                except FileNotFoundError:
                    self._check_version(fds)
                    raise AbiMismatchError(f"{directory} has no {pin.name!r}; {self._way_out()}") from None
                except OSError as error:
                    raise OperatorError(f"cannot open {pin} ({error.strerror}); run as root") from None
                undo.callback(os.close, fds[name])
            self._check_version(fds)
            _check_maps(directory, {name: fds[name] for name in MAPS}, self._way_out())
            undo.pop_all()
        xdp_fd, select_fd = (fds.pop(name) for name in _PROGRAMS)
        return RelayPrograms(Loaded(xdp_fd, select_fd, fds))

    def remove(self) -> None:
        """Remove every pin. The kernel frees what nothing else holds."""
        for directory in (self.path, self.path.with_name(f"{self.path.name}_new")):
            shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            _ROOT.rmdir()  # not while another relay has pins

    def _check_version(self, fds: dict[str, int]) -> None:
        """``settings`` begins with the ABI version, whatever follows in it."""
        if "settings" not in fds:
            return
        version = read_abi_version(fds["settings"])
        # 0: loaded, and never configured
        if version not in (0, ABI_VERSION):
            raise AbiMismatchError(
                f"the data path in {self.path} has ABI version {version}, this relayctl has {ABI_VERSION}; "
                + self._way_out()
            )

    def _way_out(self) -> str:
        return (
            "stop it with the relayctl that started it, or end its calls with `relayctl bpf unload --force`"
        )


def _make_below_root(directory: Path) -> None:
    """Make it; a relay that ends takes ``_ROOT`` away while it is empty, perhaps just now. Raises OSError."""
    for attempts_left in reversed(range(_ROOT_ATTEMPTS)):
        _ROOT.mkdir(mode=0o700, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileNotFoundError:
            if not attempts_left:
                raise
        else:
            return


def pinned_programs() -> Iterator[tuple[Path, int]]:
    """Every XDP program that a relay of this machine has pinned: its pin and its id."""
    pins: list[Path] = []
    with contextlib.suppress(FileNotFoundError, PermissionError):
        # glob() would end at a directory that its relay removes meanwhile
        for directory in sorted(_ROOT.iterdir()):
            with contextlib.suppress(OSError):
                pins += sorted(pin for pin in directory.iterdir() if pin.name.startswith("xdp_ingress"))
    for pin in pins:
        with contextlib.suppress(OSError):
            fd = syscall.open_pin(str(pin))
            try:
                yield pin, syscall.program_info(fd).id
            finally:
                os.close(fd)


def read_abi_version(settings_fd: int) -> int:
    """The first number in the map of settings, of any version. Raises OSError."""
    info = syscall.map_info(settings_fd)
    key, value = ctypes.c_uint32(0), (ctypes.c_uint32 * (info.value_size // 4 + 1))()
    syscall.MapElements(settings_fd, key, value).lookup()
    return int(value[0])


def _check_maps(directory: Path, fds: dict[str, int], way_out: str = "") -> None:
    """BCC takes up a pinned map of another size without a word; this does not. Raises AbiMismatchError."""
    for name, fd in fds.items():
        found, layout = syscall.map_info(fd), MAPS[name]
        bpf_map = BpfMap(fd, layout)
        is_ours = (found.kind, found.key_size, found.value_size) == (
            layout.kind.number,
            bpf_map.key_size,
            bpf_map.value_size,
        )
        if not is_ours:
            raise AbiMismatchError(
                f"{directory / name} is a map of kind {found.kind} with key and value of {found.key_size} and "
                f"{found.value_size} bytes; ABI version {ABI_VERSION} has kind {layout.kind.number}, "
                f"{bpf_map.key_size} and {bpf_map.value_size}; {way_out}"
            )


def _check_owner(directory: Path) -> None:
    """Everybody may make directories in bpffs; one of theirs is no place for our pins. Raises OperatorError."""
    try:
        found = directory.stat()
    except OSError as error:
        raise OperatorError(f"cannot read {directory} ({error.strerror}); run as root") from None
    if found.st_uid != os.geteuid():
        raise OperatorError(
            f"{directory} belongs to user id {found.st_uid}; run as root, or remove it if root did not make it"
        )
    if found.st_mode & 0o022:
        raise OperatorError(f"others may write to {directory}; run `chmod 700 {directory}` if it is yours")


def _mount_bpffs() -> None:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    if any(mount[1:3] == [str(BPFFS), "bpf"] for mount in mounts):
        return
    mounted = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise BpfUnavailableError(
            f"{BPFFS} is not mounted and cannot be ({mounted.stderr.strip()}); run `mount -t bpf bpf {BPFFS}` as root"
        )
