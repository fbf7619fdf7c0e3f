"""The ctypes mirror has every field of abi.h at its place; needs a C compiler, and no root."""

import ctypes
import re
import subprocess
from enum import EnumType
from pathlib import Path
from typing import Any

import pytest

from relay.dataplane.bpf import abi

_INCLUDE = Path(__file__).parents[2] / "bpf" / "include"
_HEADER = re.sub(r"/\*.*?\*/", "", (_INCLUDE / "abi.h").read_text(), flags=re.DOTALL)
_CONSTANTS = [
    *re.findall(r"^#define ([A-Z_]+) \S", _HEADER, flags=re.MULTILINE),
    *re.findall(r"^\t([A-Z_]+)(?: = \d+)?,$", _HEADER, flags=re.MULTILINE),
]
_ENUMS: list[Any] = [
    kind for kind in vars(abi).values() if isinstance(kind, EnumType) and kind.__module__ == abi.__name__
]


def facts(struct: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    """Offset and size of every field, and of the whole, as ctypes has them."""
    fields = {name: getattr(struct, name) for name, *_ in struct._fields_}
    return {name: (field.offset, field.size) for name, field in fields.items()} | {
        "": (0, ctypes.sizeof(struct))
    }


@pytest.fixture(scope="module")
def c_facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[int, int]]]:
    """The same from the C compiler, and the constants under the name of no struct."""
    directory = tmp_path_factory.mktemp("abi")
    lines = []
    for name, struct in abi.STRUCTS.items():
        lines.append(f'printf("{name}  0 %zu\\n", sizeof(struct {name}));')
        for field, *_ in struct._fields_:
            place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name} {field} %zu %zu\\n", {place});')
    for constant in _CONSTANTS:
        lines.append(f'printf("- {constant} 0 %zu\\n", (size_t){constant});')
    source = directory / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{_INCLUDE}/abi.h"\nint main(void) {{ {" ".join(lines)} return 0; }}\n'
    )
    subprocess.run(["cc", "-Wall", "-Werror", "-o", directory / "layout", source], check=True)
    told: dict[str, dict[str, tuple[int, int]]] = {}
    for line in subprocess.check_output([directory / "layout"], text=True).splitlines():
        struct_name, field, offset, size = line.split(" ")
        told.setdefault(struct_name, {})[field] = (int(offset), int(size))
    return told


@pytest.mark.parametrize("name", sorted(abi.STRUCTS))
def test_every_field_has_its_place(c_facts: dict[str, dict[str, tuple[int, int]]], name: str) -> None:
    assert facts(abi.STRUCTS[name]) == c_facts[name]


@pytest.mark.parametrize("name", sorted(abi.STRUCTS))
def test_no_struct_has_hidden_padding(name: str) -> None:
    """BCC would fill a gap with a field of its own."""
    sizes = [size for field, (_, size) in facts(abi.STRUCTS[name]).items() if field]
    assert sum(sizes) == ctypes.sizeof(abi.STRUCTS[name])


def test_constants_are_the_same(c_facts: dict[str, dict[str, tuple[int, int]]]) -> None:
    members = {name: member.value for kind in _ENUMS for name, member in kind.__members__.items()}
    in_c = {name: value for name, (_, value) in c_facts["-"].items()}
    assert set(members) <= set(in_c)
    counts = {"CORE_CHOICE_COUNT": len(abi.CoreChoice), "DIRECTION_COUNT": len(abi.Direction)}
    assert in_c == {name: ({**members, **counts}).get(name, getattr(abi, name, None)) for name in in_c}
    assert {"ABI_VERSION", "UFRAG_TAG_BYTES", "COUNTER_CELLS", "FLOW_IS_RELEASED", "SIDE_FLEET"} <= set(in_c)


def test_every_struct_of_the_header_is_mirrored() -> None:
    declared = {
        line.split()[1]
        for line in (_INCLUDE / "abi.h").read_text().splitlines()
        if line.startswith("struct ")
    }
    assert declared == set(abi.STRUCTS)
