"""``bpf/include/verdict.h`` as a C compiler reads it, against ``relay/core/verdict.py``."""

import re
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from relay.core.verdict import FlowEvent, Verdict

INCLUDE = Path(__file__).parents[2] / "bpf" / "include"
PREPROCESS = ["cc", "-E", "-P", str(INCLUDE / "verdict.h")]


def names_in_c(enum: str) -> list[str]:
    """Enumerators of ``enum`` in the order of the header, comments gone."""
    text = subprocess.run(PREPROCESS, check=True, capture_output=True, text=True).stdout
    body = re.search(rf"enum {enum} {{(.*?)}}", text, re.DOTALL)
    assert body is not None, f"no enum {enum} in verdict.h"
    return re.findall(r"[A-Z]\w*", body[1])


def values_in_c(names: list[str], directory: Path) -> dict[str, int]:
    """What each name is worth to a program that includes the header, twice."""
    prints = "".join(f'\tprintf("{name}=%d\\n", (int){name});\n' for name in names)
    source, program = directory / "values.c", directory / "values"
    source.write_text(
        '#include <stdio.h>\n#include "verdict.h"\n#include "verdict.h"\n'
        f"int main(void)\n{{\n{prints}\treturn 0;\n}}\n"
    )
    subprocess.run(["cc", "-Wall", "-Werror", "-I", INCLUDE, "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in printed.splitlines())}


@pytest.mark.parametrize(
    ("enum", "count", "python"),
    [
        pytest.param("verdict", "VERDICT_COUNT", Verdict, id="verdict"),
        pytest.param("flow_event", "FLOW_EVENT_COUNT", FlowEvent, id="flow_event"),
    ],
)
def test_c_and_python_have_the_same_list(
    enum: str, count: str, python: type[IntEnum], tmp_path: Path
) -> None:
    expected = {member.name: member.value for member in python} | {count: len(python)}
    assert values_in_c(names_in_c(enum), tmp_path) == expected


@pytest.mark.parametrize("python", [Verdict, FlowEvent])
def test_numbers_are_indexes(python: type[IntEnum]) -> None:
    assert [member.value for member in python] == list(range(len(python)))
