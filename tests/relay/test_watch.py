"""Sockets with many packets are read without being watched, and none is forgotten."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from relay.dataplane.watch import Watch


class Rig:
    """Two sockets of packets, and another one that is watched."""

    def __init__(self, stack: ExitStack) -> None:
        self.sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)
        ]
        for sock in self.sockets:
            sock.bind(("127.0.0.1", 0))
        self.other, self.others_end = (stack.enter_context(end) for end in socket.socketpair())
        self.watch = Watch(self.sockets)
        self.watch.add(self.other)

    def is_busy(self) -> bool:
        return self.watch.is_busy

    def send(self, number: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", self.sockets[number].getsockname())


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack)


def test_sockets_with_packets_are_to_be_read_in_their_order(rig: Rig) -> None:
    assert rig.watch.wait(0) == ([], set())
    rig.send(1)
    assert rig.watch.wait(5)[0] == [rig.sockets[1]]
    rig.send(0)
    assert rig.watch.wait(5)[0] == rig.sockets
    rig.others_end.send(b"x")
    assert rig.other in rig.watch.wait(5)[1]


def test_socket_with_many_packets_is_read_at_each_turn_until_it_was_empty_some_times(rig: Rig) -> None:
    first, second = rig.sockets
    rig.watch.note(first, 8)
    assert rig.is_busy()
    for _ in range(3):
        assert rig.watch.wait(5)[0] == [first], "without a packet, and without waiting"
        rig.watch.note(first, 0)
    rig.send(1)
    assert rig.watch.wait(5)[0] == [first, second], "others are watched"
    rig.watch.note(second, 1)
    rig.watch.note(first, 1)  # is not empty, nor much
    assert rig.is_busy()
    rig.watch.note(first, 0)
    assert not rig.is_busy()
    assert rig.watch.wait(0)[0] == [second]
    rig.send(0)
    assert rig.watch.wait(5)[0] == [first, second]


def test_packet_that_came_while_a_socket_was_not_watched_is_found(rig: Rig) -> None:
    first = rig.sockets[0]
    rig.watch.note(first, 100)
    for _ in range(4):
        rig.watch.note(first, 0)
    rig.send(0)
    assert rig.watch.wait(5)[0] == [first]


def test_many_again_begin_anew(rig: Rig) -> None:
    first = rig.sockets[0]
    for packets in (9, 0, 0, 0, 9, 0, 0, 0):
        rig.watch.note(first, packets)
        assert rig.is_busy()
    rig.watch.note(first, 0)
    assert not rig.is_busy()
    rig.watch.remove(first)
