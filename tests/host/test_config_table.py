"""A configuration table: every value checked, every error naming its field, no key ignored."""

import math
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from host.config_table import ConfigTable
from host.errors import ConfigError
from wire.address import Address

Take = Callable[[ConfigTable], object]


def refusal(values: Any, take: Take) -> ConfigError:
    """The error that taking a value raises."""
    with pytest.raises(ConfigError) as caught:
        take(ConfigTable("relay", values))
    return caught.value


@pytest.mark.parametrize(
    ("value", "take", "expected"),
    [
        pytest.param(3, lambda t: t.take("key", int, 0), 3, id="int"),
        pytest.param(3.5, lambda t: t.take("key", float, 0.0), 3.5, id="float"),
        pytest.param(3, lambda t: t.take("key", float, 0.0), 3.0, id="a whole number is a number"),
        pytest.param("x", lambda t: t.take("key", str, ""), "x", id="str"),
        pytest.param(True, lambda t: t.take("key", bool, False), True, id="bool"),
        pytest.param(1, lambda t: t.take_int("key", 5, low=1, high=9), 1, id="lower bound"),
        pytest.param(9, lambda t: t.take_int("key", 5, low=1, high=9), 9, id="upper bound"),
        pytest.param(0, lambda t: t.take_seconds("key", 5.0), 0.0, id="zero seconds"),
        pytest.param(
            "203.0.113.10:3478",
            lambda t: t.take_address("key", "127.0.0.1:1"),
            Address(bytes((203, 0, 113, 10)), 3478),
            id="IPv4 address",
        ),
        pytest.param(
            ["127.0.0.1:1", "[::1]:2"],
            lambda t: t.take_addresses("key", []),
            (Address.parse("127.0.0.1:1"), Address.parse("[::1]:2")),
            id="addresses in order",
        ),
        pytest.param(
            ["10.0.0.0/8", "2001:db8::/32", "10.1.2.3"],
            lambda t: t.take_networks("key", []),
            (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"), ip_network("10.1.2.3/32")),
            id="networks",
        ),
        pytest.param(["a", "b"], lambda t: t.take_strings("key"), ("a", "b"), id="strings"),
        pytest.param("xdp", lambda t: t.take_choice("key", "auto", ["auto", "xdp"]), "xdp", id="choice"),
        pytest.param("/a/b", lambda t: t.take_path("key", None), Path("/a/b"), id="path"),
        pytest.param("", lambda t: t.take_path("key", Path("/d")), Path("/d"), id="empty path: default"),
    ],
)
def test_value_is_taken(value: Any, take: Take, expected: object) -> None:
    table = ConfigTable("relay", {"key": value})
    taken = take(table)
    assert taken == expected
    assert type(taken) is type(expected)
    table.finish()


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:80"])
def test_wildcard_is_taken_where_it_is_allowed(text: str) -> None:
    table = ConfigTable("transceiver", {"http": text})
    assert str(table.take_address("http", "127.0.0.1:1", wildcard=True)) == text


def test_absent_keys_give_their_defaults() -> None:
    table = ConfigTable("relay", {})
    assert table.take_int("a", 7, low=1, high=9) == 7
    assert table.take_seconds("b", 1.5) == 1.5
    assert table.take_address("c", "127.0.0.1:5") == Address.parse("127.0.0.1:5")
    assert table.take_networks("d", ["::1/128"]) == (ip_network("::1/128"),)
    assert table.take_strings("e") == ()
    assert table.take_path("f", None) is None
    assert table.take_choice("g", "auto", ["auto", "xdp"]) == "auto"
    table.finish()


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    assert ConfigTable("fleet", {"key": "~/k"}).take_path("key", None) == Path("/home/op/k")


@pytest.mark.parametrize(
    ("value", "take", "words"),
    [
        pytest.param("3", lambda t: t.take("key", int, 0), "a whole number, not '3'", id="string for int"),
        pytest.param(3.0, lambda t: t.take("key", int, 0), "a whole number, not 3.0", id="float for int"),
        pytest.param(True, lambda t: t.take("key", int, 0), "a whole number, not True", id="bool is no int"),
        pytest.param(True, lambda t: t.take("key", float, 0.0), "a number, not True", id="bool is no number"),
        pytest.param(1, lambda t: t.take("key", bool, False), "true or false, not 1", id="int is no bool"),
        pytest.param("true", lambda t: t.take("key", bool, False), "true or false", id="string is no bool"),
        pytest.param(5, lambda t: t.take("key", str, ""), "a string, not 5", id="int for string"),
        pytest.param("10.0.0.0/8", lambda t: t.take_networks("key", []), "a list, not", id="no list"),
        pytest.param({}, lambda t: t.take("key", int, 0), "a whole number, not {}", id="table for int"),
        pytest.param(True, lambda t: t.take_int("key", 1, low=0, high=9), "a whole number", id="bool bound"),
        pytest.param(0, lambda t: t.take_int("key", 5, low=1, high=9), "1 to 9, not 0", id="too low"),
        pytest.param(10, lambda t: t.take_int("key", 5, low=1, high=9), "1 to 9, not 10", id="too high"),
        pytest.param(-0.1, lambda t: t.take_seconds("key", 5.0), "0 or more, not -0.1", id="negative time"),
        pytest.param(math.nan, lambda t: t.take_seconds("key", 5.0), "0 or more, not nan", id="NaN seconds"),
        pytest.param(math.inf, lambda t: t.take_seconds("key", 5.0), "0 or more, not inf", id="endless time"),
        pytest.param("localhost:80", lambda t: t.take_address("key", ""), "literal IPv4", id="host name"),
        pytest.param("127.0.0.1", lambda t: t.take_address("key", ""), "ADDRESS:PORT", id="no port"),
        pytest.param("127.0.0.1:65536", lambda t: t.take_address("key", ""), "ADDRESS:PORT", id="high port"),
        pytest.param("::1:80", lambda t: t.take_address("key", ""), "brackets", id="IPv6 without brackets"),
        pytest.param("[fe80::1%eth0]:80", lambda t: t.take_address("key", ""), "scoped", id="scoped IPv6"),
        pytest.param("0.0.0.0:80", lambda t: t.take_address("key", ""), "wildcard", id="IPv4 wildcard"),
        pytest.param("[::]:80", lambda t: t.take_address("key", ""), "wildcard", id="IPv6 wildcard"),
        pytest.param(
            ["127.0.0.1:1", "0.0.0.0:2"],
            lambda t: t.take_addresses("key", []),
            "0.0.0.0:2 is a wildcard",
            id="wildcard in a list",
        ),
        pytest.param(
            ["[::ffff:0.0.0.0]:80"], lambda t: t.take_addresses("key", []), "wildcard", id="mapped wildcard"
        ),
        pytest.param(
            [80], lambda t: t.take_addresses("key", []), "a list of strings", id="ports for addresses"
        ),
        pytest.param(
            ["10.0.0.1/8"], lambda t: t.take_networks("key", []), "10.0.0.0/8", id="network with host bits"
        ),
        pytest.param(["lan"], lambda t: t.take_networks("key", []), "'lan'", id="no network"),
        pytest.param(["a", 1], lambda t: t.take_strings("key"), "a list of strings", id="mixed list"),
        pytest.param(
            "XDP",
            lambda t: t.take_choice("key", "auto", ["auto", "xdp"]),
            "needs to be one of auto, xdp, not 'XDP'",
            id="choice in capitals",
        ),
        pytest.param("", lambda t: t.take_choice("key", "a", ["a", "b"]), "a, b, not ''", id="empty choice"),
        pytest.param(1, lambda t: t.take_choice("key", "a", ["a"]), "a string, not 1", id="choice by number"),
        pytest.param(5, lambda t: t.take_path("key", None), "a string, not 5", id="path is a number"),
        pytest.param(
            "~no-such-user/k", lambda t: t.take_path("key", None), "no-such-user", id="home of nobody"
        ),
    ],
)
def test_wrong_value_is_refused_by_its_full_name(value: Any, take: Take, words: str) -> None:
    error = refusal({"key": value}, take)
    assert error.field == "relay.key"
    assert str(error).startswith("relay.key: ")
    assert words in str(error)


@pytest.mark.parametrize("values", [5, "listen", [], [{}], None], ids=repr)
def test_table_that_is_none_is_refused(values: Any) -> None:
    error = refusal(values, lambda table: table)
    assert error.field == "relay"
    assert "[relay]" in str(error)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        pytest.param("lisen", "did you mean 'listen'?", id="a letter missing"),
        pytest.param("Workers", "did you mean 'workers'?", id="capital"),
        pytest.param("max-session-s", "did you mean 'max_session_s'?", id="dashes"),
        pytest.param("zzz", "known here: listen, max_session_s, workers", id="nothing near"),
    ],
)
def test_unknown_key_is_refused_with_a_hint(key: str, hint: str) -> None:
    table = ConfigTable("relay", {key: 1, "workers": 2})
    table.take("workers", int, 1)
    table.take("listen", str, "")
    table.take("max_session_s", int, 1)
    with pytest.raises(ConfigError) as caught:
        table.finish()
    assert caught.value.field == f"relay.{key}"
    assert hint in str(caught.value)


def test_key_that_was_not_yet_taken_is_not_ignored() -> None:
    table = ConfigTable("relay", {"workers": 2})
    with pytest.raises(ConfigError):
        table.finish()
    table.take("workers", int, 1)
    table.finish()


def test_the_document_is_not_changed() -> None:
    values = {"workers": 2}
    ConfigTable("relay", values).take("workers", int, 1)
    assert values == {"workers": 2}
