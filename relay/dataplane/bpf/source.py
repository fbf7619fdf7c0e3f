"""Our C as one text: BCC rewrites map operations in the main file only, so local includes are put into it."""

import re
from importlib.resources import files
from pathlib import Path

_LOCAL_INCLUDE = re.compile(r'#include "([\w.]+)"')


def read_program(name: str) -> str:
    """The text of ``bpf/<name>.c`` with every local include in place and ``#line`` marks for the compiler's messages."""
    directory = Path(str(files("bpf")))
    return "\n".join(_inline(directory, directory / f"{name}.c", set())) + "\n"


def _inline(directory: Path, path: Path, seen: set[str]) -> list[str]:
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        include = _LOCAL_INCLUDE.fullmatch(line)
        if include is None:
            lines.append(line)
            continue
        if include[1] not in seen:
            seen.add(include[1])
            beside = directory / include[1]
            lines += _inline(
                directory, beside if beside.exists() else directory / "include" / include[1], seen
            )
        lines.append(f'#line {number + 1} "{path.name}"')
    return lines
