"""What tests measured, for people: shown at the end of the run, whichever process measured it."""

_lines: list[str] = []


def note_measured(line: str) -> None:
    """One line; it belongs to the test that runs now."""
    _lines.append(line)


def take_measured() -> list[str]:
    """Those since the last call."""
    taken = list(_lines)
    _lines.clear()
    return taken
