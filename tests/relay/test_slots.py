"""What a worker inherits in userspace mode: sockets of its own, counters, a core; and what an error leaves (nothing)."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.config_table import ConfigTable
from host.errors import AddressInUseError, ConfigError
from host.sockets import bind_udp, bound_address, is_ipv6_available
from relay.config import RelayConfig
from relay.core.policy import Vip
from relay.core.verdict import Verdict
from relay.dataplane.split import Split
from relay.slots import SlotMaker, WorkerSlot
from tests.ports import free_port
from wire.address import Address

LOOPBACK = Address.parse("127.0.0.1:0")
needs_ipv6 = pytest.mark.skipif(not is_ipv6_available(), reason="no IPv6 loopback here")


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def config(*vips: Vip, **values: Any) -> RelayConfig:
    return RelayConfig.from_table(ConfigTable("relay", values), vips)


@pytest.fixture
def vip() -> Vip:
    return Vip(Address(LOOPBACK.host, free_port()), Address.parse("203.0.113.10:3478"))


@pytest.fixture
def made() -> Iterator[list[WorkerSlot]]:
    """Slots that are closed with the test."""
    slots: list[WorkerSlot] = []
    yield slots
    for slot in slots:
        slot.close()


def test_workers_share_the_public_port_and_each_has_a_fleet_port(vip: Vip, made: list[WorkerSlot]) -> None:
    base = free_port(count=3)
    maker = SlotMaker(config(vip, fleet_listen=[f"127.0.0.1:{base}"]), None)
    made += [maker.make(index) for index in range(3)]
    for of_slot in ([slot.public for slot in made], [slot.checks for slot in made]):
        assert [[bound_address(s) for s in sockets] for sockets in of_slot] == [[vip.listen]] * 3
    assert [[bound_address(s).port for s in slot.fleet] for slot in made] == [[base], [base + 1], [base + 2]]
    assert [slot.index for slot in made] == [0, 1, 2]


def test_any_fleet_port_is_another_for_each_worker(vip: Vip, made: list[WorkerSlot]) -> None:
    maker = SlotMaker(config(vip), None)
    made += [maker.make(index) for index in range(3)]
    ports = {bound_address(slot.fleet[0]).port for slot in made}
    assert len(ports) == 3
    assert 0 not in ports


@needs_ipv6
def test_sockets_are_in_the_order_of_vips_then_of_fleet_addresses(made: list[WorkerSlot]) -> None:
    v4, v6 = Address(LOOPBACK.host, free_port()), Address.parse("[::1]:0")._replace(port=free_port())
    maker = SlotMaker(config(Vip(v6, v6), Vip(v4, v4), fleet_listen=["[::1]:0", "127.0.0.1:0"]), None)
    made.append(maker.make(0))
    (slot,) = made
    assert [bound_address(sock) for sock in slot.public] == [v6, v4]
    assert [bound_address(sock) for sock in slot.checks] == [v6, v4]
    assert [bound_address(sock).family for sock in slot.fleet] == [6, 4]
    assert slot.sockets == (*slot.public, *slot.checks, *slot.fleet)
    assert slot.fds == (*(sock.fileno() for sock in slot.sockets), slot.counters_fd)
    assert (slot.counters_page, slot.kernel_maps) == (0, {})


def test_slot_has_its_line_to_the_cache_which_outlives_it(vip: Vip, made: list[WorkerSlot]) -> None:
    ends = [os.pipe() for _ in range(2)]
    try:
        maker = SlotMaker(config(vip), None, lambda index: ends[index][0])
        for index in (0, 1, 1):
            slot = maker.make(index)
            assert slot.line_fd == slot.fds[-1] == ends[index][0]
            slot.close()
        assert all(os.fstat(fd) for pipe in ends for fd in pipe)
    finally:
        for fd in (fd for pipe in ends for fd in pipe):
            os.close(fd)


def test_each_worker_counts_on_its_own_and_has_a_core(vip: Vip, made: list[WorkerSlot]) -> None:
    maker = SlotMaker(config(vip), None)
    cores = sorted(os.sched_getaffinity(0))
    made += [maker.make(index) for index in range(len(cores) + 1)]
    made[0].counters.count_batch(np.bincount([Verdict.DROP_MARTIAN], minlength=len(Verdict)), 0, is_up=True)
    assert [slot.counters.verdicts()["drop_martian"] for slot in made[:2]] == [1, 0]
    assert [slot.core for slot in made] == [*cores, cores[0]]


def test_all_sockets_of_all_workers_are_our_own(vip: Vip, made: list[WorkerSlot]) -> None:
    """A packet that claims to come from one of them is a loop."""
    maker = SlotMaker(
        config(vip, max_assured_flows=5, unknown_per_s=6, unknown_burst=7, ipv4_source_bits=24), None
    )
    made += [maker.make(index) for index in range(2)]
    policy = maker.policy(9, made)
    fleet = {bound_address(slot.fleet[0]) for slot in made}
    assert policy.own_sockets == fleet | {vip.listen, vip.address}
    assert (policy.cluster_id, policy.vips) == (9, (vip,))
    assert (policy.max_assured_flows, policy.unknown_per_s, policy.unknown_burst) == (5, 6, 7)
    assert (policy.ipv4_source_bits, policy.ipv6_source_bits) == (24, 64)


def test_taken_fleet_port_is_named_and_leaves_nothing_open(vip: Vip) -> None:
    base = free_port(count=2)
    maker = SlotMaker(config(vip, fleet_listen=[f"127.0.0.1:{base}"]), None)
    with closing(bind_udp("x", Address(LOOPBACK.host, base + 1))):
        before = open_fds()
        with pytest.raises(
            AddressInUseError, match=rf"relay\.fleet_listen: 127\.0\.0\.1:{base + 1} is taken"
        ):
            maker.make(1)
        assert open_fds() == before
    check = maker.make(1)
    check.close()


@pytest.mark.parametrize(
    ("fleet", "field"),
    [
        pytest.param("203.0.113.99:0", "relay.fleet_listen", id="fleet address of another machine"),
        pytest.param("127.0.0.1:0", "relay.listen", id="second VIP of another machine"),
    ],
)
def test_address_of_another_machine_is_named_and_leaves_nothing_open(
    vip: Vip, fleet: str, field: str
) -> None:
    elsewhere = Address.parse("203.0.113.98:3478")
    vips = (vip, Vip(elsewhere, elsewhere)) if field == "relay.listen" else (vip,)
    before = open_fds()
    with pytest.raises(ConfigError) as refused:
        SlotMaker(config(*vips, fleet_listen=[fleet]), None).make(0)
    assert refused.value.field == field
    assert open_fds() == before


def test_closed_slot_leaves_nothing_open(vip: Vip) -> None:
    before = open_fds()
    slot = SlotMaker(config(vip), None).make(0)
    assert len(open_fds()) > len(before)
    slot.close_sockets()
    slot.close()
    assert open_fds() == before
    assert not [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "relayctl-counters" in line
    ]


def test_others_on_the_public_address_are_found_before_we_join_them(vip: Vip, made: list[WorkerSlot]) -> None:
    """A second SO_REUSEPORT bind by the same user would succeed, and take half of the packets."""
    maker = SlotMaker(config(vip), None)
    maker.check_free(set())
    made.append(maker.make(0))
    with pytest.raises(AddressInUseError, match=r"relay\.listen"):
        maker.check_free(set())
    maker.check_free({os.getpid()})


def test_packets_go_to_the_workers_that_are_left(vip: Vip, made: list[WorkerSlot]) -> None:
    """What the supervisor still held open would keep its share of the clients."""
    maker = SlotMaker(config(vip), None)
    made += [maker.make(index) for index in range(2)]
    made[1].close_sockets()
    for _ in range(20):
        send_from_anywhere(vip, b"x")
    assert len(received(made[0].public[0]) + received(made[0].checks[0])) == 20


def test_slots_are_made_in_the_order_that_the_program_counts_in(made: list[WorkerSlot]) -> None:
    """With several VIPs too; and slots that are added later take the places behind."""
    vips = [Vip(address, address) for address in (Address(LOOPBACK.host, free_port()) for _ in range(2))]
    maker, split = SlotMaker(config(*vips), None), Split()
    for workers in (1, 2, 4):
        made += [maker.make(index) for index in range(len(made), workers)]
        split.lead(made[0].public, workers)
        for index, vip in enumerate(vips):
            for _ in range(50):
                client = send_from_anywhere(vip, b"\x80", b"\x00")
                home = split.worker_of(client)
                assert home is not None
                assert received(made[home].public[index]) == [(b"\x80", client)]
                assert received(made[home].checks[index]) == [(b"\x00", client)]


def test_both_public_sockets_have_the_same_room(vip: Vip, made: list[WorkerSlot]) -> None:
    made.append(SlotMaker(config(vip), None).make(0))
    alone = made[0].fleet[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    for sock in (made[0].public[0], made[0].checks[0]):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == alone


def send_from_anywhere(vip: Vip, *datagrams: bytes) -> Address:
    """From a new port; returns the client's address."""
    with closing(bind_udp("client", LOOPBACK)) as client:
        for datagram in datagrams:
            client.sendto(datagram, (str(vip.listen.ip), vip.listen.port))
        return bound_address(client)


def received(sock: socket.socket) -> list[tuple[bytes, Address]]:
    """What waits in a socket, and who sent it."""
    datagrams = []
    with suppress(BlockingIOError):
        while True:
            datagram, source = sock.recvfrom(2048)
            datagrams.append((datagram, Address.from_host(*source)))
    return datagrams
