"""Which sessions an operator means by the first letters of their ids. Pure."""

from collections.abc import Collection, Sequence

from host.errors import OperatorError

_SHORTEST = 8
_MAX_SHOWN = 8
_HEX = frozenset("0123456789abcdef")


def find_sessions(known: Collection[str], wanted: Sequence[str], hint: str = "") -> list[str]:
    """The whole ids, each once. Raises OperatorError, ended by ``hint``, unless each of ``wanted`` begins just one."""
    found = []
    for prefix in wanted:
        letters = prefix.lower()
        if not letters or not _HEX.issuperset(letters):
            raise OperatorError(
                f"{prefix!r} is no session: name its id, or the first letters of it (0-9, a-f)"
            )
        matches = sorted(session for session in known if session.startswith(letters))
        if not matches:
            raise OperatorError(
                f"no session {prefix!r} here; `relayctl sessions` lists those that there are{hint}"
            )
        if len(matches) > 1:
            shown = ", ".join(matches[:_MAX_SHOWN])
            more = f" and {len(matches) - _MAX_SHOWN} more" if len(matches) > _MAX_SHOWN else ""
            raise OperatorError(f"{prefix!r} may be any of {shown}{more}; write more letters")
        found += matches
    return list(dict.fromkeys(found))


def short_length(known: Collection[str]) -> int:
    """How many first letters tell all of these ids apart, at least 8."""
    longest = max(map(len, known), default=_SHORTEST)
    distinct = len(set(known))
    return next(
        (n for n in range(_SHORTEST, longest) if len({session[:n] for session in known}) == distinct), longest
    )
