"""The maps of maps.h, read as text, against ``abi.MAPS``: what BCC makes is what Python opens."""

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from relay.dataplane.bpf import abi
from relay.dataplane.bpf.abi import MAPS, REUSEPORT_SOCKARRAY, MapLayout

INCLUDE = Path(__file__).parents[2] / "bpf" / "include"
# linux/bpf.h is the kernel's word on numbers.
UAPI = Path("/usr/include/linux/bpf.h")
_DECLARED = re.compile(
    r"BPF_(?:F_TABLE|TABLE|XDP_REDIRECT_MAP)\(KIND\(\"(?P<kind>\w+)\", \"(?P<pin>\w+)\"\),"
    r"(?:\s*(?P<key>[\w ]+),)?\s*(?P<value>[\w ]+),\s*(?P<symbol>\w+),\s*(?P<size>\w+)(?:,\s*(?P<flags>\w+))?\)"
)
_KEY_BY_BCC = "__u32"  # of a map to redirect by: its macro takes none
_NUMBERS = {ctypes.c_uint32: "__u32", ctypes.c_uint64: "__u64"}


def declared() -> dict[str, re.Match[str]]:
    """Each declaration under the name of its pin."""
    text = (INCLUDE / "maps.h").read_text()
    found = list(_DECLARED.finditer(text))
    assert len(found) == len(re.findall(r"^BPF_\w+\(", text, flags=re.MULTILINE)), "one was not understood"
    return {match["pin"]: match for match in found}


def c_type(python: Any) -> str:
    """What the type is called in C."""
    structs = {struct: f"struct {name}" for name, struct in abi.STRUCTS.items()}
    return structs[python] if python in structs else _NUMBERS[python]


MADE_BY_BCC = {name: layout for name, layout in MAPS.items() if layout.kind is not REUSEPORT_SOCKARRAY}


@pytest.mark.parametrize(("name", "layout"), MADE_BY_BCC.items(), ids=list(MADE_BY_BCC))
def test_map_is_the_same_in_c_and_python(name: str, layout: MapLayout) -> None:
    in_c = declared()[name]
    assert (in_c["kind"], in_c["key"] or _KEY_BY_BCC, *in_c.group("value", "symbol")) == (
        layout.kind.name,
        c_type(layout.key),
        c_type(layout.value),
        layout.symbol,
    )


def test_every_map_is_on_both_sides() -> None:
    assert set(declared()) == set(MADE_BY_BCC)
    assert len({layout.symbol for layout in MADE_BY_BCC.values()}) == len(MADE_BY_BCC)
    assert set(MAPS) - set(MADE_BY_BCC) == {"sockets"}
    assert MAPS["sockets"].symbol == "", "BCC cannot make it"


def test_pin_fits_the_name_that_the_kernel_keeps() -> None:
    assert all(len(name) < 16 for name in MAPS)  # BPF_OBJ_NAME_LEN


@pytest.mark.skipif(not UAPI.exists(), reason="no linux-libc-dev here")
def test_numbers_of_kinds_are_the_kernel_s() -> None:
    body = re.search(r"enum bpf_map_type {(.*?)};", UAPI.read_text(), flags=re.DOTALL)
    assert body is not None
    names = re.findall(r"^\t(BPF_MAP_TYPE_\w+)", body[1], flags=re.MULTILINE)
    kinds = {layout.kind for layout in MAPS.values()}
    assert {kind.name: names.index(f"BPF_MAP_TYPE_{kind.name.upper()}") for kind in kinds} == {
        kind.name: kind.number for kind in kinds
    }


def test_page_of_counters_may_be_mapped_by_a_worker() -> None:
    assert declared()["counters"]["flags"] == "BPF_F_MMAPABLE"
    assert declared()["counters"]["size"] == "MAX_SLOTS"
