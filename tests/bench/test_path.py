"""The impaired path: a pattern that is fixed by its seed, and counts that agree with what came out."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.path import (
    CLEAN,
    Counts,
    Direction,
    Fate,
    ImpairedPath,
    Impairment,
    Kind,
    fate_of,
    kind_of,
    path_in_thread,
)
from host.sockets import bind_udp, bound_address, sockaddr
from tests.host.deadline import until, wait_until
from wire.address import Address

LOOPBACK = Address.parse("127.0.0.1:0")
ROUGH = Impairment(delay_s=0.02, jitter_s=0.01, loss=0.05, doubled=0.05, reordered=0.05)
numbers = st.integers(0, 2**48)
shares = st.floats(0, 1)


LOST_OF_SEED_1 = {
    Direction.UP: [14, 80],
    Direction.DOWN: [12, 29, 37, 48, 56, 64, 74, 87, 93],
}


def lost(seed: int, client: int, direction: Direction, count: int, loss: float = 0.05) -> list[int]:
    impairment = Impairment(loss=loss)
    return [n for n in range(count) if not fate_of(impairment, seed, client, direction, n).copies]


# the pattern


def test_pattern_is_what_it_was() -> None:
    """A change of it would make figures incomparable with those of before."""
    assert lost(1, 0, Direction.UP, 100) == LOST_OF_SEED_1[Direction.UP]
    assert lost(1, 0, Direction.DOWN, 100) == LOST_OF_SEED_1[Direction.DOWN]


@pytest.mark.parametrize(
    ("description", "seed", "client", "direction"),
    [
        ("another seed", 2, 0, Direction.UP),
        ("another client", 1, 1, Direction.UP),
        ("the other direction", 1, 0, Direction.DOWN),
    ],
)
def test_each_has_a_pattern_of_its_own(
    description: str, seed: int, client: int, direction: Direction
) -> None:
    assert lost(seed, client, direction, 1000) != lost(1, 0, Direction.UP, 1000)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.sampled_from(Direction), numbers)
def test_fate_depends_on_nothing_else(seed: int, client: int, direction: Direction, number: int) -> None:
    fate = fate_of(ROUGH, seed, client, direction, number)
    assert fate == fate_of(ROUGH, seed, client, direction, number)
    assert fate == Fate(0, False, 0.0) or ROUGH.delay_s <= fate.delay_s < ROUGH.delay_s + ROUGH.jitter_s


@given(shares, shares, numbers)
def test_what_is_lost_at_a_low_rate_is_lost_at_a_higher_one(one: float, other: float, number: int) -> None:
    low, high = sorted((one, other))
    if not fate_of(Impairment(loss=low), 1, 0, Direction.UP, number).copies:
        assert not fate_of(Impairment(loss=high), 1, 0, Direction.UP, number).copies


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 1.0])
def test_share_is_what_was_asked_for(share: float) -> None:
    fates = [
        fate_of(Impairment(doubled=share, reordered=share), 1, 0, Direction.UP, number)
        for number in range(20_000)
    ]
    assert sum(fate.copies == 2 for fate in fates) / len(fates) == pytest.approx(share, abs=0.01)
    assert sum(fate.held for fate in fates) / len(fates) == pytest.approx(share, abs=0.01)
    assert len(lost(1, 0, Direction.UP, 20_000, share)) / 20_000 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("wrong", [{"loss": 1.1}, {"doubled": -0.1}, {"reordered": 5.0}, {"delay_s": -1.0}])
def test_impossible_impairment_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Impairment(**wrong)


@pytest.mark.parametrize(
    ("datagram", "kind"),
    [
        (b"\x00\x01\x00\x00", Kind.STUN),
        (b"\x16\xfe\xfd", Kind.DTLS),
        (b"\x80\x60\x00\x01", Kind.RTP),
        (b"\x90\xe0\x00\x01", Kind.RTP),
        (b"\x80\xc8\x00\x06", Kind.RTCP),
        (b"\x81\xc9\x00\x07", Kind.RTCP),
        (b"\x80", Kind.RTP),
        (b"", Kind.OTHER),
        (b"\xff\xff", Kind.OTHER),
    ],
)
def test_kind(datagram: bytes, kind: Kind) -> None:
    assert kind_of(datagram) is kind


# real sockets


def packet(number: int) -> bytes:
    return b"\x80\x60" + number.to_bytes(4, "big")


def numbers_of(datagrams: list[bytes]) -> list[int]:
    return [int.from_bytes(datagram[2:6], "big") for datagram in datagrams]


@dataclass
class Ends:
    """A client, and a server that sends everything back; what each got."""

    path: ImpairedPath
    client: socket.socket
    server: socket.socket
    served: list[bytes] = field(default_factory=list)
    sources: list[Address] = field(default_factory=list)
    echoed: list[bytes] = field(default_factory=list)

    def serve(self) -> None:
        datagram, source = self.server.recvfrom(2048)
        self.served.append(datagram)
        self.sources.append(Address.from_host(*source))
        self.server.sendto(datagram, source)

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.client.sendto(packet(number), sockaddr(self.path.listen))

    async def settled(self, sent: int) -> None:
        """Until all of it came into the path, and all that should come out of it has."""
        path = self.path

        def up() -> Counts:
            return path.counts(Direction.UP)

        def down() -> Counts:
            return path.counts(Direction.DOWN)

        await until(lambda: up().received == sent and not path.queued, "all sent")
        await until(
            lambda: len(self.served) == up().forwarded == down().received and not path.queued, "all served"
        )
        await until(lambda: len(self.echoed) == down().forwarded, "all echoed")


@asynccontextmanager
async def ends(up: Impairment = CLEAN, down: Impairment = CLEAN, **options: Any) -> AsyncIterator[Ends]:
    loop = asyncio.get_running_loop()
    with closing(bind_udp("client", LOOPBACK)) as client, closing(bind_udp("server", LOOPBACK)) as server:
        async with ImpairedPath(LOOPBACK, bound_address(server), up=up, down=down, **options) as path:
            made = Ends(path, client, server)
            loop.add_reader(server, made.serve)
            loop.add_reader(client, lambda: made.echoed.append(client.recv(2048)))
            try:
                yield made
            finally:
                loop.remove_reader(server)
                loop.remove_reader(client)


async def test_clean_path_changes_nothing() -> None:
    async with ends() as made:
        made.send(*range(500))
        await made.settled(500)
        assert numbers_of(made.served) == numbers_of(made.echoed) == list(range(500))
        assert made.path.counts(Direction.UP) == Counts(received=500, forwarded=500)
        assert made.path.counts(Direction.DOWN, Kind.RTP) == Counts(received=500, forwarded=500)
        assert made.path.counts(Direction.UP, Kind.STUN, Kind.DTLS) == Counts()
        assert made.path.kernel_drops() == 0


async def test_what_arrives_is_what_the_pattern_says() -> None:
    impairment = Impairment(loss=0.05, doubled=0.05)
    async with ends(up=impairment) as made:
        made.send(*range(1000))
        await made.settled(1000)
        fates = [fate_of(impairment, 1, 0, Direction.UP, number) for number in range(1000)]
        assert sorted(numbers_of(made.served)) == [
            n for n, fate in enumerate(fates) for _ in range(fate.copies)
        ]
        counts = made.path.counts(Direction.UP)
        assert counts.lost == sum(fate.copies == 0 for fate in fates) > 20
        assert counts.doubled == sum(fate.copies == 2 for fate in fates) > 20
        assert counts.received + counts.doubled == counts.forwarded + counts.lost
        assert numbers_of(made.echoed) == numbers_of(made.served)


async def test_held_datagrams_are_overtaken_and_others_keep_their_order() -> None:
    impairment = Impairment(reordered=0.05, jitter_s=0.02)
    async with ends(down=impairment) as made:
        made.send(*range(300))
        await made.settled(300)
        came = numbers_of(made.echoed)
        held = {n for n in range(300) if fate_of(impairment, 1, 0, Direction.DOWN, n).held}
        assert [n for n in came if n not in held] == [n for n in range(300) if n not in held]
        overtaken = sum(number < max(came[:index], default=-1) for index, number in enumerate(came))
        assert made.path.counts(Direction.DOWN).reordered == overtaken > 5


async def test_delay_is_waited_for() -> None:
    async with ends(up=Impairment(delay_s=0.1), down=Impairment(delay_s=0.2)) as made:
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        made.send(0)
        await until(lambda: made.served, "the datagram")
        assert loop.time() - sent_at >= 0.1
        await until(lambda: made.echoed, "its echo")
        assert loop.time() - sent_at >= 0.3


async def test_pause_drops_what_comes_and_keeps_what_is_under_way() -> None:
    async with ends(up=Impairment(delay_s=0.05)) as made:
        made.send(0)
        await until(lambda: made.path.queued, "a datagram under way")
        made.path.pause(float("inf"), (Direction.UP,))
        made.send(1, 2)
        await until(lambda: made.path.counts(Direction.UP).paused == 2, "two that the pause drops")
        made.path.pause(0)
        made.send(3)
        await made.settled(4)
        assert numbers_of(made.served) == numbers_of(made.echoed) == [0, 3]


async def test_pause_ends_by_itself() -> None:
    async with ends() as made:
        made.path.pause(0.1)
        async with asyncio.timeout(5):
            while not made.echoed:
                made.send(0)
                await asyncio.sleep(0.01)
        assert made.path.counts(Direction.UP).paused > 0


async def test_rebind_gives_every_client_another_port_and_closes_the_old() -> None:
    async with ends() as made:
        made.send(0)
        await made.settled(1)
        [before] = made.path.outer_addresses()
        made.path.rebind()
        [after] = made.path.outer_addresses()
        made.server.sendto(packet(99), sockaddr(before))
        made.send(1)
        await until(lambda: len(made.echoed) == 2, "two echoes")
        assert made.sources == [before, after]
        assert before != after
        assert numbers_of(made.echoed) == [0, 1]


async def test_gap_in_media_is_measured_also_while_it_lasts() -> None:
    async with ends() as made:
        made.send(0, 1)
        await made.settled(2)
        assert made.path.media_gap_s(Direction.DOWN) < 0.5
        await asyncio.sleep(0.5)
        assert made.path.media_gap_s(Direction.UP) >= 0.5
        made.send(2)
        await made.settled(3)
        made.client.sendto(b"\x00\x01", sockaddr(made.path.listen))
        assert made.path.media_gap_s(Direction.DOWN) >= 0.5
        made.path.forget_gaps()
        assert made.path.media_gap_s(Direction.DOWN) < 0.5


async def test_stranger_reaches_no_client() -> None:
    async with ends() as made:
        made.send(0)
        await made.settled(1)
        with closing(bind_udp("stranger", LOOPBACK)) as stranger:
            stranger.sendto(packet(99), sockaddr(made.path.outer_addresses()[0]))
            made.send(1)
            await made.settled(2)
        assert numbers_of(made.echoed) == [0, 1]


async def test_queue_and_clients_are_bounded_and_what_is_too_much_is_counted() -> None:
    async with ends(up=Impairment(delay_s=0.2), max_queued=10, max_clients=1) as made:
        made.send(*range(30))
        await made.settled(30)
        assert numbers_of(made.served) == list(range(10))
        assert made.path.counts(Direction.UP) == Counts(received=30, forwarded=10, overflowed=20)
        with closing(bind_udp("second", LOOPBACK)) as second:
            second.sendto(packet(0), sockaddr(made.path.listen))
            await until(
                lambda: made.path.counts(Direction.UP).overflowed == 21, "refusal of the second client"
            )
        assert len(made.path.outer_addresses()) == 1


def test_path_in_a_thread_serves_who_has_no_event_loop() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind(("127.0.0.1", 0))
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            server.settimeout(5)
            with path_in_thread(LOOPBACK, bound_address(server)) as path:
                client.sendto(packet(0), sockaddr(path.listen))
                _, source = server.recvfrom(2048)
                assert [Address.from_host(*source)] == path.outer_addresses()
                path.impair(up=Impairment(loss=1.0))
                client.sendto(packet(1), sockaddr(path.listen))
                wait_until(lambda: path.counts(Direction.UP, Kind.RTP).received == 2, "the lost one")
                path.impair(up=CLEAN)
                path.rebind()
                client.sendto(packet(2), sockaddr(path.listen))
                datagram, source = server.recvfrom(2048)
                assert numbers_of([datagram]) == [2]
                assert [Address.from_host(*source)] == path.outer_addresses()
                assert path.counts(Direction.UP) == Counts(received=3, forwarded=2, lost=1)
