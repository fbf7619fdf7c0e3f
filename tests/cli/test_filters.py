"""--client and --where: which rows pass, and what is said of a condition that cannot be."""

from typing import Any

import pytest

from cli.filters import RowFilter
from host.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"client": "203.0.113.7:5000", "state": "assured", "packets": 5, "idle_s": 0.5, "on": True, "slot": None},
    {
        "client": "203.0.113.7:5001",
        "state": "provisional",
        "packets": 50,
        "idle_s": 2.0,
        "on": False,
        "slot": 1,
    },
    {
        "client": "[2001:db8::7]:5000",
        "state": "assured",
        "packets": 500,
        "idle_s": 9.0,
        "on": True,
        "slot": 2,
    },
]


@pytest.mark.parametrize(
    ("client", "conditions", "passing"),
    [
        (None, (), [0, 1, 2]),
        ("203.0.113.7", (), [0, 1]),
        ("203.0.113.7:5001", (), [1]),
        ("2001:db8::7", (), [2]),
        ("2001:0db8::0:7", (), [2]),
        ("[2001:db8::7]:5000", (), [2]),
        ("203.0.113.8", (), []),
        (None, ("state=assured",), [0, 2]),
        (None, ("state!=assured",), [1]),
        (None, ("state = assured",), [0, 2]),
        (None, ("packets=50",), [1]),
        (None, ("packets>49",), [1, 2]),
        (None, ("packets>50",), [2]),
        (None, ("packets>=50",), [1, 2]),
        (None, ("packets<50",), [0]),
        (None, ("packets<=50",), [0, 1]),
        (None, ("idle_s<2.5",), [0, 1]),
        (None, ("on=true",), [0, 2]),
        (None, ("slot=-",), [0]),
        (None, ("slot!=-",), [1, 2]),
        (None, ("slot<2",), [1]),
        (None, ("slot!=1",), [0, 2]),
        (None, ("state=assured", "packets>5"), [2]),
        ("203.0.113.7", ("state=assured",), [0]),
        (None, ("client=203.0.113.7:5000",), [0]),
    ],
)
def test_rows_that_pass(client: str | None, conditions: tuple[str, ...], passing: list[int]) -> None:
    assert RowFilter(client, conditions).apply(ROWS) == [ROWS[index] for index in passing]


@pytest.mark.parametrize(
    ("client", "conditions", "said"),
    [
        ("example.org", (), "--client: 'example.org' is no IP address"),
        ("203.0.113.7:99999", (), "--client"),
        (None, ("state",), "--where: 'state' is no condition; write FIELD=VALUE"),
        (None, ("=assured",), "is no condition"),
        (None, ("",), "is no condition"),
    ],
)
def test_wrong_filters_are_refused_before_anything_is_read(
    client: str | None, conditions: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        RowFilter(client, conditions)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("client", "conditions", "said"),
    [
        (None, ("colour=red",), "no field 'colour' here; there are client, state, packets"),
        (None, ("packets>many",), "'many' is no number"),
    ],
)
def test_conditions_that_fit_no_row_are_refused(
    client: str | None, conditions: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        RowFilter(client, conditions).apply(ROWS)
    assert said in str(refused.value)


def test_rows_without_a_client_cannot_be_asked_for_one() -> None:
    with pytest.raises(ConfigError, match="have no client"):
        RowFilter("203.0.113.7", ()).apply([{"slot": 1}])
    assert RowFilter("203.0.113.7", ("any=1",)).apply([]) == []
