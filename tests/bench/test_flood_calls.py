"""What the simulated calls take for lost, late, doubled and damaged; payloads that say whose they are; rows as tables."""

from collections.abc import Callable

import pytest

from bench.flood.attacks import ATTACKS, Attack
from bench.flood.calls import Payload, read_payload, write_payload
from bench.flood.lanes import Count, Lane, count
from bench.flood.rows import FloodRow, Loss, as_markdown
from wire.address import Address
from wire.keys import FleetKey, KeyRing

KEYS = KeyRing([FleetKey(1, bytes(32))], 1)


@pytest.mark.parametrize(
    ("came", "late", "doubled", "damaged", "lost"),
    [
        ([0, 1, 2, 3], 0, 0, 0, 0),
        ([0, 1, 3], 0, 0, 0, 1),
        ([0, 2, 1, 3], 1, 0, 0, 0),
        ([0, 1, 1, 2, 3], 0, 1, 0, 0),
        ([3, 0, 1, 2], 3, 0, 0, 0),
        ([0, 1, 2, 3, 4], 0, 0, 1, 0),
    ],
)
def test_lane_tells_late_doubled_and_lost(
    came: list[int], late: int, doubled: int, damaged: int, lost: int
) -> None:
    lane = Lane()
    assert [lane.send(float(now)) for now in range(4)] == [0, 1, 2, 3]
    for number in came:
        lane.receive(number)
    assert (lane.late, lane.doubled, lane.damaged) == (late, doubled, damaged)
    assert count([lane], 0, 4) == Count(4, lost)


def test_loss_belongs_to_when_it_was_sent() -> None:
    lane = Lane()
    for now in range(10):
        number = lane.send(float(now))
        if now not in (2, 7):
            lane.receive(number)
    assert [count([lane], begin, end) for begin, end in ((0, 2), (2, 3), (3, 7), (0, 10))] == [
        Count(2, 0),
        Count(1, 1),
        Count(4, 0),
        Count(10, 2),
    ]


@pytest.mark.parametrize("size", [40, 110, 240, 1200])
@pytest.mark.parametrize("is_dtls", [False, True])
def test_payload_is_read_as_it_was_written(size: int, *, is_dtls: bool) -> None:
    data = write_payload(7, 300, size, is_dtls=is_dtls)
    assert len(data) == size
    assert read_payload(data) == Payload(7, 300)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: data + data, id="two in one"),
        pytest.param(lambda data: data[:50] + b"\0" + data[51:], id="another byte"),
        pytest.param(lambda data: data[:5], id="a rest"),
    ],
)
def test_damaged_payload_is_none(damage: Callable[[bytes], bytes]) -> None:
    assert read_payload(damage(write_payload(7, 300, 110))) is None


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_payloads_of_an_attack_have_one_length(attack: Attack) -> None:
    payloads = attack.make_payloads(KEYS, Address.parse("198.51.100.2:5900"))
    assert len(set(map(len, payloads))) == 1
    assert len(set(payloads)) == len(payloads) <= 16_384


def test_markdown_has_a_column_a_flood() -> None:
    row = FloodRow(
        name="forged",
        what="forged requests",
        seconds=2.0,
        offered_per_s=1_000_000,
        read_per_s=5000,
        socket_drops={"public": 100, "fleet": 0},
        forwarded_per_s=3,
        loss=Loss(0.0, 0.05, 99.5, 1000, 1),
        provisional_flows=9,
        provisional_cap=16_384,
        rss_before=33 * 1024 * 1024,
        rss_after=34 * 1024 * 1024,
        cpu_percent=99.0,
        rose={"drop_a": 1, "drop_b": 2000},
        is_named=True,
        newcomers_s=[0.05, None, 0.2],
        own_drops=0,
    )
    lines = as_markdown([row, row]).splitlines()
    assert lines[0] == "| flood | forged requests | forged requests |"
    assert lines[1] == "| --- | --- | --- |"
    assert "| kernel dropped/s | 50 | 50 |" in lines
    assert "| calls lost up, down | 0.00 %, 0.05 % | 0.00 %, 0.05 % |" in lines
    assert lines[-2].endswith("| 125 ms, at most 200 ms, 2 of 3 |")
    assert lines[-1].endswith("| drop_b 2,000, drop_a 1 |")
