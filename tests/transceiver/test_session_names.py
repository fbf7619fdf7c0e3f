"""Sessions by the first letters of their ids: whole, short, unknown, ambiguous."""

import pytest

from host.errors import OperatorError
from transceiver.session_names import find_sessions, short_length

KNOWN = ("1e73bfe12860a6b1", "1e73bfe1aaaaaaaa", "d77bb77b30e79af6")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("d",), [KNOWN[2]]),
        (("D77B",), [KNOWN[2]]),
        ((KNOWN[0],), [KNOWN[0]]),
        (("1e73bfe12", "1e73bfe1a"), [KNOWN[0], KNOWN[1]]),
        (("d7", "1e73bfe12", "d77"), [KNOWN[2], KNOWN[0]]),
        ((), []),
    ],
    ids=str,
)
def test_found(wanted: tuple[str, ...], found: list[str]) -> None:
    assert find_sessions(KNOWN, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("",), "'' is no session"),
        (("xyz",), "'xyz' is no session: name its id"),
        (("d77 ",), "is no session"),
        (("e",), "no session 'e' here; `relayctl sessions` lists those that there are, but one"),
        ((KNOWN[0] + "0",), "no session"),
        (("1e73bfe1",), f"'1e73bfe1' may be any of {KNOWN[0]}, {KNOWN[1]}; write more letters"),
        (("d77", "1"), "'1' may be any of"),
    ],
    ids=str,
)
def test_refused(wanted: tuple[str, ...], words: str) -> None:
    with pytest.raises(OperatorError) as refused:
        find_sessions(KNOWN, wanted, ", but one")
    assert words in str(refused.value)


def test_long_list_of_matches_is_cut() -> None:
    with pytest.raises(OperatorError, match=r"0000000000000007 and 2 more; write"):
        find_sessions([f"{index:016x}" for index in range(10)], ["0"])


@pytest.mark.parametrize(
    ("known", "length"),
    [((), 8), (KNOWN[2:], 8), (KNOWN[1:], 8), (KNOWN, 9), ((KNOWN[0], KNOWN[0][:-1] + "0"), 16)],
    ids=str,
)
def test_short_ids_tell_all_apart(known: tuple[str, ...], length: int) -> None:
    assert short_length(known) == length
    assert len({session[:length] for session in known}) == len(known)
