"""The channel: requests, answers and events over a stream of lines, whatever the other side does."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from host.channel import STREAM_LIMIT, Channel, ChannelError
from host.errors import OperatorError
from tests.host.deadline import until
from wire.admin import Message, encode_message

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[..., Awaitable[tuple[Channel, "asyncio.Task[None]", Stream]]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """A running channel and the stream at its other end, by hand."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def connect(**handlers: Any) -> tuple[Channel, "asyncio.Task[None]", Stream]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT)
        peer = await asyncio.open_connection(sock=theirs, limit=STREAM_LIMIT)
        writers.extend((writer, peer[1]))
        channel = Channel(reader, writer, **handlers)
        task = asyncio.create_task(channel.run())
        tasks.append(task)
        return channel, task, peer

    yield connect
    for writer in writers:
        writer.transport.abort()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


async def pair(connect: Connect, **handlers: Any) -> tuple[Channel, Channel]:
    """Two channels that talk to each other; the handlers are the second one's."""
    first, _, (reader, writer) = await connect()
    second = Channel(reader, writer, **handlers)
    serving = asyncio.create_task(second.run())
    serving.add_done_callback(lambda task: None)
    return first, second


async def echo(method: str, params: dict[str, Any]) -> Any:
    return [method, params]


async def test_request_is_answered(connect: Connect) -> None:
    channel, _ = await pair(connect, on_request=echo)
    assert await channel.request("flows", limit=3, client=None) == ["flows", {"limit": 3, "client": None}]
    assert await channel.request("ping") == ["ping", {}]


async def test_request_as_it_stands_on_the_wire(connect: Connect) -> None:
    channel, _, (reader, writer) = await connect()
    asking = asyncio.create_task(channel.request("flows", limit=3))
    assert await reader.readline() == b'{"id":1,"method":"flows","params":{"limit":3}}\n'
    writer.write(b'{"id":1,"result":[]}\n')
    assert await asking == []


async def test_requests_go_both_ways_at_once(connect: Connect) -> None:
    async def ask_back(method: str, params: dict[str, Any]) -> Any:
        return await second.request("who")

    first, task, (reader, writer) = await connect(on_request=echo)
    second = Channel(reader, writer, on_request=ask_back)
    serving = asyncio.create_task(second.run())
    assert await first.request("relay") == ["who", {}]
    second.close()
    await asyncio.gather(serving, task)


async def test_answers_find_their_requests_in_any_order(connect: Connect) -> None:
    release: dict[str, asyncio.Event] = {name: asyncio.Event() for name in "abc"}

    async def wait_for(method: str, params: dict[str, Any]) -> str:
        await release[method].wait()
        return method

    channel, _ = await pair(connect, on_request=wait_for)
    asking = {name: asyncio.create_task(channel.request(name)) for name in "abc"}
    for name in "cab":
        release[name].set()
        assert await asking[name] == name


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(OperatorError("the disk is full"), "the disk is full", id="OperatorError"),
        pytest.param(ValueError("limit is no number"), "limit is no number", id="ValueError"),
        pytest.param(
            TypeError("f() got an unexpected keyword argument"),
            "'fail' does not take limits=1, who=None",
            id="TypeError",
        ),
    ],
)
async def test_error_of_a_method_is_its_answer(connect: Connect, error: Exception, told: str) -> None:
    async def fail(method: str, params: dict[str, Any]) -> Any:
        if method == "fail":
            raise error
        return "fine"

    channel, _ = await pair(connect, on_request=fail)
    with pytest.raises(ChannelError, match=f"^{told}$"):
        await channel.request("fail", limits=1, who=None)
    assert await channel.request("next") == "fine"


async def test_side_without_methods_says_so(connect: Connect) -> None:
    channel, _ = await pair(connect)
    with pytest.raises(ChannelError, match="no method 'flows'"):
        await channel.request("flows")


async def test_request_without_answer_times_out_and_its_late_answer_is_dropped(connect: Connect) -> None:
    channel, task, (reader, writer) = await connect()
    with pytest.raises(ChannelError, match=r"no answer to 'ping' within 0\.02 s"):
        await channel.request("ping", timeout_s=0.02)
    await reader.readline()
    asking = asyncio.create_task(channel.request("ping"))
    await reader.readline()
    writer.write(b'{"id":1,"result":"late"}\n{"id":7,"result":"of nobody"}\n{"id":2,"result":"pong"}\n')
    assert await asking == "pong"
    assert not task.done()


async def test_events_arrive_in_order_and_are_not_answered(connect: Connect) -> None:
    seen: list[Message] = []
    channel, second = await pair(connect, on_event=seen.append)
    for number in range(3):
        channel.send_event("flow_ended", number=number)
    await until(lambda: len(seen) == 3, "three events")
    assert seen == [{"event": "flow_ended", "number": number} for number in range(3)]
    second.close()


async def test_event_without_handler_is_ignored(connect: Connect) -> None:
    _, task, (reader, writer) = await connect(on_request=echo)
    writer.write(b'{"event":"news"}\n{"id":1,"method":"m"}\n')
    assert await reader.readline() == b'{"id":1,"result":["m",{}]}\n'
    assert not task.done()


