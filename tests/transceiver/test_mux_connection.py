"""What stands in for aioice: queue, latch, end; and the audio level that stands in for aiortc's."""

import asyncio
from typing import TYPE_CHECKING

import pytest
from av import AudioFrame

from tests.transceiver.checks import RELAY, client
from tests.transceiver.standalone import Standalone
from transceiver.peer import _audio_level_dbov

if TYPE_CHECKING:
    from transceiver.ice import Path
    from wire.address import Address

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_full_queue_drops_the_oldest_and_counts() -> None:
    lone = Standalone()
    for number in range(100):
        lone.connection.dtls_received(b"\x80%d" % number, client(1), RELAY)
    assert lone.tally.counters == {"queue_overflow": 36}
    assert [await lone.connection.recv() for _ in range(64)] == [b"\x80%d" % n for n in range(36, 100)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lone.connection.recv(), 0.01)


async def test_first_audio_that_overtakes_the_end_of_the_handshake_waits_for_the_keys() -> None:
    lone = Standalone()
    early = [(b"\x80%d" % number, client(1), RELAY) for number in range(10)]
    for packet in early:
        lone.connection.srtp_received(*packet)
    assert lone.tally.counters == {"srtp_early": 2}
    got: list[tuple[bytes, Path, Address]] = []
    lone.connection.deliver_srtp(lambda *packet: got.append(packet))
    assert got == []  # receivers are there in the loop's next round only
    await asyncio.sleep(0)
    lone.connection.srtp_received(b"\x80last", client(1), RELAY)
    assert got == [*early[2:], (b"\x80last", client(1), RELAY)]


async def test_receiver_that_waits_is_woken_by_a_datagram() -> None:
    lone = Standalone()
    waiting = asyncio.create_task(lone.connection.recv())
    await asyncio.sleep(0)
    lone.connection.dtls_received(b"\x80", client(1), RELAY)
    assert await waiting == b"\x80"


async def test_connect_waits_for_the_first_check() -> None:
    lone = Standalone()
    connecting = asyncio.create_task(lone.connection.connect())
    await asyncio.sleep(0.01)
    assert not connecting.done()
    lone.check(client(1))
    await connecting


async def test_close_wakes_everyone_with_a_connection_error() -> None:
    lone = Standalone()
    waiting = [asyncio.create_task(lone.connection.connect()), asyncio.create_task(lone.connection.recv())]
    event = asyncio.create_task(lone.connection.get_event())
    await asyncio.sleep(0)
    await lone.connection.close()
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [
        ConnectionError,
        ConnectionError,
    ]
    await event
    with pytest.raises(ConnectionError):
        await lone.connection.send(b"\x80")


async def test_datagram_without_a_destination_is_withheld_and_counted() -> None:
    lone = Standalone()
    await lone.connection.send(b"\x16" * 100)
    assert lone.tally.counters == {"send_withheld": 1}
    lone.check(client(1))
    await lone.connection.send(b"\x16" * 100)
    assert lone.mux.sent == [(b"\x16" * 100, client(1), RELAY)]
    for _ in range(10):
        await lone.connection.send(b"\x16" * 1000)
    assert lone.tally.counters == {"send_withheld": 11}


async def test_authentication_counts_for_the_path_that_the_datagram_came_by() -> None:
    lone = Standalone()
    lone.check(client(1))
    lone.check(client(2))
    lone.agent.complete_handshake()
    lone.connection.dtls_received(b"\x80one", client(2), RELAY)
    lone.connection.dtls_received(b"\x80two", client(1), RELAY)
    await lone.connection.recv()
    lone.connection.authenticated(newest=True)
    assert lone.agent.selected == client(2)


@pytest.mark.parametrize(
    ("samples", "level_dbov"),
    [
        pytest.param([0] * 160, -127, id="silence"),
        pytest.param([32767, -32768] * 80, 0, id="as loud as can be"),
        pytest.param([3277, -3277] * 80, -20, id="a tenth"),
        pytest.param([1, -1] * 80, -90, id="one step"),
    ],
)
def test_audio_level(samples: list[int], level_dbov: int) -> None:
    frame = AudioFrame(format="s16", layout="mono", samples=len(samples))
    frame.planes[0].update(b"".join(s.to_bytes(2, "little", signed=True) for s in samples))
    assert _audio_level_dbov(frame) == level_dbov
