"""The blocking end of a channel: for workers, which must never wait, and for the command line, which must never hang."""

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from host.channel import ChannelError
from host.line_socket import LineSocket
from wire.admin import MAX_LINE_BYTES, Message
from wire.errors import WireError

Pair = tuple[LineSocket, socket.socket]
Serve = Callable[..., None]

ITEM = "x" * 65_536
# What the kernel may hold of a UNIX stream (net.core.wmem_max is far below), ours, and one message more.
BOUND_BYTES = 4 * 1024 * 1024


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A line socket as a worker has it (non-blocking), and the supervisor's side by hand."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    line = LineSocket(ours)
    yield line, theirs
    line.close()
    theirs.close()


@pytest.fixture
def client() -> Iterator[Pair]:
    """A line socket as the command line has it (blocking, with a timeout)."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    line = LineSocket(ours)
    yield line, theirs
    line.close()
    theirs.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer one request after it has been read, in a thread: bytes to send, then perhaps the end."""
    threads: list[threading.Thread] = []

    def start(theirs: socket.socket, answer: bytes, *, close: bool = False) -> None:
        def run() -> None:
            theirs.recv(65_536)
            theirs.sendall(answer)
            if close:
                theirs.shutdown(socket.SHUT_RDWR)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def read_all(sock: socket.socket) -> bytes:
    """Everything that waits in a socket."""
    sock.setblocking(False)
    data = b""
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


# receiving


def test_messages_come_as_they_are_completed(pair: Pair) -> None:
    line, theirs = pair
    assert line.receive() == []
    theirs.sendall(b'{"event":"adopt"}\n{"id":1,')
    assert line.receive() == [{"event": "adopt"}]
    theirs.sendall(b'"method":"ping"}\n')
    assert line.receive() == [{"id": 1, "method": "ping"}]
    assert line.receive() == []


def test_other_side_gone_is_told_apart_from_silence(pair: Pair) -> None:
    line, theirs = pair
    assert line.receive() == []
    theirs.close()
    assert line.receive() is None


def test_reset_connection_counts_as_gone(pair: Pair) -> None:
    line, theirs = pair
    line.send({"event": "ready"})
    theirs.close()  # with unread data: ECONNRESET
    assert line.receive() is None


@pytest.mark.parametrize("data", [b"flows\n", b"[]\n", b"\n", b"\xff\n"], ids=repr)
def test_malformed_line_is_a_wire_error(pair: Pair, data: bytes) -> None:
    line, theirs = pair
    theirs.sendall(data)
    with pytest.raises(WireError):
        line.receive()


def test_endless_line_is_refused_at_the_bound(pair: Pair) -> None:
    line, theirs = pair
    sent = 0

    def send_more() -> list[Message] | None:
        nonlocal sent
        sent += theirs.send(b" " * 65_536)
        return line.receive()

    while sent <= MAX_LINE_BYTES - 65_536:
        assert send_more() == []
    with pytest.raises(WireError, match="more than"):
        all(send_more() == [] for _ in range(3))


# sending


def test_message_is_sent_as_a_line(pair: Pair) -> None:
    line, theirs = pair
    line.send({"event": "ready"})
    line.send({"id": 1, "result": "pong"})
    assert read_all(theirs) == b'{"event":"ready"}\n{"id":1,"result":"pong"}\n'


def test_reader_that_never_reads_costs_bounded_memory_and_never_blocks(pair: Pair) -> None:
    line, theirs = pair
    for number in range(400):
        line.send({"event": "flow_assured", "number": number, "item": ITEM})
    held = 0
    while piece := read_all(theirs):
        held += len(piece)
        line.flush()
    assert 1024 * 1024 <= held <= BOUND_BYTES, f"{held} bytes held for a peer that reads nothing"


def test_what_is_lost_is_whole_messages_and_the_rest_is_in_order(pair: Pair) -> None:
    line, theirs = pair
    for number in range(100):
        line.send({"number": number, "item": ITEM})
    received = b""
    while piece := read_all(theirs):
        received += piece
        line.flush()
    line.send({"number": "after"})
    received += read_all(theirs)
    numbers = [json.loads(text)["number"] for text in received.splitlines()]
    assert numbers[-1] == "after"
    assert numbers[:-1] == list(range(len(numbers) - 1))
    assert 1 < len(numbers) < 100


def test_sending_to_nobody_does_nothing(pair: Pair) -> None:
    line, theirs = pair
    theirs.close()
    line.send({"event": "ready"})
    line.flush()
    assert line.receive() is None


# requests


def test_request_returns_the_result(client: Pair, serve: Serve) -> None:
    line, theirs = client
    serve(theirs, b'{"id":1,"result":{"state":"running"}}\n')
    assert line.request("status", verbose=True) == {"state": "running"}


def test_request_as_it_stands_on_the_wire(client: Pair) -> None:
    line, theirs = client
    theirs.sendall(b'{"id":1,"result":null}\n')
    assert line.request("stop", drain_s=None) is None
    assert theirs.recv(1000) == b'{"id":1,"method":"stop","params":{"drain_s":null}}\n'


def test_events_and_answers_of_others_are_passed_over(client: Pair, serve: Serve) -> None:
    line, theirs = client
    serve(theirs, b'{"event":"news"}\n{"id":9,"result":"of another"}\n{"id":1,"result":"ours"}\n')
    assert line.request("status") == "ours"


def test_each_request_has_its_own_id(client: Pair) -> None:
    line, theirs = client
    theirs.sendall(b'{"id":1,"result":"first"}\n')
    assert line.request("a") == "first"
    theirs.sendall(b'{"id":1,"result":"again"}\n{"id":2,"result":"second"}\n')
    assert line.request("b") == "second"


def test_error_answer_raises_its_words(client: Pair, serve: Serve) -> None:
    line, theirs = client
    serve(theirs, b'{"id":1,"error":"no method \'x\'"}\n')
    with pytest.raises(ChannelError, match=r"^no method 'x'$"):
        line.request("x")


def test_silence_ends_with_the_timeout() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.05)
        with pytest.raises(ChannelError, match="no answer to 'status'"):
            LineSocket(ours).request("status")


@pytest.mark.parametrize("answer", [b"", b'{"id":1,"res'], ids=["nothing", "half an answer"])
def test_close_instead_of_an_answer_is_told(client: Pair, serve: Serve, answer: bytes) -> None:
    line, theirs = client
    serve(theirs, answer, close=True)
    with pytest.raises(ChannelError, match="closed the connection"):
        line.request("status")


def test_request_to_nobody_is_told(client: Pair) -> None:
    line, theirs = client
    theirs.close()
    with pytest.raises(ChannelError, match="connection"):
        line.request("status")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"[]\n", id="no object"),
        pytest.param(b" " * (MAX_LINE_BYTES + 1), id="oversized"),
    ],
)
def test_answer_that_is_no_message_raises_what_operators_can_read(
    client: Pair, serve: Serve, answer: bytes
) -> None:
    """`request` promises ChannelError; anything else is a traceback on the command line."""
    line, theirs = client
    serve(theirs, answer)
    with pytest.raises(ChannelError):
        line.request("status")
    line.close()