async def test_peer_gone_fails_what_waits_and_what_follows(connect: Connect) -> None:
    channel, task, (_, writer) = await connect()
    asking = [asyncio.create_task(channel.request(name, timeout_s=60)) for name in "abc"]
    await asyncio.sleep(0)
    writer.close()
    for answer in await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5):
        assert isinstance(answer, ChannelError)
        assert str(answer) == "the other side is gone"
    await asyncio.wait_for(task, 5)
    with pytest.raises(ChannelError, match="gone"):
        await asyncio.wait_for(channel.request("d", timeout_s=60), 5)
    channel.send_event("nobody hears")


async def test_own_close_fails_what_waits(connect: Connect) -> None:
    channel, task, _ = await connect()
    asking = asyncio.create_task(channel.request("a", timeout_s=60))
    await asyncio.sleep(0)
    channel.close()
    with pytest.raises(ChannelError, match="gone"):
        await asyncio.wait_for(asking, 5)
    await asyncio.wait_for(task, 5)


async def test_peer_gone_ends_what_it_had_asked_for(connect: Connect) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def linger(method: str, params: dict[str, Any]) -> None:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended.set()

    _, _, (_, writer) = await connect(on_request=linger)
    writer.write(b'{"id":1,"method":"m"}\n')
    await asyncio.wait_for(started.wait(), 5)
    writer.close()
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"flows\n", id="no JSON"),
        pytest.param(b"\n", id="empty"),
        pytest.param(b"[1]\n", id="no object"),
        pytest.param(b"{}\n", id="neither event, request nor answer"),
        pytest.param(b'{"method":"m"}\n', id="request without id"),
        pytest.param(b'{"id":"1","method":"m"}\n', id="id is a string"),
        pytest.param(b'{"id":null,"result":1}\n', id="answer without id"),
        pytest.param(b'{"event":5}\n', id="event is no name"),
        pytest.param(b'{"id":"\xff"}\n', id="not UTF-8"),
        pytest.param(b'{"id":1,"method":"m"', id="cut off"),
        pytest.param(b" " * (STREAM_LIMIT + 1) + b"\n", id="oversized"),
        pytest.param(b" " * (STREAM_LIMIT * 2), id="endless"),
    ],
)
async def test_line_that_is_no_message_ends_the_channel_and_nothing_else(
    connect: Connect, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answered: list[str] = []

    async def answer(method: str, params: dict[str, Any]) -> None:
        answered.append(method)

    channel, task, (_, writer) = await connect(on_request=answer)
    asking = asyncio.create_task(channel.request("a", timeout_s=60))
    await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING), contextlib.suppress(ConnectionError):
        writer.write(line)
        writer.write_eof()
        await writer.drain()
    await asyncio.wait_for(task, 5)
    with pytest.raises(ChannelError, match="gone"):
        await asyncio.wait_for(asking, 5)
    assert answered == []
    assert "channel closed" in caplog.text


async def test_params_that_are_no_object_count_as_none(connect: Connect) -> None:
    _, _, (reader, writer) = await connect(on_request=echo)
    writer.write(b'{"id":1,"method":"m","params":[1]}\n')
    assert await reader.readline() == b'{"id":1,"result":["m",{}]}\n'


async def test_line_of_the_full_size_is_read(connect: Connect) -> None:
    _, _, (reader, writer) = await connect(on_request=echo)
    line = b'{"id":1,"method":"m"}'
    writer.write(line + b" " * (STREAM_LIMIT - len(line) - 1) + b"\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b'{"id":1,"result":["m",{}]}\n'


# A peer that does not read may cost this much, and no more with each further message.
BOUND_BYTES = 2 * STREAM_LIMIT
ITEM = "x" * 65_536
ITEMS = 4 * BOUND_BYTES // len(ITEM)


async def test_asker_that_does_not_read_its_answers_costs_bounded_memory(connect: Connect) -> None:
    served = 0

    async def answer(method: str, params: dict[str, Any]) -> str:
        nonlocal served
        served += 1
        return ITEM

    channel, _, (_, writer) = await connect(on_request=answer)
    for number in range(ITEMS):
        writer.write(encode_message({"id": number, "method": "status"}))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while served < ITEMS:  # noqa: ASYNC110  # nothing tells that a bounded channel has stopped
                await asyncio.sleep(0.01)
    held = channel._writer.transport.get_write_buffer_size()
    assert held <= BOUND_BYTES, f"{held} bytes held for a peer that reads nothing"


async def test_listener_that_does_not_read_its_events_costs_bounded_memory(connect: Connect) -> None:
    channel, _, _ = await connect()
    for _ in range(ITEMS):
        channel.send_event("flow_assured", item=ITEM)
        await asyncio.sleep(0)
    held = channel._writer.transport.get_write_buffer_size()
    assert held <= BOUND_BYTES, f"{held} bytes held for a peer that reads nothing"


async def test_slow_reader_gets_every_answer_in_the_end(connect: Connect) -> None:
    async def answer(method: str, params: dict[str, Any]) -> str:
        return ITEM

    _, _, (reader, writer) = await connect(on_request=answer)
    for number in range(40):
        writer.write(encode_message({"id": number, "method": "status"}))
    lines = [await asyncio.wait_for(reader.readline(), 5) for _ in range(40)]
    assert lines == [encode_message({"id": number, "result": ITEM}) for number in range(40)]
