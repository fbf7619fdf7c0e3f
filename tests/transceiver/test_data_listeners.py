"""An application's listener of a data channel that fails: logged once, counted, and the call goes on."""

from collections.abc import Callable
from typing import Any

import pytest
from aiortc import RTCDataChannel

from tests.transceiver.library import Application, connected, negotiate
from tests.transceiver.waiting import until

pytestmark = pytest.mark.usefixtures("no_task_left", "loopback_only")


def fail(message: object) -> None:
    raise KeyError(message)


def lose_database(message: object) -> None:
    raise ConnectionError(message)  # which ends a call if it is aiortc's own


@pytest.mark.parametrize(
    ("listener", "logged"),
    [
        (fail, "KeyError"),
        (lose_database, "ConnectionError"),
        ({}.__getitem__, "KeyError"),  # no frame of Python's
    ],
    ids=["its own error", "ConnectionError", "built in"],
)
async def test_listener_that_fails_is_logged_once_and_counted(
    app: Application, caplog: pytest.LogCaptureFixture, listener: Callable[[Any], Any], logged: str
) -> None:
    ours, client = await app.make(), await app.make_client()
    heard: list[object] = []

    def listen(channel: RTCDataChannel) -> None:
        channel.on("message", heard.append)
        channel.on("message", listener)

    ours.on("datachannel", listen)
    channel = client.createDataChannel("events")
    await negotiate(client, ours)
    await connected(ours, client)
    await until(lambda: channel.readyState == "open")
    for number in range(3):
        channel.send(f"of the client {number}")
        await until(lambda: len(heard) == number + 1)  # noqa: B023  # awaited here
    await until(lambda: ours.counters["listener_failed"] == 3)
    assert "sctp_malformed" not in ours.counters
    assert caplog.text.count("Traceback") == 1
    assert f"{logged}: 'of the client 0'" in caplog.text or f"{logged}: of the client 0" in caplog.text
    assert ours.connectionState == "connected"


async def test_listener_of_new_channels_that_fails_is_logged_and_counted(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    ours, client = await app.make(), await app.make_client("data")
    ours.on("datachannel", fail)
    await negotiate(client, ours)
    await connected(ours, client)
    await until(lambda: ours.counters["listener_failed"] == 1)
    assert "sctp_malformed" not in ours.counters
    assert "KeyError: <aiortc.rtcdatachannel.RTCDataChannel" in caplog.text


async def test_errors_of_aiortcs_own_reading_are_the_clients(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    ours, client = await app.make("audio"), await app.make_client("audio")
    ours.on("datachannel", fail)
    channel = client.createDataChannel("events")
    await negotiate(client, ours)
    await connected(ours, client)
    assert client.sctp is not None
    await until(lambda: ours.counters["listener_failed"] == 1 and channel.readyState == "open")
    assert channel.id is not None
    await client.sctp._send(channel.id, 51, b"\xff\xfe is no UTF-8")  # PPID 51: a string
    await until(lambda: ours.counters["sctp_malformed"] >= 1)
    assert ours.counters["listener_failed"] == 1
