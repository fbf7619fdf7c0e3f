"""Admin messages: one JSON object a line, cut out of any stream."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wire.admin
from tests.wire.network import fault_of
from wire.admin import MAX_LINE_BYTES, LineReader, Message, decode_message_untrusted, encode_message
from wire.errors import WireFault

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=5)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        pytest.param({}, b"{}\n", id="empty"),
        pytest.param(
            {"id": 1, "method": "flows", "params": {"after": None}},
            b'{"id":1,"method":"flows","params":{"after":null}}\n',
            id="request",
        ),
        pytest.param(
            {"event": "a\nb\u2028ä"}, b'{"event":"a\\nb\\u2028\\u00e4"}\n', id="newlines inside are escaped"
        ),
    ],
)
def test_message_is_one_line(message: Message, line: bytes) -> None:
    assert encode_message(message) == line
    assert decode_message_untrusted(line) == message


@given(MESSAGES)
def test_message_is_read_back_from_one_line(message: Message) -> None:
    line = encode_message(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_message_untrusted(line) == message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_that_json_lacks_is_sent(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_message({"rate": value})


@pytest.mark.parametrize(
    "line",
    [
        pytest.param('{"id":1}', id="ASCII"),
        pytest.param(' {"id" : 1 }\r', id="spaces and carriage return"),
        pytest.param('{"id":1,"who":"Jürgen"}', id="UTF-8"),
    ],
)
def test_lines_of_other_writers_are_read(line: str) -> None:
    assert decode_message_untrusted(line.encode())["id"] == 1


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty line"),
        pytest.param(b"flows", id="bare word"),
        pytest.param(b'{"id":1', id="cut short"),
        pytest.param(b'{"id":1}{"id":2}', id="two objects in a line"),
        pytest.param(b"{'id':1}", id="single quotes"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"1", id="number"),
        pytest.param(b'"flows"', id="string"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"id":"\xff"}', id="not UTF-8"),
        pytest.param(b"\x00", id="zero byte"),
        pytest.param(b"[" * 100_000, id="lists too deep"),
        pytest.param(b'{"a":' * 100_000, id="objects too deep"),
        pytest.param(b'{"id":' + b"9" * 5000 + b"}", id="integer of 5000 digits"),
        pytest.param(
            '{"id":1}'.encode("utf-16"),
            id="UTF-16",
        ),
        pytest.param(
            '{"id":1}'.encode("utf-32-be"),
            id="UTF-32",
        ),
        pytest.param(
            b'{"id":NaN}',
            id="NaN",
        ),
        pytest.param(
            b'{"id":-Infinity}',
            id="infinity",
        ),
        pytest.param(
            b'{"id":1e999}',
            id="number beyond a double",
        ),
    ],
)
def test_no_message_is_refused(line: bytes) -> None:
    assert fault_of(decode_message_untrusted, line) is WireFault.ADMIN_MALFORMED


@given(st.binary() | st.text('{}[]",:01aeEnNIu\\-. ').map(str.encode))
def test_any_bytes_raise_only_admin_malformed(line: bytes) -> None:
    fault = fault_of(decode_message_untrusted, line)
    assert fault in {None, WireFault.ADMIN_MALFORMED}
    if fault is None:
        message: Any = decode_message_untrusted(line)
        assert isinstance(message, dict)


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_stream_may_be_cut_anywhere(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode_message, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8), label="cuts"))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = LineReader()
    assert [message for piece in pieces for message in reader.feed(piece)] == messages


def test_unfinished_line_waits_for_its_newline() -> None:
    reader = LineReader()
    assert reader.feed(b"") == []
    assert reader.feed(b'{"id":1}') == []
    assert reader.feed(b'\n{"id":2}\n{"id"') == [{"id": 1}, {"id": 2}]
    assert reader.feed(b":3}\n") == [{"id": 3}]


def test_bad_line_in_a_stream_is_refused() -> None:
    assert fault_of(LineReader().feed, b'{"id":1}\nflows\n') is WireFault.ADMIN_MALFORMED


@pytest.mark.parametrize("piece_bytes", [1, 7, 64], ids="pieces of {}".format)
def test_endless_line_is_refused_at_the_bound(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.admin, "MAX_LINE_BYTES", 63)
    reader, held = LineReader(), 0
    while held + piece_bytes <= 63:
        assert reader.feed(b" " * piece_bytes) == []
        held += piece_bytes
    assert fault_of(reader.feed, b" " * piece_bytes) is WireFault.ADMIN_MALFORMED


def test_line_of_the_full_size_is_read() -> None:
    reader = LineReader()
    assert reader.feed(b'{"id":1' + b" " * (MAX_LINE_BYTES - 8)) == []
    assert reader.feed(b"}\n") == [{"id": 1}]
