"""XDP programs on network interfaces: attached, replaced, detached and named by netlink (pyroute2)."""

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import psutil
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host.errors import ConfigError, OperatorError
from relay.dataplane.bpf.errors import BpfUnavailableError, ForeignProgramError
from relay.dataplane.bpf.pins import pinned_programs
from relay.dataplane.bpf.syscall import open_pin, open_program, program_info

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# linux/if_link.h
_IF_NOEXIST, _SKB_MODE, _DRV_MODE, _REPLACE = 1, 2, 4, 16
_DETACH_FD = -1


class XdpMode(StrEnum):
    """Where the program runs: in the NIC's driver, or, slower, where the kernel has made its packet already."""

    NATIVE = "native"
    GENERIC = "generic"

    @property
    def flag(self) -> int:
        """Its bit in IFLA_XDP_FLAGS."""
        return _DRV_MODE if self is XdpMode.NATIVE else _SKB_MODE


_MODES = {"xdp": XdpMode.NATIVE, "xdpgeneric": XdpMode.GENERIC}


# What `ip link set` calls it.
_OFF: dict[str, str] = {XdpMode.NATIVE: "xdpdrv", XdpMode.GENERIC: "xdpgeneric"}


class Attachment(NamedTuple):
    """A program on an interface. ``why`` tells why it is not native."""

    interface: str
    mode: str
    program_id: int
    why: str = ""


def _outside_event_loop(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """pyroute2 runs an event loop of its own, which it cannot in a thread that runs one already: so in another, awaited."""

    @functools.wraps(function)
    def in_thread(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args, **kwargs).result()

    return in_thread


@_outside_event_loop
def attachments() -> list[Attachment]:
    """Every XDP program of this network namespace."""
    with IPRoute() as ip:
        return [attachment for link in ip.get_links() for attachment in _attachments_of(link)]


@_outside_event_loop
def check_interface(interface: str, our_programs: set[int]) -> None:
    """Raises ConfigError if there is none of that name, ForeignProgramError if it has a program that is not ours."""
    with IPRoute() as ip:
        _check_foreign(_find(ip, interface), our_programs)


@_outside_event_loop
def attach(interface: str, program_fd: int, modes: tuple[XdpMode, ...], our_programs: set[int]) -> Attachment:
    """Put the program on the interface, in the first mode that its driver takes; one of ours there is replaced in place.

    Raises ConfigError, ForeignProgramError, or BpfUnavailableError if no mode is taken.
    """
    wanted, refused = program_info(program_fd).id, ""
    with IPRoute(ext_ack=True) as ip:
        link = _find(ip, interface)
        _check_foreign(link, our_programs)
        ours = next(_attachments_of(link), None)
        if ours is not None and ours.program_id == wanted:
            return ours
        for mode in [XdpMode(ours.mode)] if ours else modes:
            try:
                _set(ip, link["index"], program_fd, mode, ours.program_id if ours else None)
            except NetlinkError as error:
                if error.code == errno.EPERM:
                    raise BpfUnavailableError("XDP cannot be attached; CAP_NET_ADMIN is needed") from None
                refused = f"{mode} XDP is refused ({_words(error)})"
                continue
            return Attachment(interface, mode, wanted, refused)
    raise BpfUnavailableError(f"{interface}: {refused}")


def _words(error: NetlinkError) -> str:
    """The error's name, and what the kernel or the driver adds to it (an extended ACK)."""
    name, said = os.strerror(error.code), str(error.args[1])
    return name if said == name else f"{name}: {said}"


@_outside_event_loop
def detach(our_programs: set[int], interface: str | None = None) -> list[str]:
    """Take our programs off one interface, or every one of this namespace; returns the interfaces' names."""
    detached = []
    with IPRoute() as ip:
        for link in ip.get_links():
            for attachment in _attachments_of(link):
                if attachment.program_id not in our_programs or interface not in (None, attachment.interface):
                    continue
                with _interface_may_go():
                    _set(ip, link["index"], _DETACH_FD, XdpMode(attachment.mode), attachment.program_id)
                    detached.append(attachment.interface)
    return detached


@contextlib.contextmanager
def _interface_may_go() -> Iterator[None]:
    """Its programs went with it."""
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise OperatorError(f"XDP cannot be taken off ({os.strerror(error.code)})") from None


def _find(ip: Any, interface: str) -> Any:
    for link in ip.get_links():
        if link.get_attr("IFLA_IFNAME") == interface:
            return link
    raise ConfigError("relay.interfaces", f"no interface {interface!r} here; `ip link` lists them")


def _attachments_of(link: Any) -> Iterator[Attachment]:
    xdp = link.get_attr("IFLA_XDP")
    program_id = xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None
    if program_id:
        mode = xdp.get_attr("IFLA_XDP_ATTACHED")
        yield Attachment(link.get_attr("IFLA_IFNAME"), _MODES.get(mode, mode), program_id)


def _check_foreign(link: Any, our_programs: set[int]) -> None:
    for attachment in _attachments_of(link):
        if attachment.program_id not in our_programs:
            raise ForeignProgramError(
                f"relay.interfaces: {attachment.interface} has an XDP program already: "
                f"{_describe_program(attachment.program_id)}; remove it "
                f"(`ip link set dev {attachment.interface} {_OFF.get(attachment.mode, 'xdp')} off`) or leave the interface out"
            )


def _set(ip: Any, index: int, program_fd: int, mode: XdpMode, expected_id: int | None) -> None:
    """Raises NetlinkError, also if the interface has not the program that is expected."""
    attributes = [("IFLA_XDP_FD", program_fd)]
    if expected_id is None:
        attributes.append(("IFLA_XDP_FLAGS", mode.flag | _IF_NOEXIST))
        ip.link("set", index=index, xdp={"attrs": attributes})
        return
    try:
        expected_fd = _open_ours(expected_id)
    except PermissionError:  # neither pinned nor ours to open: it was there a moment ago
        ip.link("set", index=index, xdp={"attrs": [*attributes, ("IFLA_XDP_FLAGS", mode.flag)]})
        return
    try:
        attributes += [("IFLA_XDP_FLAGS", mode.flag | _REPLACE), ("IFLA_XDP_EXPECTED_FD", expected_fd)]
        ip.link("set", index=index, xdp={"attrs": attributes})
    finally:
        os.close(expected_fd)


def _open_ours(program_id: int) -> int:
    """By its pin, which needs no CAP_SYS_ADMIN, or by its id. Raises OSError."""
    for pin, pinned_id in pinned_programs():
        if pinned_id == program_id:
            return open_pin(str(pin))
    return open_program(program_id)


def _describe_program(program_id: int) -> str:
    for pin, pinned_id in pinned_programs():
        if pinned_id == program_id:
            return f"that of another relayctl, pinned in {pin.parent}"
    try:
        fd = open_program(program_id)
    except OSError:
        return f"program id {program_id}"
    try:
        info = program_info(fd)
    except OSError:
        return f"program id {program_id}"
    finally:
        os.close(fd)
    holders = ", ".join(_holders(program_id)) or "no process; it was left attached"
    return f"{info.name!r}, id {program_id}, tag {info.tag}, loaded by user id {info.loaded_by_uid}, held by {holders}"


def _holders(program_id: int) -> Iterator[str]:
    """Processes with a descriptor of the program."""
    for process in psutil.process_iter(["pid", "name"]):
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            for fdinfo in Path(f"/proc/{process.pid}/fdinfo").iterdir():
                if f"\nprog_id:\t{program_id}\n" in fdinfo.read_text():
                    yield f"pid {process.pid} ({process.info['name']})"
                    break
